"""Requests/s, CPU per request, latency and memory of Argosy beside its rivals, in one run on one machine.

    python benchmarks/serve.py [--scenarios mlp,grpc] [--rivals mosec,fastapi] [--rounds 9] [--seconds 5] [--json FILE]

Every round measures all servers of a scenario, in an order that rotates, so that a change of the machine's speed meets
all of them; Argosy takes part twice, and what its two instances differ by is noise. CPU is that of all processes of a
server, from the kernel's accounts. What other processes use is shown, and a window in which they use much is dirty. A rival
that uses the processor while nobody asks it is started for its own windows alone. Each server's answers are checked against
ONNX Runtime before it is loaded; one that does not install, start, answer rightly or stand the load is reported with the
reason. A full run of all takes about two hours, so that nothing else should run on the machine.

Needs `wrk` and `h2load` (Debian: wrk, nghttp2-client); for MiniLM what examples/minilm.py needs, for the tuned deployment
OpenVINO; for TorchServe Java. Rivals get environments of their own in ~/.cache/argosy-bench/venvs, made when they are first
needed (`--install`: all, and nothing is measured).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from machine import describe_machine
from rivals.catalogue import RIVALS
from rivals.environment import EntrantError, make_environment
from rounds import Rounds
from scenarios import make_scenarios
from start import StartOutcome, measure_start
from tables import Outcome

# A rival takes part in all forms that it has: HTTP, gRPC, raw bytes.
ENVIRONMENTS = tuple(dict.fromkeys(rival.environment for rival in RIVALS.values()))
ALL = ("mlp", "binary", "grpc", "minilm", "lengths", "start", "fronts", "open")


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", default=",".join(ALL), help="default: all")
    parser.add_argument("--rivals", default=",".join(ENVIRONMENTS), help="default: all; empty: none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one window; MiniLM's are twice as long")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests/s of the open loop")
    parser.add_argument("--minilm", default="replicas=2,threads=1", help="flags of argosy deploy for MiniLM")
    parser.add_argument("--tuned", default="runtime=openvino,precision=bfloat16,replicas=2,threads=1", help="of the tuned one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every window there")
    parser.add_argument("--install", action="store_true", help="make the rivals' environments, and measure nothing")
    options = parser.parse_args()
    options.scenarios, options.rivals = options.scenarios.split(","), [name for name in options.rivals.split(",") if name]
    for what, given, known in (("scenario", options.scenarios, ALL), ("rival", options.rivals, ENVIRONMENTS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
    missing = [program for program in ("wrk", "h2load") if shutil.which(program) is None]
    if missing:
        parser.error(f"not found: {', '.join(missing)}; Debian has them in the packages wrk and nghttp2-client")
    options.rivals = [rival.name for rival in RIVALS.values() if rival.environment in options.rivals]
    return options


def install(names: Sequence[str]) -> None:
    for name in names:
        try:
            say(name, make_environment(RIVALS[name]))
        except EntrantError as error:
            say(name, error)


def run_one(name: str, options: argparse.Namespace, folder: Path) -> Outcome | StartOutcome:
    if name == "start":
        return measure_start(options.rounds, options.seconds, folder, say)
    scenario = make_scenarios(options.rivals, options.minilm, options.tuned, options.rate)[name]
    seconds = options.seconds * (2 if scenario.unit == "rows" else 1)
    return Rounds(scenario, seconds, folder, say).run(options.rounds)


def main() -> None:
    options = parse_options()
    # So that the servers are ended when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.install:
        install(options.rivals)
        return
    head = (
        f"{describe_machine()}, ONNX Runtime {onnxruntime.__version__}; {options.rounds} rounds of {options.seconds:g} s; medians"
    )
    print(head)
    found = {}
    for name in options.scenarios:
        with tempfile.TemporaryDirectory() as path:
            outcome = run_one(name, options, Path(path))
        print(f"\n{outcome.format()}", flush=True)
        found[name] = outcome.to_json()
        if options.json:
            options.json.write_text(json.dumps({"machine": head, "scenarios": found}, indent=1))


if __name__ == "__main__":
    main()
