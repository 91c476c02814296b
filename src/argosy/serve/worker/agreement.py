"""How far two answers to one request are apart, and how far they may be. NumPy and the standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float, widen

__all__ = [
    "OUTLIER_FACTOR",
    "Measure",
    "choose_measure",
    "describe_difference",
    "describe_move",
    "exceeds",
    "largest_difference",
    "measure_cosine",
    "rounded_difference",
]

Measure = Callable[[NDArray[Any], NDArray[Any]], float]

JOIN_TOLERANCE: Final = 1e-4
"""How far an answer may move when other rows, or padding, stand beside its own: kernels for many rows add in another order."""
SMALLEST_SCALE: Final = 1e-3
"""An answer that is smaller in all its elements is held against this: what is left of larger numbers that cancel is rounding."""
OUTLIER_FACTOR: Final = 100.0
"""Times so much, a row is one that shifts whatever is taken of a whole batch: a mean, a range, a scale."""


def _allow(dtype: np.dtype[Any]) -> float:
    """How far an answer of a datatype may move; where it holds fewer than 10 bits of a fraction, by four of its steps."""
    if not is_float(dtype) or dtype.itemsize > 2:
        return JOIN_TOLERANCE
    return 4 * 2.0**-10 if dtype.kind == "f" else 4 * 2.0**-7


def exceeds(difference: float, dtype: np.dtype[Any]) -> bool:
    """True for a difference that is more than rounding."""
    return not difference <= _allow(dtype)


def describe_move(name: str, got: NDArray[Any] | None, expected: NDArray[Any], difference: float) -> str:
    """Say by how much an output has moved, or how, where no number says it."""
    allowed = _allow(expected.dtype)
    if math.isfinite(difference):
        return f"output {name!r} moved by {difference:.3g}, allowed {allowed:.3g}"
    return f"output {name!r} {describe_difference(got, expected, difference, allowed)}"


def describe_difference(got: NDArray[Any] | None, expected: NDArray[Any], difference: float, allowed: float) -> str:
    """Say how an answer is not the expected one: by how much, or in words where no number says it."""
    if math.isfinite(difference):
        return f"differs by {difference:.3g}, allowed {allowed:.3g}"
    if got is None:
        return "is missing"
    if got.shape != expected.shape:
        return f"has shape {got.shape}, expected {expected.shape}"
    if (is_float(got.dtype), got.dtype.kind in "iub") != (is_float(expected.dtype), expected.dtype.kind in "iub"):
        return f"has datatype {got.dtype}, expected {expected.dtype}"
    if not is_float(expected.dtype):
        return f"has {int((got != expected).sum())} of {expected.size} elements that are not the expected ones"
    odd = np.isfinite(widen(got)) != np.isfinite(widen(expected))
    return f"is NaN or infinite in {int(odd.sum())} of {expected.size} elements where it should not be, or the other way round"


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


def largest_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference relative to the largest expected magnitude, at least 0.001; infinite where kinds or shapes differ."""
    got, expected = widen(got), widen(expected)
    if got.shape != expected.shape or got.dtype.kind != expected.dtype.kind:
        return float("inf")
    if got.dtype.kind != "f":
        return 0.0 if np.array_equal(got, expected) else float("inf")
    if not np.array_equal(np.isfinite(got), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    a, b = got[finite].astype(np.float64), expected[finite].astype(np.float64)
    return float(np.abs(a - b).max() / max(SMALLEST_SCALE, float(np.abs(b).max())))
