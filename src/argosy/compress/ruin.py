"""Whether a version has lost its answers, whatever its metric counts.

The best class stays best if every score is ten times too large; one that is seldom asked for is hardly missed by accuracy.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.fidelity import is_distribution
from argosy.compress.kind import Meaning
from argosy.datatypes import is_float

__all__ = ["find_ruin", "name_answers"]

Array = NDArray[Any]

_OWN_JUDGES: Final = ("mae", "mse", "neighbours", "kl", "max_difference", "iou", "text")
"""Metrics of a unit of their own; and those that say of answers that move far that they may, or look at every number."""

_WIDTH: Final = 10.0
"""A guard of 0.01 lets the answers as a whole move by 0.1: who allows a larger loss allows this, too."""
_MOVED: Final = 0.1
"""1 - R2 of all numbers together, with the original's answers as targets, that is allowed at least. Rounding to 8 bits moves
them by 0.01 at most; half of every number is a move of 0.25, nothing one of 1."""
_MOVED_COLUMN: Final = 0.2
"""Of one entry of an axis, such as the scores of one class."""
_MOVED_MIDDLE: Final = 0.25
"""Of the middle one of the rows by how far it moved, beside the middle one by how far it lies from the others: a few rows that
lie far out make all others' differences small beside the whole spread."""
_LEAST_MIDDLE: Final = 1e-3
"""Beside the size of the answers: rows that lie closer to one another count as one answer, of which nothing is said."""
_LEAST_SPREAD: Final = 0.01
"""Beside the mean of an axis' entries: one that hardly moves is not looked at by itself."""
_DOUBT: Final = 1.5
"""By which factor the mean doubt of probabilities, 1 - the largest, may change: scores twice too large halve it."""
_LEAST_DOUBT: Final = 1e-3
"""Below it, all are as sure as one another."""
_SUM_ERROR: Final = 0.25
"""By which probabilities of 8 bits may miss a sum of 1."""

_MOST_LOST: Final = 0.5
"""Part of a class' rows."""
_FEWEST: Final = 3
"""Rows of a class without which nothing is said of it."""
_CHANCE: Final = 1e-3
"""With which a class may lose so many rows by what all rows lose."""


def find_ruin(before: Array, after: Array, meaning: Meaning, metric: str, max_loss: float, kept: Array | None = None) -> str:
    """Say what a version has lost that its metric may not count; "" for nothing.

    Answers that are no numbers, where the original gives some; all numbers, those of one class or column, or those of most rows,
    far from the original's, which a wrong scale does without another class becoming the best; probabilities that are surer, or
    less sure; a class that is hardly given any more.

    Args:
        before: the original's answers, first axis rows.
        after: the version's, of the same shape.
        meaning: of the output.
        metric: that they are judged by otherwise.
        max_loss: of that metric.
        kept: of a version that has learnt from rows, those to which the original's answer is right, and which are not to be lost;
            it may know better of the others. None: all.
    """
    if before.dtype.kind == "O":
        return _compare_uneven(before, after, metric, _WIDTH * max_loss)
    if is_float(before.dtype):
        odd = np.isfinite(np.asarray(before, np.float64)) != np.isfinite(np.asarray(after, np.float64))
        if odd.any():
            return f"the answers to {int(odd.reshape(len(odd), -1).any(axis=1).sum())} of {len(odd)} rows are no numbers"
    if metric in _OWN_JUDGES:
        return ""
    if kept is not None:
        before, after = before[kept], after[kept]
    if not len(before):
        return ""
    slack = _WIDTH * max_loss
    found = ""
    if is_float(before.dtype):
        found = _compare_numbers(before, after, slack) or _compare_doubt(before, after, meaning, slack)
        if meaning.kind not in ("classes", "yes_no") and not is_distribution(before):
            found = found or _compare_middle(before, after, slack)
    return found or _compare_classes(before, after, meaning, max(slack, _MOST_LOST))


def _compare_uneven(before: Array, after: Array, metric: str, slack: float) -> str:
    """Compare answers that differ in shape from row to row, all numbers together."""
    if not before.size or not isinstance(before.flat[0], np.ndarray) or not is_float(before.flat[0].dtype):
        return ""
    pairs = [[np.asarray(row, np.float64).ravel() for row in pair] for pair in zip(before, after, strict=True)]
    odd = sum(not np.array_equal(np.isfinite(old), np.isfinite(new)) for old, new in pairs)
    if odd:
        return f"the answers to {odd} of {len(pairs)} rows are no numbers"
    if metric in _OWN_JUDGES:
        return ""
    old, new = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    return _compare_numbers(old, new, slack)


def name_answers(outputs: Array, meaning: Meaning) -> Array:
    """Give what outputs stand for: a class, yes or no, or themselves."""
    if meaning.kind == "classes" and outputs.ndim > 1:
        return np.asarray(outputs.argmax(axis=meaning.class_axis))
    return np.asarray(outputs > meaning.threshold) if meaning.kind == "yes_no" else outputs


