"""Columns of Arrow as NumPy arrays, beside a mark for each row that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import BadRow, Chunk, Column, make_zeros

__all__ = ["convert_batch", "is_string", "is_taken", "make_chunk", "mark_infinite"]

Marked = tuple[NDArray[Any], NDArray[np.bool_], str]
"""The array, which rows of it are bad, and what they are then."""


def is_taken(kind: Any, pa: Any) -> bool:
    """Tell whether a type of Arrow's has numbers, strings, bytes or lists of numbers."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_taken(kind.value_type, pa)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = kind.value_type.value_type if types.is_dictionary(kind.value_type) else kind.value_type
        return is_taken(inner, pa) and not is_string(inner, pa)
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or is_string(kind, pa)


def is_string(kind: Any, pa: Any) -> bool:
    """Tell whether a type of Arrow's has strings or bytes."""
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    )


def convert_batch(batch: Any, columns: Mapping[str, Column], first: int, pa: Any) -> Chunk:
    """Make arrays of a record batch or table.

    Args:
        batch: of pyarrow; its columns are those that are wanted.
        columns: what is known of them.
        first: where its first row stands in the block.
        pa: the module pyarrow.
    """
    marked: dict[str, Marked] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        known = columns.get(name)
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(whole, pa.ChunkedArray):  # of no chunks at all
            whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
        marked[name] = _convert(whole, known.shape if known else None, pa)
    return make_chunk(marked, batch.num_rows, first)


def make_chunk(marked: Mapping[str, Marked], num_rows: int, first: int) -> Chunk:
    """Leave out the rows that are bad in any column."""
    bad = np.zeros(num_rows, bool)
    for _, marks, _ in marked.values():
        bad |= marks
    rows = np.arange(first, first + num_rows)
    if not bad.any():
        return Chunk({name: array for name, (array, _, _) in marked.items()}, rows)
    details: list[BadRow] = []
    for row in np.flatnonzero(bad).tolist():
        details.append(BadRow(first + row, "; ".join(f"{n} {what}" for n, (_, marks, what) in marked.items() if marks[row])))
    kept = ~bad
    return Chunk({name: array[kept] for name, (array, _, _) in marked.items()}, rows[kept], details)


def _convert(array: Any, shape: Sequence[int] | None, pa: Any) -> Marked:
    kind = array.type
    if pa.types.is_dictionary(kind) and is_string(kind.value_type, pa):
        return _convert_words(array)
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _convert_lists(array, shape, pa)
    marks = _mark_nulls(array)
    has_nulls = bool(marks.any())
    if is_string(kind, pa):
        return array.to_numpy(zero_copy_only=False), marks, "is null"
    if has_nulls:
        array = array.fill_null(False if pa.types.is_boolean(kind) else 0)
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f":
        infinite = mark_infinite(values)
        if infinite is not None:
            return values, marks | infinite, "is null, NaN or infinite"
    return values, marks, "is null"


def _convert_words(array: Any) -> Marked:
    """Strings of a dictionary, each of which is made once, however many rows have it."""
    words: NDArray[Any] = array.dictionary.to_numpy(zero_copy_only=False)
    marks = _mark_nulls(array)
    if not len(words):
        return np.full(len(array), None, object), marks, "is null"
    places: NDArray[np.int64] = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
    nulls = np.array([word is None for word in words.tolist()], bool)
    return words[places], marks | nulls[places], "is null"


def mark_infinite(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Mark the rows that hold NaN or an infinite number; None if no row does."""
    if values.dtype.kind != "f" or not values.size:
        return None
    # A sum shows both, and costs a fifth of looking at each; where it overflows, each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):
            return None
    good: NDArray[Any] = np.isfinite(values).reshape(len(values), -1)
    infinite: NDArray[np.bool_] = np.logical_not(good.all(axis=1))
    return infinite if infinite.any() else None


def _mark_nulls(array: Any) -> NDArray[np.bool_]:
    if not array.null_count:
        return np.zeros(len(array), bool)
    return array.is_null().to_numpy(zero_copy_only=False)


def _convert_lists(array: Any, shape: Sequence[int] | None, pa: Any) -> Marked:
    """Lists of one length become a matrix; a row with another length is bad."""
    marks, num_rows = _mark_nulls(array), len(array)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
    else:
        lengths = np.diff(array.offsets.to_numpy())
        good = np.flatnonzero(~marks)
        width = shape[0] if shape else int(lengths[good[0]]) if len(good) else 0
        marks |= lengths != width
    kept = array.filter(pa.array(~marks)) if marks.any() else array
    # `flatten` heeds where a slice begins, and leaves nothing out here: no list of these is null.
    inner, inner_marks, what = _convert(kept.flatten(), shape[1:] if shape else None, pa)
    values = inner.reshape(len(kept), width, *inner.shape[1:])
    by_row: Any = inner_marks.reshape(len(kept), width)
    wrong: NDArray[np.bool_] = by_row.any(axis=1)
    if len(kept) == num_rows:
        return values, wrong, f"holds a value that {what}"
    whole = make_zeros((num_rows, *values.shape[1:]), values.dtype)
    whole[~marks] = values
    marks[~marks] = wrong
    return whole, marks, f"is no list of {width} numbers, each neither null nor NaN"
