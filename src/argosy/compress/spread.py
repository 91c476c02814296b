"""R2 of values: each entry of each axis by its own spread, and the one that fell most."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.compress.fidelity import is_distribution
from argosy.train.losses import prepare_targets

__all__ = ["LEAST_OF_ALL", "Values", "find_least_spread", "is_uneven", "list_tables", "measure_r2", "tell_chances"]

Array = NDArray[Any]

_CONSTANT: Final = 1e-10
"""Variance beside the mean square, below which values count as one value: rounding of float32 gives 1e-14."""
_LEAST_SPREAD: Final = 0.01
"""Beside the mean of an axis' entries that have one unit, such as the scores of classes: one that hardly moves is not looked at
by itself."""
_LEAST_OWN: Final = 1e-4
"""Beside the mean square of an entry that has a unit of its own, such as the scores of a detector, whose boxes are in pixels."""
LEAST_OF_ALL: Final = 1e-12
"""Beside the mean square of all numbers: what is smaller is rounding."""
_LEAST_CHANCE: Final = 1.0 / 255.0
"""Of what lies between 0 and 1: a step of 8 bits."""


class Values(NamedTuple):
    """A metric before and after, and how much each row lost."""

    before: float
    after: float
    losses: Array


def is_uneven(outputs: Array) -> bool:
    """Say whether answers differ in shape from row to row."""
    return outputs.dtype.kind == "O" and outputs.ndim == 1 and len(outputs) > 0 and isinstance(outputs[0], np.ndarray)


def list_tables(outputs: Array) -> Iterator[tuple[int, Array]]:
    """Give numbers as tables: axis 0 with all of them in one column, then each other axis with a column for each of its entries.

    Of answers that differ in shape from row to row, the axes that are as long in each.
    """
    if not is_uneven(outputs):
        yield 0, _list_columns(outputs, None)
        yield from ((axis, _list_columns(outputs, axis)) for axis in range(1, outputs.ndim) if outputs.shape[axis] > 1)
        return
    for axis in (None, *_find_common_axes(outputs)):
        yield 0 if axis is None else axis + 1, np.concatenate([_list_columns(row, axis) for row in outputs])


def find_least_spread(scales: Array, squares: Array, are_chances: Array, *, has_one_unit: bool) -> Array:
    """Say above what variance an entry of an axis is looked at by itself: below it is rounding, beside the entry or the others.

    What has one unit is held against the mean of all. Else it is enough to be wide beside one's own size, or beside the others:
    vectors around one direction are far from 0 in every column, and all that they say is in how little they differ.

    Args:
        scales: variance of each entry.
        squares: its mean square.
        are_chances: whether it lies between 0 and 1, see `tell_chances`.
        has_one_unit: all entries have the same.
    """
    rounding, of_mean = LEAST_OF_ALL * squares.mean(), _LEAST_SPREAD * scales.mean()
    if has_one_unit:
        return np.full(len(scales), max(of_mean, rounding))
    least = np.minimum(_LEAST_OWN * squares, of_mean)
    return np.maximum(np.where(are_chances, np.maximum(least, _LEAST_CHANCE**2), least), rounding)


def tell_chances(columns: Array) -> Array:
    """Say of columns whether they lie between 0 and 1 and come near one of these: chances, most of which may be hardly any."""
    low, high = columns.min(axis=0), columns.max(axis=0)
    return np.asarray((low >= 0.0) & (high <= 1.0) & ((low < _LEAST_CHANCE) | (high > 1.0 - _LEAST_CHANCE)))


def measure_r2(before: Array, after: Array, targets: Array | None) -> Values:
    """Give R2 before and after, of the entry of an axis that fell most."""
    if is_uneven(before):
        return _measure_uneven(before, after)
    right = before if targets is None else prepare_targets("mse", targets, before.shape)
    old, new, right = (np.asarray(outputs, np.float64) for outputs in (before, after, right))
    axes = [None] if before.ndim == 1 or is_distribution(before) else list(range(1, before.ndim))
    found = [_find_worst_r2(old, new, right, axis) for axis in axes]
    return max(found, key=lambda values: math.inf if math.isnan(values.after) else values.before - values.after)


def _find_worst_r2(old: Array, new: Array, right: Array, axis: int | None) -> Values:
    """Give R2 before and after of the entry of an axis that fell most; of all numbers together for none."""
    others = tuple(other for other in range(right.ndim) if other != axis)
    whole = float(np.mean(np.square(right)))
    mean_square: Array = np.mean(np.square(right), axis=others)
    scale: Array = np.var(right, axis=others)
    # One value, such as padding, has no spread: its size stands for it; for that of zeros the size of all.
    scale = np.where(scale > _CONSTANT * mean_square, scale, mean_square)
    scale = np.where(scale > 0, scale, whole if whole > 0 else 1.0)
    scores = [np.ravel(1 - np.mean(np.square(outputs - right), axis=others) / scale) for outputs in (old, new)]
    falls = scores[0] - scores[1]
    place = int(np.argmax(np.where(np.isnan(falls), np.inf, falls)))
    if axis is not None:
        old, new, right = (np.take(outputs, place, axis) for outputs in (old, new, right))
    squares = [np.square(outputs - right).reshape(len(right), -1).mean(axis=1) for outputs in (old, new)]
    return Values(float(scores[0][place]), float(scores[1][place]), (squares[1] - squares[0]) / np.ravel(scale)[place])


def _measure_uneven(before: Array, after: Array) -> Values:
    """Give the fidelity of answers whose shapes differ from row to row: of all numbers together, and of each column."""
    axes = [None] if all(is_distribution(row) for row in before) else [None, *_find_common_axes(before)]
    found = [_find_worst_entry(before, after, axis) for axis in axes]
    return max(found, key=lambda values: math.inf if math.isnan(values.after) else -values.after)


def _find_common_axes(rows: Array) -> list[int]:
    """Find the axes that are as long in each row: columns of a table, whose entries have a spread of their own."""
    shapes = list(zip(*(row.shape for row in rows), strict=False)) if len({row.ndim for row in rows}) == 1 else []
    return [axis for axis, lengths in enumerate(shapes) if len(set(lengths)) == 1 and lengths[0] > 1]


def _find_worst_entry(before: Array, after: Array, axis: int | None) -> Values:
    """Give the fidelity of the entry of a common axis that fell most; of all numbers together for none."""
    old, new = ([_list_columns(row, axis) for row in rows] for rows in (before, after))
    everything = np.concatenate(old)
    scale: Array = everything.var(axis=0)
    mean_square: Array = np.mean(np.square(everything), axis=0)
    scale = np.where(scale > _CONSTANT * mean_square, scale, mean_square)
    whole = float(mean_square.mean())
    scale = np.where(scale > 0, scale, whole if whole > 0 else 1.0)
    squares = np.array([np.square(other - own).sum(axis=0) for own, other in zip(old, new, strict=True)])
    losses = squares * len(squares) / max(1, len(everything)) / scale
    means = losses.mean(axis=0)
    worst = losses[:, int(np.argmax(np.where(np.isnan(means), np.inf, means)))]
    return Values(1.0, 1.0 - float(worst.mean()), worst)


def _list_columns(row: Array, axis: int | None) -> Array:
    """Give a row's numbers as a table with a column for each entry of an axis."""
    wide = np.asarray(row, np.float64)
    return wide.reshape(-1, 1) if axis is None else np.moveaxis(wide, axis, -1).reshape(-1, wide.shape[axis])
