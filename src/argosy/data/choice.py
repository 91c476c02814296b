"""Which columns a row's inputs, targets and weights are, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import Column
from argosy.errors import InputError, list_choices

__all__ = ["Choice", "Rows"]

Columns = Any
"""A name; a list of names, whose columns are joined to one matrix; a tuple or dict of these."""


class Rows(NamedTuple):
    """Some rows. Arrays, tuples of arrays or dicts of arrays by name, the first axis of each being that of the rows."""

    inputs: Any
    targets: Any = None
    weights: NDArray[Any] | None = None

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        leaf: Any = self.inputs
        while not isinstance(leaf, np.ndarray):
            leaf = next(iter(cast("Mapping[str, Any]", leaf).values())) if isinstance(leaf, Mapping) else leaf[0]
        return len(cast("NDArray[Any]", leaf))


class Choice:
    """What is made of columns.

    Args:
        inputs: columns; None: all that are neither targets nor weights, by name if there are several.
        targets: columns, or None.
        weights: a column, or None.
        schema: all columns that there are, with their types.

    Raises:
        InputError: `bad_option`, a column is not there, or has a type that is not taken.
    """

    def __init__(self, inputs: Columns, targets: Columns, weights: str | None, schema: Mapping[str, str]) -> None:
        used = {*_list_names(targets, "targets"), *_list_names(weights, "weights")}
        if inputs is None:
            left = [name for name in schema if name not in used]
            inputs = left[0] if len(left) == 1 else {name: name for name in left}
        self.parts: tuple[Columns, Columns, Columns] = inputs, targets, weights
        named = ("inputs", inputs), ("targets", targets), ("weights", weights)
        for option, part in named:
            for name in _list_names(part, option):
                if name not in schema:
                    raise InputError("bad_option", option=option, got=name, expected=f"columns: {list_choices(schema)}")
                if schema[name].endswith("(not taken)"):
                    expected = f"columns of numbers, strings, bytes or lists of numbers; this is {schema[name]}"
                    raise InputError("bad_option", option=option, got=name, expected=expected)
        if not list(_list_names(inputs, "inputs")):
            raise InputError("bad_option", option="inputs", got=inputs, expected="at least one column")
        self.names: list[str] = list(dict.fromkeys(name for option, part in named for name in _list_names(part, option)))
        self._leaves: list[str | list[str]] = [leaf for part in self.parts if part is not None for leaf in _list_leaves(part)]

    def check(self, columns: Mapping[str, Column]) -> None:
        """Refuse columns that cannot be joined, and weights that are no numbers.

        Raises:
            InputError: `bad_option`.
        """
        for leaf in self._leaves:
            if isinstance(leaf, list):
                wrong = next((name for name in leaf if columns[name].dtype.kind == "O" or len(columns[name].shape) > 1), None)
                if wrong is not None:
                    expected = f"numbers, to be joined with others; this is {columns[wrong]}"
                    raise InputError("bad_option", option="inputs", got=wrong, expected=expected)
        weights = self.parts[2]
        if weights is not None and (columns[weights].dtype.kind == "O" or columns[weights].shape):
            raise InputError(
                "bad_option", option="weights", got=weights, expected=f"one number a row; this is {columns[weights]}"
            )

    def join(self, columns: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Give an array for each leaf, in their order."""
        return [columns[leaf] if isinstance(leaf, str) else _join([columns[name] for name in leaf]) for leaf in self._leaves]

    def build(self, arrays: Sequence[NDArray[Any]]) -> Rows:
        """Give the rows whose leaves these are."""
        left = iter(arrays)
        return Rows(*(None if part is None else _build(part, left) for part in self.parts))


def _list_leaves(part: Columns) -> Iterator[str | list[str]]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        yield cast("list[str]", part)
    else:
        items = cast("Mapping[str, Any]", part).values() if isinstance(part, Mapping) else cast("tuple[Any, ...]", part)
        for item in items:
            yield from _list_leaves(item)


def _list_names(part: Columns, option: str) -> Iterator[str]:
    if part is None:
        return
    if isinstance(part, str):
        yield part
        return
    if not isinstance(part, tuple | list | Mapping):
        expected = "a column's name, a list of names to join, or a tuple or dict of these"
        raise InputError("bad_option", option=option, got=type(part).__qualname__, expected=expected)
    items: Any = cast("Mapping[Any, Any]", part).values() if isinstance(part, Mapping) else cast("Any", part)
    for item in items:
        if item is None or (isinstance(part, list) and not isinstance(item, str)):
            raise InputError("bad_option", option=option, got=item, expected="names of columns")
        yield from _list_names(item, option)


def _join(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    widths = [column.shape[1] if column.ndim > 1 else 1 for column in columns]
    joined = np.empty((len(columns[0]), sum(widths)), np.result_type(*columns))
    place = 0
    for column, width in zip(columns, widths, strict=True):
        joined[:, place : place + width] = column.reshape(len(column), width)
        place += width
    return joined


def _build(part: Columns, left: Iterator[NDArray[Any]]) -> Any:
    if isinstance(part, str | list):
        return next(left)
    if isinstance(part, Mapping):
        return {name: _build(item, left) for name, item in cast("Mapping[str, Any]", part).items()}
    return tuple(_build(item, left) for item in cast("tuple[Any, ...]", part))
