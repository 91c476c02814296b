"""Whether a version has lost its answers, whatever its metric counts.

The best class stays best if every score is ten times too large; one that is seldom asked for is hardly missed by accuracy.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.dependence import find_collapse
from argosy.compress.fidelity import is_distribution
from argosy.compress.kind import Meaning
from argosy.compress.metrics import name_answers
from argosy.compress.spread import LEAST_OF_ALL, find_least_spread, is_uneven, list_tables, tell_chances
from argosy.datatypes import is_float

__all__ = ["find_ruin"]

Array = NDArray[Any]

_OWN_JUDGES: Final = ("mae", "mse", "neighbours", "kl", "iou", "text")
"""Metrics of a unit of their own; and those that say of answers that move far that they may."""
_BY_LARGEST: Final = "max_difference"
"""Looks at every number, beside the largest of all: entries that are small beside that may be lost altogether."""

_WIDTH: Final = 10.0
"""A guard of 0.01 lets the answers as a whole move by 0.1: who allows a larger loss allows this, too."""
_MOVED: Final = 0.1
"""1 - R2 of all numbers together, with the original's answers as targets, that is allowed at least. Rounding to 8 bits moves
them by 0.01 at most; half of every number is a move of 0.25, nothing one of 1."""
_MOVED_COLUMN: Final = 0.2
"""Of one entry of an axis, such as the scores of one class."""
_FEW: Final = 0.2
"""Part of the numbers, as many as which make the spread: 1 / kurtosis. R2 sees only these; of normal numbers it is a third."""
_MOST: Final = (5.0, 95.0)
"""Percentiles between which most numbers lie, whatever a few do."""
_LOST: Final = 0.9
"""1 - R2 of an entry of which hardly more than its mean is left."""
_LEAST_MOVE: Final = 1e-3
"""Beside its size, by which a number has to move before others are looked for between its old and its new place."""
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

    Answers that are no numbers, where the original gives some; answers that do not depend on the input as the original's do; a
    class that is hardly given any more. But of metrics that let answers move, more is looked for: all numbers, or those of one
    class or column, far from the original's, which a wrong scale does without another class becoming the best; most numbers,
    where a few lie so far out that these alone make the spread; probabilities that are surer, or less sure.

    Args:
        before: the original's answers, first axis rows.
        after: the version's, of the same shape.
        meaning: of the output.
        metric: that they are judged by otherwise.
        max_loss: of that metric.
        kept: of a version that has learnt from rows, those to which the original's answer is right, and which are not to be lost;
            it may know better of the others. None: all.
    """
    before, after, num_odd = _drop_odd(before, after)
    if num_odd:
        return f"the answers to {num_odd} of {len(before)} rows are no numbers"
    is_retrained, has_fractions = kept is not None, len(before) > 0 and _has_fractions(before)
    has_one_unit = has_fractions and (meaning.kind in ("classes", "yes_no") or _is_distribution(before))
    found = find_collapse(before, after, has_one_unit=has_one_unit, is_retrained=is_retrained) if has_fractions else ""
    old, new = (before, after) if kept is None else (before[kept], after[kept])
    slack = _WIDTH * max_loss
    if len(old):
        if has_fractions and metric not in _OWN_JUDGES:
            found = found or _compare_fractions(old, new, meaning, metric, slack, has_one_unit=has_one_unit)
        most = _MOST_LOST if metric in _OWN_JUDGES else max(slack, _MOST_LOST)
        found = found or _compare_classes(old, new, meaning, most)
    return found or _compare_kinds(before, after, meaning)


def _compare_fractions(before: Array, after: Array, meaning: Meaning, metric: str, slack: float, *, has_one_unit: bool) -> str:
    if metric == _BY_LARGEST:
        return _compare_entries(before, after, max(_LOST, 2.0 * slack), has_one_unit=has_one_unit)
    found = _compare_numbers(before, after, slack)
    found = found or _compare_entries(before, after, max(_MOVED_COLUMN, 2.0 * slack), has_one_unit=has_one_unit)
    found = found or _compare_doubt(before, after, meaning, slack)
    if not found and not has_one_unit:
        found = _compare_places(before, after, slack, may_be_chances=meaning.kind != "values")
    return found


def _has_fractions(outputs: Array) -> bool:
    return is_float(outputs[0].dtype if is_uneven(outputs) else outputs.dtype)


def _is_distribution(outputs: Array) -> bool:
    return all(is_distribution(row) for row in outputs) if is_uneven(outputs) else is_distribution(outputs)


def _drop_odd(before: Array, after: Array) -> tuple[Array, Array, int]:
    """Give 0 for what is no number in both, and count the rows where only one of them is none."""
    if not len(before) or not _has_fractions(before):
        return before, after, 0
    if is_uneven(before):
        old, new = np.empty_like(before), np.empty_like(after)
        num_odd = 0
        for place in range(len(before)):
            (old[place],), (new[place],), is_odd = _drop_odd(before[place][None], after[place][None])
            num_odd += is_odd
        return old, new, num_odd
    wide = [outputs.astype(np.float64) for outputs in (before, after)]
    is_number = [np.isfinite(outputs) for outputs in wide]
    odd = (is_number[0] != is_number[1]).reshape(len(before), -1).any(axis=1)
    old, new = (np.where(is_number[0], outputs, 0.0) for outputs in wide)
    return old, new, int(odd.sum())


