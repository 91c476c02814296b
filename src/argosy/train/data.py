"""Rows and targets of the user's that are in memory: checked, split and shuffled."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Batch
from argosy.frameworks.trees import count_rows, is_named, is_ordered, list_leaves, map_tree
from argosy.train.elements import Columns, check_weights, make_array, read_element, to_arrays

__all__ = ["check_dataset", "check_rows", "count_taken", "iterate_batches", "split_rows"]


def check_rows(x: object, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Check the rows that a model is to take.

    Args:
        x: anything that NumPy makes an array of.
        dtype: in which the model takes numbers with a fraction.

    Returns:
        The array; floats in `dtype`, other types as they are.

    Raises:
        InputError: `bad_data`, no rows, no numbers, or a NaN or infinity.
    """
    rows = make_array(x, "x")
    if rows.ndim == 0 or len(rows) == 0 or rows.size == 0:
        raise InputError("bad_data", detail=f"x has shape {rows.shape}, expected at least one row")
    if rows.dtype.kind not in "fiub":
        raise InputError("bad_data", detail=f"x has type {rows.dtype}, expected numbers")
    if rows.dtype.kind != "f":
        return rows.astype(rows.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # What overflows is infinite, and found below.
        rows = rows.astype(dtype, copy=False)
    if not np.isfinite(rows).all():
        where = np.argwhere(~np.isfinite(rows))
        detail = f"x holds {len(where)} values that are NaN, infinite or beyond {rows.dtype}, the first in row {where[0][0]}"
        raise InputError("bad_data", detail=detail)
    return rows


def check_dataset(data: object, dtype: DTypeLike = np.float32, *, columns: Columns | None = None) -> Batch:
    """Check data that is in memory: see `elements`; targets are checked further by the loss.

    Raises:
        InputError: `bad_data`, another form, x as `check_rows` says, y has not one entry a row, bad weights.
    """
    columns = columns or Columns()
    if not (is_named(data) or (is_ordered(data) and 1 < len(data) <= 3)):
        expected = "a pair of arrays (x, y), with weights (x, y, w), a dict by column, or a loader of a framework"
        raise InputError("bad_data", detail=f"data is a {type(data).__qualname__}, expected {expected}")
    inputs, targets, weights = read_element(data, columns, source="data")
    x = map_tree(lambda leaf: check_rows(leaf, dtype), to_arrays(inputs, "x", is_given=True))
    num_rows = count_rows(x)
    y = None if targets is None else to_arrays(targets, "y", is_given=True)
    for leaf in list_leaves(y) if y is not None else ():
        if leaf.ndim == 0 or len(leaf) != num_rows:
            raise InputError("bad_data", detail=f"x has {num_rows} rows, y has shape {leaf.shape}, expected one target a row")
        if leaf.dtype.kind not in "fiubUOS":
            raise InputError("bad_data", detail=f"y has type {leaf.dtype}, expected numbers, or names of classes")
    w = None if weights is None else check_weights(to_arrays(weights, "weights", is_given=True), num_rows, np.dtype(dtype))
    return Batch(x, y, w)


def count_taken(num_rows: int, fraction: float) -> int:
    """Give how many rows `split_rows` takes away."""
    return min(max(round(num_rows * fraction), 1), num_rows - 1) if fraction else 0


def split_rows(data: Batch, fraction: float, seed: int) -> tuple[Batch, Batch]:
    """Take a random part of the rows away, for validation.

    Args:
        data: at least two rows.
        fraction: of the rows to take, above 0 and below 1; at least one row is taken and one left.
        seed: the same one takes the same rows.

    Raises:
        InputError: `bad_data`, fewer than two rows.
    """
    num_rows = data.num_rows
    if num_rows < 2:
        raise InputError("bad_data", detail=f"{num_rows} row cannot be split for validation")
    num_taken = count_taken(num_rows, fraction)
    order = np.random.default_rng(seed).permutation(num_rows)
    taken, kept = np.sort(order[:num_taken]), np.sort(order[num_taken:])
    return data.take(kept), data.take(taken)


def iterate_batches(num_rows: int, batch_size: int, *, shuffle: bool, seed: int, epoch: int) -> Generator[NDArray[np.int64]]:
    """Give the row numbers of each mini-batch of an epoch; every row once, the last batch may be short.

    The order follows from seed and epoch alone, not from the epochs before, so that a run can be resumed.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_rows) if shuffle else np.arange(num_rows)
    for start in range(0, num_rows, batch_size):
        yield order[start : start + batch_size]
