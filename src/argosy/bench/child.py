"""The process that runs one artifact, and does what it is told, line by line. NumPy and the standard library only.

    python -m argosy.bench.child

Each line of standard input is a JSON object with `op`, the name of a function below, and its arguments; each line of standard
output the answer, or `error`. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import Runtime, load_runtime_class
from argosy.serve.wire.frames import flatten_bytes
from argosy.serve.worker import runtime_trials, warmup
from argosy.serve.worker.agreement import choose_measure
from argosy.serve.worker.answers import Answers
from argosy.serve.worker.bounds import end_first, limit_memory
from argosy.serve.worker.model import own_memory_bytes

__all__ = ["Child", "main", "measure_batches", "measure_mix"]

Arrays = dict[str, NDArray[Any]]

_RUNS: Final = 3
_MIX_S: Final = 0.4
_BATCH_S: Final = 1.0
_GAIN: Final = 1.02
"""A batch of twice the rows that brings less is the last one that is tried, but for one more."""
_MAX_TOLD: Final = 400
_ANY: Final = 1 << 60


class Child:
    """One artifact, once `load` was asked for. Each public method is what a line may ask for."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._answers: Answers | None = None
        self._examples: list[Arrays] = []

    def load(self, runtime: str, folder: str, entry: str, options: dict[str, Any], outputs: list[Any], is_batched: bool) -> Any:
        """Load the artifact, within what the machine has free."""
        # A graph of a few bytes may ask for any amount: what is too much fails here, and takes nothing from others.
        end_first()
        limit_memory(_ANY, must_be_free=True)
        before = time.perf_counter()
        self._runtime = load_runtime_class(runtime)()
        self._runtime.load(Path(folder), entry, options)
        self._answers = Answers(outputs, is_batched=is_batched)
        return {"load_s": time.perf_counter() - before}

    def answer(self, rows: str, answers: str) -> Any:
        """Answer the requests of a file one after the other, and write what is answered into another file."""
        requests = _read(rows)
        got = [self._infer(request) for request in requests]
        entries: Arrays = {}
        for name in got[0]:
            arrays = [answer[name] for answer in got]
            is_whole = all(array.shape == arrays[0].shape and array.dtype == arrays[0].dtype for array in arrays)
            if is_whole and arrays[0].dtype.kind != "O":
                entries[f"out:all:{name}"] = np.stack(arrays)
                continue
            for index, array in enumerate(arrays):
                _put(entries, f"out:{index}:{name}", array)
        save: Any = np.savez  # Its parameters could be names of tensors, for a type checker.
        save(answers, **entries)
        return {}

    def choose(self, rows: list[str]) -> Any:
        """Take the requests that are timed: all of the files'."""
        self._examples = [request for path in rows for request in _read(path)]
        return {}

    def time_mix(self) -> Any:
        """Seconds of a chosen request, alone, each of another shape than the last one."""
        return {"mix_s": measure_mix(self._own(), self._examples)}

    def time_batches(self, max_rows: int, limit_s: float) -> Any:
        """Seconds of batches by rows, made of the first chosen request."""
        return {"service_s": measure_batches(self._own(), self._examples[0], max_rows, limit_s)}

    def time_rounds(self, rows: int, rounds: int) -> Any:
        """Seconds of so many runs in turn through the chosen requests, each as a batch of so many rows of its own."""
        runtime, times = self._own(), list[float]()
        batches = [_repeat(request, rows) for request in self._examples]
        for index in range(rounds):
            batch = batches[index % len(batches)]
            before = time.perf_counter()
            runtime.infer(batch)
            times.append(time.perf_counter() - before)
        return {"seconds": times}

    def take_memory(self) -> Any:
        """Bytes that would be given back if this process ended."""
        return {"memory_bytes": own_memory_bytes()}

    def write_trials(self, path: str) -> Any:
        """Have rows at the extremes of the datatypes answered that are made of the first chosen request, and write both."""
        Path(path).write_bytes(runtime_trials.write_answers(self._own().infer, self._examples[0]))
        return {}

    def hold_trials(self, path: str, own: str, precision: str) -> Any:
        """Hold the answers to such rows against those of the version's own runtime.

        Raises:
            RuntimeDiffers: they differ.
        """
        rows = runtime_trials.read_answers(Path(path).read_bytes())
        runtime_trials.check_answers(self._own().infer, rows, own, choose_measure(precision))
        return {}

    def _own(self) -> Runtime:
        assert self._runtime is not None
        return self._runtime

    def _infer(self, request: Arrays) -> Arrays:
        assert self._answers is not None
        return self._answers.convert(self._own().infer(request))


def _read(path: str) -> list[Arrays]:
    stacked, _ = warmup.load_golden(Path(path))
    count = min(len(array) for array in stacked.values())
    # With the ellipsis what has no axes stays an array.
    return [{name: array[index, ...] for name, array in stacked.items()} for index in range(count)]


def _put(entries: Arrays, key: str, array: NDArray[Any]) -> None:
    if array.dtype.kind == "O":
        entries[f"shape:{key}"] = np.array(array.shape, np.int64)
        array = np.frombuffer(flatten_bytes(array), np.uint8)
    entries[key] = array


def _repeat(request: Arrays, rows: int) -> Arrays:
    return request if rows == 1 else {name: np.take(array, np.arange(rows) % len(array), 0) for name, array in request.items()}


def measure_mix(runtime: Runtime, requests: list[Arrays]) -> float:
    """Seconds that a request takes alone, when each may be of another shape than the last one; shapes were seen before."""
    for request in requests:
        runtime.infer(request)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < len(requests) or (time.perf_counter() - start < _MIX_S and len(times) < 50 * len(requests)):
        before = time.perf_counter()
        runtime.infer(requests[len(times) % len(requests)])
        times.append(time.perf_counter() - before)
    return float(np.mean(np.sort(times)[: max(1, len(times) * 9 // 10)]))


def measure_batches(runtime: Runtime, request: Arrays, max_rows: int, limit_s: float) -> dict[int, float]:
    """Seconds that a batch of 1, 2, 4 ... rows takes, the fastest of a few runs.

    Args:
        runtime: loaded.
        request: rows to repeat.
        max_rows: the largest batch.
        limit_s: no batch that takes longer is of use.
    """
    times: dict[int, float] = {}
    rows, num_useless, start = 1, 0, time.perf_counter()
    while rows <= max_rows and num_useless < 2 and time.perf_counter() - start < _BATCH_S:
        batch = _repeat({name: np.asarray(array) for name, array in request.items()}, rows)
        best = float("inf")
        for run in range(_RUNS + 1):
            before = time.perf_counter()
            runtime.infer(batch)
            # The first run of a shape is not counted.
            best = min(best, time.perf_counter() - before) if run else best
        times[rows] = best
        if best > limit_s:
            break
        is_gain = rows == 1 or rows / best > _GAIN * (rows // 2) / times[rows // 2]
        num_useless = 0 if is_gain else num_useless + 1
        rows *= 2
    return times


def _divert_stdout() -> TextIO:
    """Give standard output to this program alone, and have what libraries print go to standard error."""
    own = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return own


def main() -> None:
    """Do what the lines of standard input say, until it ends."""
    output, child = _divert_stdout(), Child()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            found = getattr(child, job.pop("op"))(**job)
        except Exception as error:  # the edge of the process: a runtime raises anything
            found = {"error": f"{type(error).__name__}: {error}"[:_MAX_TOLD]}
        output.write(f"{json.dumps(found)}\n")
    # Frameworks may crash when they are torn down.
    output.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
