"""JSON lines: an object a line, typed by the beginning of the files or by the schema that is given."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from argosy.data.arrow import make_chunk, mark_infinite
from argosy.data.block import BadRow, Block, Chunk, Column, Location, make_zeros
from argosy.data.csv import choose_type, widen_type
from argosy.data.files import File
from argosy.data.lines import Lines, find_first_line, list_ranges, read_head, read_lines
from argosy.data.schema import check_same_schema
from argosy.errors import InputError

__all__ = ["JsonLinesReader"]

_BLOCK_BYTES: Final = 1 << 20
"""Objects of Python's take ten times the bytes of their text."""
_HEAD_BYTES: Final = 256 << 10
_HEAD_LINES: Final = 200


class JsonLinesReader:
    """Reads files of JSON objects, one a line."""

    def __init__(self, files: Sequence[File], options: Mapping[str, Any]) -> None:
        self.files = files
        self._types: dict[str, str] = dict(options.get("schema") or {})
        self._starts: list[int] = []

    def read_schema(self) -> dict[str, str]:
        schema: dict[str, str] = {}
        for file in self.files:
            data, start = read_head(file, _HEAD_BYTES)
            self._starts.append(start)
            found = self._guess_types(file, Lines(data).lines[:_HEAD_LINES])
            schema = schema or found
            schema |= {name: widen_type(schema[name], kind) for name, kind in found.items() if name in schema}
            widened = {name: widen_type(kind, schema.get(name, kind)) for name, kind in found.items()}
            check_same_schema(schema, widened, self.files[0], file)
        if unknown := self._types.keys() - schema.keys():
            raise InputError("bad_option", option="schema", got=", ".join(unknown), expected=f"names of columns: {list(schema)}")
        self._types = {name: "string" if kind == "null" else kind for name, kind in schema.items()}
        return self._types

    def _guess_types(self, file: File, lines: Sequence[bytes]) -> dict[str, str]:
        kinds: dict[str, list[str]] = {}
        for line in lines:
            found = _parse(line)
            if not isinstance(found, str):
                for name, value in found.items():
                    kinds.setdefault(name, []).append(_name_type(value))
        if not kinds:
            raise InputError("bad_file", path=repr(str(file.path)), detail="none of its first lines is a JSON object")
        return {name: self._types.get(name) or choose_type(found) for name, found in kinds.items()}

    def list_blocks(self) -> Sequence[Block]:
        return list(
            itertools.chain.from_iterable(
                list_ranges(number, file, self._starts[number], _BLOCK_BYTES) for number, file in enumerate(self.files)
            )
        )

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        found = Lines(read_lines(self.files[block.file], block, self._starts[block.file]))
        bad: list[BadRow] = []
        places: list[int] = []
        values: dict[str, list[Any]] = {name: [] for name in names}
        for place, line in zip(found.places, found.lines, strict=True):
            row = _parse(line)
            detail = row if isinstance(row, str) else next((f"{name} is not there" for name in names if name not in row), None)
            if detail is not None or isinstance(row, str):
                bad.append(BadRow(place, detail or ""))
                continue
            places.append(place)
            for name in names:
                values[name].append(row[name])
        marked = {name: _convert(values[name], self._types[name], columns.get(name)) for name in names}
        chunk = make_chunk(marked, len(places), 0)
        rows = np.array(places, np.int64)
        bad += [BadRow(places[row], detail) for row, detail in chunk.bad]
        yield Chunk(chunk.columns, rows[chunk.rows], sorted(bad))

    def locate(self, block: Block, row: int) -> Location:
        file = self.files[block.file]
        return Location(file.path, "line", find_first_line(file, block, self._starts[block.file]) + row)


def _parse(line: bytes) -> dict[str, Any] | str:
    """Give an object, or what is wrong."""
    try:
        found: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"no JSON: {error}"[:200]
    return cast("dict[str, Any]", found) if isinstance(found, dict) else "no JSON object"


def _name_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    kind = cast("type[object]", type(value))
    kinds: dict[type, str] = {int: "int64", float: "double", str: "string", type(None): "null"}
    if isinstance(value, list):
        items = cast("list[Any]", value)
        inner = choose_type([_name_type(item) for item in items[:100]])
        return f"list<{'double' if inner in ('int64', 'null') else inner}>"
    return kinds.get(kind, f"{kind.__name__} (not taken)")


def _convert(values: list[Any], kind: str, column: Column | None) -> tuple[NDArray[Any], NDArray[np.bool_], str]:
    what = f"is no {kind}"
    if kind == "string":
        marks = np.array([not isinstance(value, str) for value in values], bool)
        array = np.empty(len(values), object)
        array[:] = values
        return array, marks, what
    if kind.startswith("list<"):
        return _convert_lists(values, column, what)
    dtype = {"double": "float64", "float": "float32"}.get(kind, kind)
    allowed: tuple[type, ...] = {"f": (float, int), "b": (bool,)}.get(np.dtype(dtype).kind, (int,))
    marks = np.array([type(value) not in allowed for value in values], bool)
    array, far = _fill([0 if is_bad else value for value, is_bad in zip(values, marks.tolist(), strict=True)], np.dtype(dtype))
    return array, marks | far, f"{what} that is finite"


def _fill(values: list[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Give numbers as an array, and which of them its type has not."""
    limit = float(np.finfo(dtype).max) if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind in "iu" else 1
    least = np.iinfo(dtype).min if dtype.kind in "iu" else -limit
    # Compared as Python does, whatever the number of digits.
    far = np.array([not least <= value <= limit for value in values], bool)
    return np.array([0 if is_far else value for value, is_far in zip(values, far.tolist(), strict=True)], dtype), far


def _convert_lists(values: list[Any], column: Column | None, what: str) -> tuple[NDArray[Any], NDArray[np.bool_], str]:
    """Lists of one shape become a matrix."""
    shape = column.shape if column else next((shape for value in values if (shape := _measure(value))), (0,))
    array, marks = make_zeros((len(values), *shape), np.dtype(np.float64)), np.zeros(len(values), bool)
    try:
        whole = np.array(values)
    except ValueError:
        whole = None
    if whole is not None and whole.dtype.kind in "fiu" and whole.shape == array.shape:
        array = whole.astype(np.float64)
    else:
        for row, value in enumerate(values):
            if _measure(value) == shape:
                array[row] = value
            else:
                marks[row] = True
    infinite = mark_infinite(array)
    marks = marks if infinite is None else marks | infinite
    return array, marks, f"{what} of shape {list(shape)} that is finite"


def _measure(value: Any) -> tuple[int, ...] | None:
    """Give the shape of lists of numbers; None of what is none."""
    try:
        array = np.array(value)
    except ValueError:
        return None
    return array.shape if array.ndim and array.dtype.kind in "fiu" else None
