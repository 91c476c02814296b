"""Rows of a table to tensors: numbers scaled, categories numbered, side by side.

An element is a row as text: a line of CSV, its fields in the order of the columns; or a JSON object by their names, which begins
with a brace. Training makes its tensors of whole columns by `RowStep.encode`, which is what `convert` ends in: a row that is sent
to the server is what it was in training, to the last bit.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import BadInput
from argosy.runtimes.preprocess import BadStep, Made

__all__ = ["STEP", "RowStep"]

MAX_BYTES: Final = 16 << 20
"""Of the rows of a batch."""
_OPTIONS: Final = frozenset(("columns", "delimiter"))
_KEYS: Final = {"number": {"mean", "std"}, "category": {"values", "one_hot", "whole"}}
_DTYPES: Final = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
_FAR: Final = 1 << 63


class _Column(NamedTuple):
    name: str
    kind: str
    mean: float
    std: float
    places: dict[str | int, int]
    """Of the known values of a category: from 1 on. 0 is that of all others."""
    one_hot: bool
    whole: bool
    """The values of the category are whole numbers."""

    @property
    def width(self) -> int:
        return len(self.places) + 1 if self.one_hot else 1


class RowStep:
    """How a row of a table becomes tensors.

    Options:
        columns: a list of tables, one for each field of a row. `name`; `kind`: `number`, which becomes (number - `mean`) / `std`
            (by default 0 and 1), or `category`, which becomes the place of its value among `values`, counted from 1, and 0 for
            all others; with `one_hot` as many numbers as there are places, all 0 but that of the place. With `whole`, values
            are whole numbers. `input`: the tensor that the column goes to, of which there may be several; columns of one tensor
            stand side by side in their order.
        delimiter: between the fields of a line; by default a comma.
    """

    def __init__(self, inputs: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], folder: Path) -> None:
        if unknown := options.keys() - _OPTIONS:
            raise BadStep(f"unknown options {', '.join(sorted(unknown))}; known: {', '.join(sorted(_OPTIONS))}")
        self._delimiter: Any = options.get("delimiter", ",")
        if not isinstance(self._delimiter, str) or len(self._delimiter) != 1 or self._delimiter in '"\r\n{':
            raise BadStep(f"option delimiter is {self._delimiter!r}, expected one character")
        given: Any = options.get("columns")
        if not isinstance(given, list | tuple) or not given:
            raise BadStep("option columns is no list of columns")
        self._columns: dict[str, list[_Column]] = {name: [] for name in inputs}
        self._order: list[_Column] = []
        for item in cast("Sequence[Any]", given):
            column, target = _read_column(item, list(inputs))
            self._columns[target].append(column)
            self._order.append(column)
        self.names = [column.name for column in self._order]
        if len(set(self.names)) != len(self.names):
            raise BadStep(f"two columns have one name: {', '.join(self.names)}")
        self._specs = {name: self._check_tensor(name, spec) for name, spec in inputs.items()}

    def _check_tensor(self, name: str, spec: Mapping[str, Any]) -> tuple[np.dtype[Any], int]:
        """Give the type and the number of axes of a tensor."""
        if spec["datatype"] not in _DTYPES:
            raise BadStep(f"tensor {name!r} is {spec['datatype']}, expected {', '.join(_DTYPES)}")
        dtype, shape = np.dtype(_DTYPES[spec["datatype"]]), list(spec["shape"])
        width = sum(column.width for column in self._columns[name])
        if dtype.kind == "i" and (scaled := next((c.name for c in self._columns[name] if c.kind == "number"), None)) is not None:
            raise BadStep(f"tensor {name!r} holds whole numbers, and column {scaled!r} is scaled: it has a fraction")
        if not width or (shape[1:] not in ([width], [-1]) and not (width == 1 and len(shape) == 1)):
            raise BadStep(f"tensor {name!r} has shape {tuple(shape)}, and its columns make {width} numbers a row")
        return dtype, len(shape)

    def convert(self, name: str, rows: Sequence[bytes]) -> Made:
        """Read rows, and make their tensors.

        Raises:
            BadInput: a row is no text in UTF-8, has other columns, or what is no number in one of numbers.
        """
        if (size_bytes := sum(map(len, rows))) > MAX_BYTES:
            raise BadInput(
                f"input {name!r} has {size_bytes} bytes in all, at most {MAX_BYTES} are taken: send fewer rows a request"
            )
        found = [self._read(f"row {place} of input {name!r}", row) for place, row in enumerate(rows)]
        columns = {column.name: _gather(column, [row[place] for row in found]) for place, column in enumerate(self._order)}
        return Made({tensor: list(array) for tensor, array in self.encode(columns).items()}, [])

    def encode(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Make tensors of columns, which have one entry a row: numbers, or objects that are strings.

        Raises:
            BadInput: a number is so far from the others that it is infinite in the tensor's type.
        """
        made: dict[str, NDArray[Any]] = {}
        for tensor, own in self._columns.items():
            dtype, num_axes = self._specs[tensor]
            num_rows = len(columns[own[0].name]) if own else 0
            array = np.zeros((num_rows, sum(column.width for column in own)), dtype)
            start = 0
            for column in own:
                _fill(array[:, start : start + column.width], column, columns[column.name])
                start += column.width
            made[tensor] = array[:, 0] if num_axes == 1 else array
        return made

    def make_sample(self) -> bytes:
        """Give a row that can be read."""
        return json.dumps({c.name: "" if c.kind == "category" and not c.whole else 0 for c in self._order}).encode()

    def _read(self, what: str, row: bytes) -> list[Any]:
        try:
            text = row.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{what} is no text in UTF-8") from error
        fields = self._read_object(what, text) if text.lstrip().startswith("{") else self._read_line(what, text)
        return [_read_field(what, column, field) for column, field in zip(self._order, fields, strict=True)]

    def _read_object(self, what: str, text: str) -> list[Any]:
        try:
            found: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{what} begins as a JSON object and is none: {str(error)[:200]}") from error
        if found.keys() != set(self.names):
            raise BadInput(f"{what} has the columns {_show(found)}, expected {_show(self.names)}")
        return [found[name] for name in self.names]

    def _read_line(self, what: str, text: str) -> list[Any]:
        try:
            lines = list(csv.reader([text], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise BadInput(f"{what} is no line of CSV: {error}") from error
        fields = lines[0] if len(lines) == 1 else []
        if len(fields) != len(self._order):
            raise BadInput(f"{what} has {len(fields)} fields, expected {len(self._order)}: {_show(self.names)}")
        return fields


def _show(names: Any) -> str:
    return ", ".join(map(str, names))[:300]


def _read_column(item: Any, inputs: list[str]) -> tuple[_Column, str]:
    """Read what is said of a column; give the tensor that it goes to as well."""
    if not isinstance(item, Mapping):
        raise BadStep(f"column {item!r:.100} is no table with name and kind")
    table = cast("Mapping[str, Any]", item)
    name, kind, target = table.get("name"), table.get("kind"), table.get("input", inputs[0] if len(inputs) == 1 else None)
    if not isinstance(name, str) or not isinstance(kind, str) or kind not in _KEYS:
        raise BadStep(f"column {name!r} has kind {kind!r}, expected a name, and one of {', '.join(_KEYS)}")
    if target not in inputs:
        raise BadStep(f"column {name!r} goes to tensor {target!r}, expected one of {', '.join(inputs)}")
    if unknown := table.keys() - _KEYS[kind] - {"name", "kind", "input"}:
        raise BadStep(f"column {name!r} has unknown options: {', '.join(sorted(unknown))}")
    mean, std = (_read_number(name, table, key, value) for key, value in (("mean", 0.0), ("std", 1.0)))
    if not std > 0:
        raise BadStep(f"column {name!r} has std {std}, expected a number above 0")
    given: Any = table.get("values", [])
    values = cast("list[Any]", given) if isinstance(given, list | tuple) else [given]
    whole, one_hot = table.get("whole", False), table.get("one_hot", False)
    if not isinstance(whole, bool) or not isinstance(one_hot, bool):
        raise BadStep(f"column {name!r} has one_hot or whole, which are no yes or no")
    if {type(value) for value in values} - {int if whole else str} or (kind == "category" and not values):
        raise BadStep(f"column {name!r} has values {values!r:.100}, expected a list of {'whole numbers' if whole else 'strings'}")
    places = {value: place for place, value in enumerate(values, 1)}
    if len(places) != len(values):
        raise BadStep(f"column {name!r} has a value twice")
    return _Column(name, kind, mean, std, places, one_hot, whole), str(target)


def _read_number(name: str, table: Mapping[str, Any], key: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadStep(f"column {name!r} has {key} {value!r}, expected a number")
    return float(value)


def _read_field(what: str, column: _Column, field: Any) -> Any:
    """Give the value of a field: a number, a whole number or a string, as its column has them."""
    wanted = "a string" if column.kind == "category" and not column.whole else "a whole number" if column.whole else "a number"
    value: Any = field
    try:
        if isinstance(field, str) and wanted != "a string":
            if "_" in field:  # which Python takes, and no other reader of text
                raise ValueError
            value = int(field) if column.whole else float(field)
    except (ValueError, OverflowError):
        value = None
    allowed = {"a string": (str,), "a whole number": (int,), "a number": (int, float)}[wanted]
    is_right = isinstance(value, allowed) and not isinstance(value, bool)
    if is_right and not isinstance(value, str):
        is_right = -_FAR <= value < _FAR if column.whole else abs(value) <= np.finfo(np.float64).max
    if not is_right:
        raise BadInput(f"{what} has {str(field)[:100]!r} in column {column.name!r}, expected {wanted}")
    return value


def _gather(column: _Column, values: list[Any]) -> NDArray[Any]:
    if column.kind == "number":
        return np.array(values, np.float64)
    if column.whole:
        return np.array(values, np.int64)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _fill(target: NDArray[Any], column: _Column, values: NDArray[Any]) -> None:
    if column.kind == "number":
        with np.errstate(over="ignore"):
            target[:, 0] = (values.astype(np.float64) - column.mean) / column.std
        if not np.isfinite(target[:, 0]).all():
            row = int(np.flatnonzero(~np.isfinite(target[:, 0]))[0])
            raise BadInput(f"{values[row]} in column {column.name!r} is too large for the tensor's type")
        return
    places = np.array([column.places.get(value, 0) for value in values.tolist()], np.int64)
    if column.one_hot:
        target[np.arange(len(places)), places] = 1
    else:
        target[:, 0] = places


STEP: Final = RowStep
