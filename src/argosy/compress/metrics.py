"""What a metric makes of answers before and after, against targets or against the original's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.fidelity import FIDELITIES
from argosy.compress.kind import Meaning
from argosy.compress.spread import Values, is_uneven, measure_r2
from argosy.errors import InputError
from argosy.train.losses import prepare_targets

__all__ = ["AT_MOST_ONE", "METRICS", "OF_LABELS", "RATES", "find_loss", "measure", "measure_blank", "name_answers", "tell_right"]

Array = NDArray[Any]

METRICS: Final = ("accuracy", "r2", "mae", "mse", "fidelity", *FIDELITIES)
"""What a guard may name."""
OF_LABELS: Final = (None, "accuracy", "agreement")
"""Metrics that say something of answers which are no fractions."""
RATES: Final = ("accuracy", "agreement", "neighbours")
"""Metrics that count rows: of N rows, they say nothing finer than 1/N."""
AT_MOST_ONE: Final = ("accuracy", "r2", "fidelity", *(name for name, fidelity in FIDELITIES.items() if fidelity.best == 1.0))
_LOWER_IS_BETTER: Final = ("mae", "mse", "kl", "max_difference")


def measure(metric: str, before: Array, after: Array, targets: Array | None, meaning: Meaning) -> Values:
    """Give a metric before and after, and what each row lost, by the metric's own sense of better.

    Args:
        metric: a name of `METRICS`.
        before: the original's answers, first axis rows.
        after: others, of the same shape.
        targets: what is right; None: the original's answers.
        meaning: of the answers.

    Raises:
        InputError: `bad_data`, the targets do not fit.
    """
    if metric == "accuracy":
        return _measure_accuracy(before, after, targets, meaning)
    if metric in FIDELITIES:
        fidelity = FIDELITIES[metric]
        rows = fidelity.compute(before, after)
        found = float(rows.max()) if metric == "max_difference" else float(rows.mean())
        losses = rows - fidelity.best if metric in _LOWER_IS_BETTER else fidelity.best - rows
        return Values(fidelity.best, found, losses)
    if metric in ("fidelity", "r2"):
        return measure_r2(before, after, targets)
    return _measure_errors(metric, before, after, targets)


def find_loss(metric: str, values: Values) -> float:
    """Say how much worse it got, by the metric's own sense of better."""
    sign = 1.0 if metric in _LOWER_IS_BETTER else -1.0
    return sign * (values.after - values.before) + 0.0  # No -0.0, which people would see.


def measure_blank(metric: str, before: Array, targets: Array | None, meaning: Meaning) -> float:
    """Say what a version would lose that gave all rows one answer: their mean, or that which most of them have.

    Infinity of answers that differ in shape from row to row, or are no numbers.
    """
    if is_uneven(before) or before.dtype.kind not in "fiu" or not before.size:
        return float("inf")
    blanks = [before.mean(axis=0, keepdims=True, dtype=np.float64).astype(before.dtype)]
    if meaning.kind in ("classes", "yes_no"):
        names = name_answers(before, meaning).reshape(len(before), -1)
        _, places, counts = np.unique(names, axis=0, return_index=True, return_counts=True)
        blanks.append(before[places[counts.argmax()]][None])
    answers = (np.broadcast_to(blank, before.shape) for blank in blanks)
    return min(find_loss(metric, measure(metric, before, blank, targets, meaning)) for blank in answers)


def name_answers(outputs: Array, meaning: Meaning) -> Array:
    """Give what outputs stand for: a class, yes or no, or themselves."""
    if meaning.kind == "classes" and outputs.ndim > 1:
        return np.asarray(outputs.argmax(axis=meaning.class_axis))
    return np.asarray(outputs > meaning.threshold) if meaning.kind == "yes_no" else outputs


def tell_right(before: Array, targets: Array, meaning: Meaning) -> Array:
    """Say of each row whether all of the original's answers to it are right."""
    is_right = np.asarray(name_answers(before, meaning) == _find_right(before, targets, meaning)).reshape(len(before), -1)
    return np.asarray(is_right.all(axis=1))


def _measure_accuracy(before: Array, after: Array, targets: Array | None, meaning: Meaning) -> Values:
    own, other = (name_answers(outputs, meaning) for outputs in (before, after))
    if is_uneven(before):
        kept = np.array([np.mean(old == new) if old.size else 1.0 for old, new in zip(before, after, strict=True)], np.float64)
        return Values(1.0, float(kept.mean()), 1.0 - kept)
    if targets is None:
        return _compare_rates(own, other, own)
    right = _find_right(before, targets, meaning)
    if right.shape != own.shape:
        raise InputError("bad_data", detail=f"the targets have shape {right.shape}, the model's answers to them {own.shape}")
    return _compare_rates(own, other, right)


def _find_right(before: Array, targets: Array, meaning: Meaning) -> Array:
    """Bring targets into the form of answers."""
    if meaning.kind == "yes_no":
        return np.asarray(prepare_targets("mse", targets, before.shape) > 0.5)
    if meaning.kind == "classes" and targets.shape == before.shape:
        return name_answers(targets, meaning)  # One column a class.
    if meaning.kind == "classes" and before.ndim == 2:
        return prepare_targets("cross_entropy", targets, before.shape)
    return targets


def _compare_rates(own: Array, other: Array, right: Array) -> Values:
    old, new = (np.asarray(answers == right, np.float64).reshape(len(right), -1).mean(axis=1) for answers in (own, other))
    return Values(float(old.mean()), float(new.mean()), old - new)


def _measure_errors(metric: str, before: Array, after: Array, targets: Array | None) -> Values:
    """Give mean absolute or squared errors."""
    right = before.astype(np.float64) if targets is None else prepare_targets("mse", targets, before.shape)
    error: Callable[[Array], Array] = np.abs if metric == "mae" else np.square
    old, new = (error(outputs.astype(np.float64) - right).reshape(len(right), -1).mean(axis=1) for outputs in (before, after))
    return Values(float(old.mean()), float(new.mean()), new - old)
