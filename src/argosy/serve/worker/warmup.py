"""What a worker does with a freshly loaded model before it answers anyone: verify it, and measure it.

NumPy and the standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import decode_stored
from argosy.serve.wire.frames import read_elements
from argosy.serve.worker.agreement import Measure, describe_difference, largest_difference

__all__ = [
    "MEASURE_S",
    "GoldenMismatch",
    "load_golden",
    "measure_row",
    "measure_service",
    "pick",
    "verify_golden",
]

Arrays = dict[str, NDArray[Any]]
Infer = Callable[[Arrays], Arrays]

# Relative to the largest value of the output. Another CPU's kernels sum in another order: 1e-4 was seen for deep float32 models.
GOLDEN_TOLERANCE: Final = 1e-3
MEASURE_S: Final = 0.15
"""Time that measuring may take before the first answer."""


class GoldenMismatch(Exception):
    """The version does not answer as it did when it was published."""

    def __init__(self, tensor: str, got: float, allowed: float, how: str) -> None:
        super().__init__(f"output {tensor!r} {how}")
        self.tensor = tensor
        self.got = got
        self.how = how
        self.allowed = allowed


def load_golden(path: Path) -> tuple[Arrays, Arrays]:
    """Read recorded examples, as `argosy.store.golden` writes them: inputs and outputs, the first axis counts examples."""
    with np.load(path, allow_pickle=False) as file:
        entries = {name: decode_stored(file[name]) for name in file.files}
    for key in [key for key in entries if key.startswith("shape:")]:
        name = key.removeprefix("shape:")
        entries[name] = read_elements(entries[name].tobytes(), tuple(entries.pop(key).tolist()))
    sides = ("in:", "out:")
    inputs, outputs = ({k.removeprefix(side): a for k, a in entries.items() if k.startswith(side)} for side in sides)
    return inputs, outputs


def measure_row(infer: Infer, inputs: Arrays, *, is_batched: bool) -> float:
    """Seconds that the first example takes alone: the fastest of three runs, after one that is not counted."""
    example = pick(inputs, 0, is_batched=is_batched)
    infer(example)
    best = float("inf")
    for _ in range(3):
        before = time.perf_counter()
        infer(example)
        best = min(best, time.perf_counter() - before)
    return best


def verify_golden(
    infer: Infer, inputs: Arrays, outputs: Arrays, *, is_batched: bool, measure: Measure = largest_difference
) -> float:
    """Run each example alone and compare by `measure` (see `agreement.py`); returns the largest difference.

    Of a batched signature an example is one row; otherwise it is a whole request.

    Raises:
        GoldenMismatch: an answer is not the recorded one.
    """
    worst = 0.0
    for index in range(_count(inputs)):
        answer = infer(pick(inputs, index, is_batched=is_batched))
        for name, expected in pick(outputs, index, is_batched=is_batched).items():
            got = answer.get(name)
            difference = float("inf") if got is None else measure(got, expected)
            if difference > GOLDEN_TOLERANCE:
                raise GoldenMismatch(
                    name, difference, GOLDEN_TOLERANCE, describe_difference(got, expected, difference, GOLDEN_TOLERANCE)
                )
            worst = max(worst, difference)
    return worst


def measure_service(infer: Infer, inputs: Arrays, max_rows: int, budget_s: float = MEASURE_S) -> dict[int, float]:
    """Seconds that a batch of 1, 2, 4 ... rows takes, the fastest of a few runs; stops after `budget_s`."""
    count = _count(inputs)
    times: dict[int, float] = {}
    start = time.perf_counter()
    rows = 1
    while rows <= max_rows and time.perf_counter() - start < budget_s:
        batch = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()} if count else {}
        best = float("inf")
        for _ in range(3):
            before = time.perf_counter()
            infer(batch)
            best = min(best, time.perf_counter() - before)
        times[rows] = best
        rows *= 2
    return times


def _count(arrays: Arrays) -> int:
    return min((len(array) for array in arrays.values()), default=0)


def pick(arrays: Arrays, index: int, *, is_batched: bool = True) -> Arrays:
    """One example: a row of a batched signature, else a whole request."""
    return {name: array[index : index + 1] if is_batched else array[index, ...] for name, array in arrays.items()}
