"""Thirty-two clients in a few processes, and what they saw."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.demo.clients import COLUMNS, is_close
from argosy.errors import FaultError

if TYPE_CHECKING:
    from argosy.server import Server

__all__ = ["Crowd", "Seen"]

# Half HTTP, half gRPC. A process a kind: one interpreter could not keep 32 clients busy, and would be what is measured.
_PROCESSES: Final = (
    ("tritonclient.http",) * 8,
    ("httpx",) * 4 + ("argosy",) * 4,
    ("tritonclient.grpc",) * 8,
    ("tritonclient.grpc",) * 8,
)


@dataclass(frozen=True)
class Seen:
    """Every request of the crowd; `rows` has the columns of `argosy.demo.clients.COLUMNS`."""

    rows: NDArray[np.float64]
    problems: tuple[str, ...]

    def column(self, name: str) -> NDArray[np.float64]:
        """One column."""
        return self.rows[:, COLUMNS.index(name)]

    def between(self, start_s: float, end_s: float) -> Seen:
        """The requests that were under way at some time between two moments of `time.monotonic()`."""
        sent = self.column("sent_s")
        picked = (sent < end_s) & (sent + self.column("latency_s") >= start_s)
        return Seen(self.rows[picked], self.problems)

    @property
    def num_failed(self) -> int:
        """Requests without an answer."""
        return int(self.column("is_failed").sum())

    @property
    def num_wrong(self) -> int:
        """Answers that are not those of the version that they name."""
        return int(self.column("is_wrong").sum())

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latency in milliseconds; NaN without requests."""
        latencies = self.column("latency_s")
        return float(np.quantile(latencies, share)) * 1e3 if len(latencies) else float("nan")


class Crowd:
    """Clients that send single images without pause while the `with` block runs.

    Args:
        server: where to.
        model: name of the deployment; one FP32 input, one FP32 output.
        folder: for the job's files.
        images: shape (N, ...).
        expected: version -> right answers, shape (N, ...), of one version at least; others may follow by `expect`.
        tensors: names of the input and the output.
        tolerances: version -> how far an answer may be from the right one, relative to its largest value (at least 1).
        timeout_s: after which a client gives up.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        folder: Path,
        images: NDArray[Any],
        expected: dict[str, NDArray[Any]],
        tensors: tuple[str, str],
        tolerances: dict[str, float],
        timeout_s: float = 30.0,
    ) -> None:
        self.seen: Seen | None = None
        self._later: dict[str, tuple[NDArray[Any], float]] = {}
        self._folder = folder
        self._job = {
            "http": server.url.removeprefix("http://"),
            "grpc": server.grpc_address,
            "model": model,
            "input": tensors[0],
            "output": tensors[1],
            "tolerances": tolerances,
            "data": str(folder / "data.npz"),
            "timeout_s": timeout_s,
        }
        arrays: dict[str, Any] = {"images": images, **{f"version_{name}": array for name, array in expected.items()}}
        np.savez(folder / "data.npz", **arrays)
        self._processes: list[subprocess.Popen[str]] = []

    def expect(self, version: str, answers: NDArray[Any], tolerance: float) -> None:
        """Say what a version answers that came to be while the clients ask; before the block ends."""
        self._later[version] = (answers, tolerance)

    def __enter__(self) -> Crowd:
        for index, kinds in enumerate(_PROCESSES):
            job = {**self._job, "clients": kinds, "seed": 1000 * index}
            job |= {"result": str(self._folder / f"rows{index}.npy"), "unknown": str(self._folder / f"unknown{index}.npz")}
            path = self._folder / f"job{index}.json"
            path.write_text(json.dumps(job))
            command = [sys.executable, "-P", "-m", "argosy.demo.clients", str(path)]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                self.__exit__()
                raise FaultError("internal", detail="a process of clients did not start")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        problems: list[str] = []
        for process in self._processes:
            assert process.stdout is not None
            last = process.stdout.read().strip().splitlines()
            problems += json.loads(last[-1]) if last else ["a process of clients died"]
            process.wait()
        paths = [self._folder / f"rows{index}.npy" for index in range(len(self._processes))]
        rows = [self._check(index, np.load(path, allow_pickle=False)) for index, path in enumerate(paths) if path.exists()]
        if len(rows) < len(self._processes):
            problems.append("a process of clients left no result")
        self.seen = Seen(np.concatenate(rows) if rows else np.empty((0, len(COLUMNS))), tuple(problems))

    def _check(self, index: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hold answers of versions that came later against what is right."""
        column = COLUMNS.index("is_wrong")
        with np.load(self._folder / f"unknown{index}.npz", allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        for row, image, version, answer in zip(*(found[name] for name in ("rows", "images", "versions", "answers")), strict=True):
            known = self._later.get(str(version))
            rows[row, column] = known is None or not is_close(answer, known[0][image], known[1])
        return rows