def _compare_numbers(before: Array, after: Array, slack: float) -> str:
    if not is_uneven(before) and is_distribution(before):
        worst = float(np.abs(after.sum(axis=-1, dtype=np.float64) - 1.0).max())
        if worst > max(_SUM_ERROR, slack):
            return f"its probabilities miss a sum of 1 by up to {worst:.2f}"
    (_, old), (_, new) = (next(list_tables(outputs)) for outputs in (before, after))
    whole = float(np.var(old))
    moved, allowed = float(np.mean(np.square(new - old))) / whole if whole > 0.0 else 0.0, max(_MOVED, slack)
    return f"its answers are far from the original's: {_tell(moved, allowed)}" if moved > allowed else ""


def _compare_entries(before: Array, after: Array, allowed: float, *, has_one_unit: bool) -> str:
    """Find an entry of an axis that is lost, such as the scores of a class, or those beside a detector's boxes."""
    for (axis, old), (_, new) in zip(list_tables(before), list_tables(after), strict=True):
        if axis == 0:
            continue
        scales = np.var(old, axis=0)
        squares: Array = np.mean(np.square(old), axis=0)
        is_wide = scales > find_least_spread(scales, squares, tell_chances(old), has_one_unit=has_one_unit)
        moves = np.where(is_wide, np.mean(np.square(new - old), axis=0) / np.maximum(scales, 1e-300), 0.0)
        place = int(moves.argmax())
        if moves[place] > allowed:
            told = _tell(float(moves[place]), allowed)
            return f"entry {place} of axis {axis} of its answers is far from the original's: {told}"
    return ""


def _compare_places(before: Array, after: Array, slack: float, *, may_be_chances: bool) -> str:
    """Find answers that most rows have lost, while a few that lie far out have not: by how many lie between old and new place.

    A long tail makes all other differences small beside the whole spread, but no answer's place among the others.
    """
    for (axis, old), (_, new) in zip(list_tables(before), list_tables(after), strict=True):
        allowed = max(_MOVED_COLUMN, 2.0 * slack) if axis else max(_MOVED, slack)
        squares = np.square(old - old.mean(axis=0))
        is_few = np.square(squares.mean(axis=0)) < _FEW * np.square(squares).mean(axis=0)
        low, high = np.percentile(old, _MOST, axis=0)
        is_few &= np.square(high - low) > LEAST_OF_ALL * np.square(old).mean()
        for column in np.flatnonzero(is_few & ~(tell_chances(old) & may_be_chances)).tolist():
            moved = _measure_places(old[:, column], new[:, column])
            if moved > allowed:
                name = f"entry {column} of axis {axis} of its answers" if axis else "its answers"
                told = f"R2 of their ranks is {1.0 - moved:.3f}, below {1.0 - allowed:g}"
                return f"{name}, but for a few that lie far out, have lost their order: {told}"
    return ""


def _measure_places(old: Array, new: Array) -> float:
    """Give 1 - R2 of places: how many numbers lie between the old and the new, beside how many between it and the middle."""
    ordered = np.sort(old)

    def count_between(ends: Array) -> Array:
        low, high = np.minimum(old, ends), np.maximum(old, ends)
        between = np.searchsorted(ordered, high, "left") - np.searchsorted(ordered, low, "right")
        return np.where(high - low > _LEAST_MOVE * np.abs(old), np.maximum(between, 0), 0)

    moved, spread = (float(np.square(count_between(ends)).mean()) for ends in (new, np.full_like(old, np.median(old))))
    return moved / spread if spread > 0.0 else 0.0


def _tell(moved: float, allowed: float) -> str:
    return f"R2 is {1.0 - moved:.3f} with these as targets, below {1.0 - allowed:g}"


def _compare_doubt(before: Array, after: Array, meaning: Meaning, slack: float) -> str:
    """Find probabilities that are surer than they should be, or less sure."""
    if is_uneven(before):
        return ""
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


def _name_all(outputs: Array, meaning: Meaning) -> Array:
    """Give all that outputs stand for, in a row."""
    return np.concatenate([row.ravel() for row in outputs]) if is_uneven(outputs) else name_answers(outputs, meaning).ravel()


def _has_kinds(outputs: Array, meaning: Meaning) -> bool:
    return meaning.kind in (("labels",) if is_uneven(outputs) else ("classes", "yes_no", "labels"))


def _compare_kinds(before: Array, after: Array, meaning: Meaning) -> str:
    """Find that but one class, or label, is left, which no guard is wide enough for."""
    if not _has_kinds(before, meaning):
        return ""
    old, new = _name_all(before, meaning), _name_all(after, meaning)
    if not len(new) or (new != new[0]).any() or (lost := int((old != new[0]).sum())) < _FEWEST:
        return ""
    return f"it gives all {len(before)} rows the answer {new[0]}, the original gives {lost} of them another one"


def _compare_classes(before: Array, after: Array, meaning: Meaning, most: float) -> str:
    """Find a class most of whose rows got another answer, more than the rows of all classes would let one expect."""
    if not _has_kinds(before, meaning):
        return ""
    old, new = _name_all(before, meaning), _name_all(after, meaning)
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