def _compare_numbers(before: Array, after: Array, slack: float) -> str:
    if is_distribution(before):
        worst = float(np.abs(after.sum(axis=-1, dtype=np.float64) - 1.0).max())
        if worst > max(_SUM_ERROR, slack):
            return f"its probabilities miss a sum of 1 by up to {worst:.2f}"
    old, new = (np.where(np.isfinite(wide), wide, 0.0) for wide in (before.astype(np.float64), after.astype(np.float64)))
    squares, spread = np.square(new - old), np.square(old - old.mean())
    whole = float(spread.mean())
    if whole <= 0.0:
        return ""
    moved, allowed = float(squares.mean()) / whole, max(_MOVED, slack)
    if moved > allowed:
        return f"its answers are far from the original's: {_tell(moved, allowed)}"
    allowed = max(_MOVED_COLUMN, 2.0 * slack)
    for axis in range(1, old.ndim):
        others = tuple(other for other in range(old.ndim) if other != axis)
        errors, scales = np.mean(squares, axis=others), np.var(old, axis=others)
        moves = np.where(scales > _LEAST_SPREAD * scales.mean(), errors / np.maximum(scales, 1e-300), 0.0)
        place = int(moves.argmax())
        if moves[place] > allowed:
            return (
                f"entry {place} of axis {axis} of its answers is far from the original's: {_tell(float(moves[place]), allowed)}"
            )
    return ""


def _compare_middle(before: Array, after: Array, slack: float) -> str:
    """Find answers that most rows have lost, while a few rows that lie far out have not: of whole rows, and of each column."""
    old, new = (np.where(np.isfinite(wide), wide, 0.0) for wide in (before.astype(np.float64), after.astype(np.float64)))
    # What lies between 0 and 1 are chances, most of which may be hardly any; none of them lies far out.
    if old.min() >= 0.0 and old.max() <= 1.0:
        return ""
    center: Array = np.median(old, axis=0)
    squares = [np.square(outputs).reshape(len(old), -1) for outputs in (new - old, old - center, old)]
    wholes = [float(np.median(square.mean(axis=1))) for square in squares]
    allowed = max(_MOVED_MIDDLE, 2.0 * slack)
    if wholes[0] > allowed * wholes[1] and wholes[1] > _LEAST_MIDDLE**2 * wholes[2]:
        return f"its answers to {_tell_middle(len(old), wholes[0] / wholes[1], allowed)}"
    if old.ndim != 2 or old.shape[1] < 2:
        return ""
    moved, spread, size = (np.median(square, axis=0) for square in squares)
    is_wide = (spread > _LEAST_MIDDLE**2 * size) & (spread > _LEAST_SPREAD * spread.mean())
    moves = np.where(is_wide, moved / np.maximum(spread, 1e-300), 0.0)
    place = int(moves.argmax())
    if moves[place] <= allowed:
        return ""
    return f"entry {place} of axis 1 of its answers to {_tell_middle(len(old), float(moves[place]), allowed)}"


def _tell_middle(count: int, moved: float, allowed: float) -> str:
    return (
        f"the middle one of {count} rows is far from the original's: its square moved by {moved:.3f} of the middle spread, "
        f"above {allowed:g}"
    )


def _tell(moved: float, allowed: float) -> str:
    return f"R2 is {1.0 - moved:.3f} with these as targets, below {1.0 - allowed:g}"


def _compare_doubt(before: Array, after: Array, meaning: Meaning, slack: float) -> str:
    """Find probabilities that are surer than they should be, or less sure."""
    if is_distribution(before):
        doubts = [1.0 - float(outputs.max(axis=-1).mean(dtype=np.float64)) for outputs in (before, after)]
    elif meaning.kind == "yes_no" and meaning.threshold > 0.0:
        doubts = [float(np.minimum(outputs, 1.0 - outputs).mean(dtype=np.float64)) for outputs in (before, after)]
    else:
        return ""
    old, new = (max(doubt, _LEAST_DOUBT) for doubt in doubts)
    if max(old / new, new / old) <= _DOUBT + slack:
        return ""
    return (
        f"its probabilities are not as sure as the original's: 1 - the largest is {doubts[1]:.4f} on average, was {doubts[0]:.4f}"
    )


def _compare_classes(before: Array, after: Array, meaning: Meaning, most: float) -> str:
    """Find a class most of whose rows got another answer, more than the rows of all classes would let one expect."""
    if meaning.kind not in ("classes", "yes_no", "labels"):
        return ""
    old, new = (name_answers(outputs, meaning).ravel() for outputs in (before, after))
    names, places, counts = np.unique(old, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return ""
    moved = np.bincount(places, weights=old != new, minlength=len(names))
    rate = float(moved.sum()) / len(old)
    for name, count, lost in zip(names.tolist(), counts.tolist(), moved.tolist(), strict=True):
        if count >= _FEWEST and lost > most * count and len(names) * _bound_chance(count, lost, rate) < _CHANCE:
            return f"of {count} rows that the original gives the answer {name}, {lost:.0f} get another one"
    return ""


def _bound_chance(count: int, lost: float, rate: float) -> float:
    """Chernoff's bound of the probability that so many of the rows are lost, each with the same probability."""
    part = lost / count
    if part <= rate:
        return 1.0
    rest = (1.0 - part) * math.log((1.0 - part) / (1.0 - rate)) if part < 1.0 else 0.0
    return math.exp(-count * (part * math.log(part / rate) + rest))
