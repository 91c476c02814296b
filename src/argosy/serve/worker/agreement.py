"""How far two answers to one request are apart, where one was computed in fewer digits. NumPy and the standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.serve.worker.warmup import largest_difference

__all__ = ["choose_measure", "measure_cosine", "rounded_difference"]

Measure = Callable[[NDArray[Any], NDArray[Any]], float]


def choose_measure(precision: str) -> Measure:
    """Give what verifies answers of a precision against the recorded ones, and rows of a batch against rows alone.

    In bfloat16 each element may move by some hundredths, which a wrong operator does, too; so the whole answer is looked at.
    """
    return rounded_difference if precision == "bfloat16" else largest_difference


def rounded_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """1 - cosine; or the largest difference, where that is less, for the direction of an answer near zero says nothing."""
    difference = largest_difference(got, expected)
    return difference if difference in (0.0, float("inf")) else min(difference, 1.0 - measure_cosine(got, expected))


def measure_cosine(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Cosine of the angle between two answers, all their elements as one vector; less if their lengths differ, too.

    It is 2ab / (aa + bb): for equal lengths the cosine, else below it. 1 for equal answers, also of zeros or infinities; -1
    where what is no number stands at different places.

    Args:
        got: of floats, of any shape.
        expected: as many elements.
    """
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return -1.0
    a, b = got[finite].astype(np.float64), expected[finite].astype(np.float64)
    total = float(a @ a + b @ b)
    return 2.0 * float(a @ b) / total if total else 1.0
