"""From `argosy serve` to the first right answer, the memory of all processes after load, and what workers share."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import Case, make_case
from ratios import Ratio, find_interval, judge
from servers import plan_argosy, run_server
from tables import format_table

MAX_START_S, MAX_PSS_BYTES = 1.0, 140 * 2**20
NUM_WORKERS = 4
CONNECTIONS = 64
_MB = 2**20


@dataclass
class StartOutcome:
    """What was found.

    Attributes:
        starts_s: of one server with one worker, each from the start of its program to the first right answer.
        pss_bytes: memory of all processes of each such server, after load.
        processes: of a server with several workers, after load: name, PSS, private and shared bytes.
    """

    starts_s: list[float] = field(default_factory=list)
    pss_bytes: list[float] = field(default_factory=list)
    processes: list[tuple[str, int, int, int]] = field(default_factory=list)

    def format(self) -> str:
        """Both limits with their intervals, and a table of the processes."""
        rows = [
            _judge_values("start to the first answer, s", self.starts_s, MAX_START_S, 1),
            _judge_values("PSS of all processes after load, MB", self.pss_bytes, MAX_PSS_BYTES, _MB),
        ]
        total = sum(pss for _, pss, _, _ in self.processes)
        processes = [[name, *(f"{value / _MB:.1f}" for value in values)] for name, *values in self.processes]
        return "\n\n".join(
            [
                "## Start and memory: `argosy serve` with the perceptron",
                format_table(["", "median (interval)", "limit", "runs", "verdict"], rows),
                f"With {NUM_WORKERS} workers of the same model, after load: {total / _MB:.0f} MB (PSS)",
                format_table(["process", "PSS MB", "private MB", "shared MB"], processes),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        names = ("name", "pss_bytes", "private_bytes", "shared_bytes")
        processes = [dict(zip(names, process, strict=True)) for process in self.processes]
        return {"starts_s": self.starts_s, "pss_bytes": self.pss_bytes, "processes": processes}


def _judge_values(name: str, values: list[float], limit: float, unit: float) -> list[str]:
    low, high, coverage = find_interval(values)
    ratio = Ratio(statistics.median(values), low, high, coverage, "")
    shown = f"{ratio.median / unit:.2f} ({low / unit:.2f} to {high / unit:.2f})"
    return [name, shown, f"at most {limit / unit:g}", str(len(values)), judge(0.0, limit, ratio)]


def _list_processes(server: Any) -> list[tuple[str, int, int, int]]:
    found = []
    for process in server.family.members():
        memory = process.memory_full_info()
        # `-m MODULE` says what a process is; a worker has the name that its template gave it.
        words = process.cmdline()
        name = words[words.index("-m") + 1] if "-m" in words else " ".join(words)[:40]
        found.append((name, memory.pss, memory.uss, memory.rss - memory.uss))
    return found


def measure_start(rounds: int, seconds: float, folder: Path, say: Callable[..., None]) -> StartOutcome:
    """Start the server anew in every round; at last once with several workers."""
    case, outcome = make_case("mlp", folder / "case"), StartOutcome()
    for number in range(rounds):
        with _start(case, folder / str(number), ()) as server:
            server.load(CONNECTIONS, seconds)
            outcome.starts_s.append(server.start_s)
            outcome.pss_bytes.append(server.family.pss_bytes())
        say(f"round {number + 1}  start {outcome.starts_s[-1]:.3f} s, PSS {outcome.pss_bytes[-1] / _MB:.1f} MB")
    with _start(case, folder / "workers", ("--replicas", str(NUM_WORKERS))) as server:
        server.load(CONNECTIONS, seconds)
        outcome.processes = _list_processes(server)
    return outcome


def _start(case: Case, folder: Path, deploy: tuple[str, ...]) -> Any:
    folder.mkdir()
    return run_server(plan_argosy(case, folder, deploy=deploy), case, folder)
