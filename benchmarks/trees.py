"""Two source trees in turn: what a change costs or brings in requests/s, CPU, latency, start and memory.

    python benchmarks/trees.py BEFORE [AFTER] [--scenarios mlp,binary,grpc] [--rounds 15] [--seconds 2] [--json FILE]

BEFORE and AFTER are checkouts; AFTER is this one by default. In every round each tree's server is started, loaded and ended,
the order changes from round to round, and a ratio is taken within each round; the start and the memory after the load are
those of the same servers. Both run in this environment. Needs `wrk` and `h2load` (Debian: wrk, nghttp2-client).
"""

from __future__ import annotations

import argparse
import compileall
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine
from ratios import find_interval
from rounds import Rounds
from scenarios import make_tree_scenarios
from tables import Outcome, format_table

SCENARIOS = ("mlp", "binary", "grpc")
BEFORE, AFTER = "before", "after"
_MB = 2**20


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def compare_values(name: str, before: Sequence[float], after: Sequence[float], unit: float) -> list[str]:
    """A row: medians of both, and the ratio of what was measured in the same round."""
    ratios = [second / first for first, second in zip(before, after, strict=True)]
    low, high, coverage = find_interval(ratios)
    shown = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
    medians = [f"{statistics.median(values) / unit:.2f}" for values in (before, after)]
    return [name, *medians, shown, str(len(ratios)), f"{coverage:.1%}"]


def describe(outcome: Outcome) -> str:
    """The medians and ratios of a scenario, and those of start and memory."""
    starts, memory = outcome.starts_s, outcome.pss_bytes
    rows = [
        compare_values("start to the first answer, s", starts[BEFORE], starts[AFTER], 1),
        compare_values("PSS of all processes after load, MB", memory[BEFORE], memory[AFTER], _MB),
    ]
    return f"{outcome.format()}\n\n{format_table(['', BEFORE, AFTER, 'after / before', 'pairs', 'coverage'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one window")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every window there")
    options = parser.parse_args()
    for tree in (options.before, options.after):
        # Else every process of one that nobody has compiled compiles it anew, where Python may not write what it compiled.
        compileall.compile_dir(tree / "src", quiet=1)
    # The first is divided by the second: a ratio below 1 says that the change made it less.
    scenarios = make_tree_scenarios({AFTER: options.after.resolve(), BEFORE: options.before.resolve()})
    print(f"{describe_machine()}; {options.rounds} rounds of {options.seconds:g} s; medians")
    found = {}
    for name in options.scenarios.split(","):
        with tempfile.TemporaryDirectory() as path:
            outcome = Rounds(scenarios[name], options.seconds, Path(path), say).run(options.rounds)
        print(f"\n{describe(outcome)}", flush=True)
        found[name] = outcome.to_json()
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
