"""Run one engine alone in this process: what it answers, and how long batches take. NumPy and the standard library only.

    python -m argosy.tune.engine_run JOB.json

JOB.json names the artifact, the engine and files of arrays; the answers go to `outputs.npz` beside it, the times to standard
output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import Runtime, load_runtime_class
from argosy.serve.worker import runtime_trials, warmup
from argosy.serve.worker.agreement import choose_measure
from argosy.serve.worker.answers import Answers

__all__ = ["main", "measure_batches", "measure_mix"]

Arrays = dict[str, NDArray[Any]]

_RUNS: Final = 3
_MIX_S: Final = 0.4
_BATCH_S: Final = 1.0
_GAIN: Final = 1.02
"""A batch of twice the rows that brings less is the last one that is tried, but for one more."""


def main() -> None:
    """Carry out the job in the file that the first argument names."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    runtime: Runtime = load_runtime_class(job["runtime"])()
    before = time.perf_counter()
    runtime.load(Path(job["folder"]), job["entry"], job["options"])
    found: dict[str, Any] = {"load_s": time.perf_counter() - before}
    golden, _ = warmup.load_golden(path.with_name("golden.npz"))
    answers = Answers(job["outputs"], is_batched=job["is_batched"])
    _answer_each(runtime, golden, job["is_batched"], answers, path.with_name("outputs.npz"))
    _try_extremes(runtime, warmup.pick(golden, 0, is_batched=job["is_batched"]), job, path.with_name("trials.npz"))
    requests = [warmup.load_golden(path.with_name(f"request{index}.npz"))[0] for index in range(job["num_requests"])]
    found["mix_s"] = measure_mix(runtime, requests)
    if job["is_batched"]:
        found["service_s"] = measure_batches(runtime, requests[0], job["max_rows"], job["limit_s"])
    json.dump(found, sys.stdout)


def _answer_each(runtime: Runtime, golden: Arrays, is_batched: bool, outputs: Answers, path: Path) -> None:
    """Write the answer to each example, one after the other, as `INDEX:NAME`. Text has no cosine, and is left out."""
    answers: Arrays = {}
    for index in range(min(len(array) for array in golden.values())):
        example = warmup.pick(golden, index, is_batched=is_batched)
        for name, array in outputs.convert(runtime.infer(example)).items():
            if array.dtype.kind != "O":
                answers[f"{index}:{name}"] = array
    save: Any = np.savez  # Its parameters could be names of tensors, for a type checker.
    save(path, **answers)


def _try_extremes(runtime: Runtime, example: Arrays, job: dict[str, Any], path: Path) -> None:
    """Write what the version's own runtime answers at the extremes of the datatypes, or hold this one's answers against it.

    Raises:
        RuntimeDiffers: it answers otherwise.
    """
    if job["runtime"] == job["own_runtime"]:
        path.write_bytes(runtime_trials.write_answers(runtime.infer, example))
        return
    measure = choose_measure(job["options"].get("precision", ""))
    runtime_trials.check_answers(runtime.infer, runtime_trials.read_answers(path.read_bytes()), job["own_runtime"], measure)


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
        batch = {name: np.take(array, np.arange(rows) % len(array), 0) for name, array in request.items()}
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


if __name__ == "__main__":
    main()
