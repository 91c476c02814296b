"""CSV: lines of fields, typed by the beginning of the files or by the schema that is given."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from argosy.data.arrow import convert_batch
from argosy.data.block import BadRow, Block, Chunk, Column, Location, load_module
from argosy.data.files import File
from argosy.data.lines import Lines, find_first_line, list_ranges, parse_lines, read_head, read_lines
from argosy.data.schema import check_names, check_same_schema
from argosy.errors import InputError

__all__ = ["CsvReader"]

_BLOCK_BYTES: Final = 2 << 20
_HEAD_BYTES: Final = 1 << 20
"""Of each file, by which types are found."""
_PIECES: Final = 64
"""Parts of a beginning, each of which has a type."""
_PIECE_LINES: Final = 16
_FEW_LINES: Final = 1000
_MAX_BAD: Final = 1000
"""Of one block, after which the rest of it is not looked through line by line."""
_WHOLE: Final = re.compile(r"u?int(8|16|32|64)")


class CsvReader:
    """Reads CSV. A row is a line: a quoted field cannot hold the end of one.

    Options:
        delimiter: between fields; by default a comma, in files `.tsv` a tab.
        header: the names of the columns, where the files have no line for them.
    """

    def __init__(self, files: Sequence[File], options: Mapping[str, Any]) -> None:
        self.files = files
        self._csv = load_module("pyarrow.csv", "Reading CSV")
        self._pa = load_module("pyarrow", "Reading CSV")
        self._delimiter: str = options.get("delimiter") or ("\t" if files[0].path.suffix.lower() == ".tsv" else ",")
        if len(self._delimiter) != 1 or not self._delimiter.isascii():
            raise InputError("bad_option", option="delimiter", got=self._delimiter, expected="one character of ASCII")
        self._given: list[str] | None = list(options["header"]) if options.get("header") is not None else None
        self._types: dict[str, str] = dict(options.get("schema") or {})
        self._max_bad = min(int(options.get("max_bad_rows", 0)), _MAX_BAD)
        self._starts: list[int] = []
        self._names: list[str] = []

    def read_schema(self) -> dict[str, str]:
        schema: dict[str, str] = {}
        for file in self.files:
            data, start = read_head(file, _HEAD_BYTES)
            names, head_bytes = (self._given, 0) if self._given is not None else self._read_names(file, data)
            self._starts.append(start + head_bytes)
            self._names = self._names or names
            self._check_names(file, names)
            found = self._guess_types(file, Lines(data[head_bytes:]).lines, schema)
            schema = schema or found
            schema |= {name: widen_type(schema[name], kind) for name, kind in found.items()}
            widened = {name: widen_type(kind, schema[name]) for name, kind in found.items()}
            check_same_schema(schema, widened, self.files[0], file)
        if unknown := self._types.keys() - schema.keys():
            raise InputError("bad_option", option="schema", got=", ".join(unknown), expected=f"names of columns: {list(schema)}")
        self._types = {name: "string" if kind == "null" else kind for name, kind in schema.items()}
        return self._types

    def _check_names(self, file: File, names: list[str]) -> None:
        """Columns in another order are another schema: lines are read by the first file's."""
        expected, found = ({name: f"column {place}" for place, name in enumerate(part)} for part in (self._names, names))
        check_same_schema(expected, found, self.files[0], file)

    def _read_names(self, file: File, data: bytes) -> tuple[list[str], int]:
        end = data.find(b"\n") + 1 or len(data)
        try:
            # Arrow takes a millisecond to begin, of which a hundred thousand files would make minutes.
            (names,) = csv.reader([data[:end].decode().rstrip("\r\n")], delimiter=self._delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            raise InputError("bad_file", path=repr(str(file.path)), detail=f"its first line is no CSV: {error}") from error
        if not names:
            raise InputError("bad_file", path=repr(str(file.path)), detail="its first line names no columns")
        check_names(names, file)
        return names, end

    def _parsing(self) -> Any:
        return self._csv.ParseOptions(delimiter=self._delimiter)

    def _guess_types(self, file: File, lines: Sequence[bytes], schema: Mapping[str, str]) -> dict[str, str]:
        """Take what most parts of the file's beginning are: a bad line must not make strings of numbers."""
        if not lines:
            raise InputError("bad_file", path=repr(str(file.path)), detail="it has no rows")
        if schema and len(lines) <= _FEW_LINES and self._guess_at_once(lines) == schema:
            return dict(schema)
        kinds: dict[str, list[str]] = {name: [] for name in self._names}
        step = max(1, len(lines) // _PIECES)
        for place in range(0, len(lines), step):
            try:
                part = self._parse(lines[place : place + min(step, _PIECE_LINES)], None)
            except ValueError:
                continue
            for field in part.schema:
                kinds[field.name].append(_name_type(str(field.type)))
        return {name: self._types.get(name) or choose_type(found) for name, found in kinds.items()}

    def _guess_at_once(self, lines: Sequence[bytes]) -> dict[str, str]:
        """Give the types of a few lines, as most files have no bad ones; none if they cannot be read."""
        try:
            part = self._parse(lines, None)
        except ValueError:
            return {}
        return {field.name: self._types.get(field.name) or _name_type(str(field.type)) for field in part.schema}

    def _parse(self, lines: Sequence[bytes], names: Sequence[str] | None) -> Any:
        data = b"\n".join(lines) + b"\n"
        converting: dict[str, Any] = {"strings_can_be_null": False}
        if names is not None:
            types = {name: getattr(self._pa, _alias(self._types[name]))() for name in names}
            converting |= {"column_types": types, "include_columns": list(names)}
        table = self._csv.read_csv(
            self._pa.BufferReader(data),
            read_options=self._csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(data) + 1),
            parse_options=self._parsing(),
            convert_options=self._csv.ConvertOptions(**converting),
        )
        if table.num_rows != len(lines):
            # A quote that is not closed takes the lines behind it for its own.
            raise ValueError("a quote is not closed")
        return table

    def _explain(self, line: bytes) -> str | None:
        return "a quote is not closed on its line" if line.count(b'"') % 2 else None

    def list_blocks(self) -> Sequence[Block]:
        blocks: list[Block] = []
        for number, file in enumerate(self.files):
            blocks += list_ranges(number, file, self._starts[number], _BLOCK_BYTES)
        return blocks

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        found = Lines(read_lines(self.files[block.file], block, self._starts[block.file]))
        places = np.array(found.places, np.int64)
        if not len(places):
            return
        chunks: list[Chunk] = []
        for start, part in parse_lines(found.lines, lambda part: self._parse(part, names), self._explain, self._max_bad):
            if isinstance(part, BadRow):
                empty = np.zeros(0, np.int64)
                chunks.append(Chunk({}, empty, [BadRow(int(places[start]), part.detail)]))
                continue
            chunk = convert_batch(part, columns, start, self._pa)
            bad = [BadRow(int(places[row]), detail) for row, detail in chunk.bad]
            chunks.append(Chunk(chunk.columns, places[chunk.rows], bad))
        yield join_chunks(chunks)

    def locate(self, block: Block, row: int) -> Location:
        file = self.files[block.file]
        return Location(file.path, "line", find_first_line(file, block, self._starts[block.file]) + row)


def join_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """Make one of parts that follow one another; those without columns have bad rows alone."""
    bad = [row for chunk in chunks for row in chunk.bad]
    whole = [chunk for chunk in chunks if chunk.columns]
    if len(whole) <= 1:
        return Chunk(whole[0].columns if whole else {}, whole[0].rows if whole else np.zeros(0, np.int64), bad)
    columns = {name: np.concatenate([chunk.columns[name] for chunk in whole]) for name in whole[0].columns}
    return Chunk(columns, np.concatenate([chunk.rows for chunk in whole]), bad)


def _name_type(kind: str) -> str:
    """Dates and times are taken as they are written."""
    return kind if kind in ("null", "bool", "double") or _WHOLE.fullmatch(kind) else "string"


def _is_number(kind: str) -> bool:
    return kind == "double" or _WHOLE.fullmatch(kind) is not None


def choose_type(kinds: Sequence[str]) -> str:
    """Give the type that most parts of a file have; numbers with a fraction are those of whole ones as well."""
    known = [kind for kind in kinds if kind != "null"]
    if sum(map(_is_number, known)) * 2 > len(known):
        return "double" if "double" in known else "int64"
    return max(known, key=known.count) if known else "null"


def widen_type(kind: str, other: str) -> str:
    """Give the type that has the values of two; the first where there is none."""
    if kind == "null":
        return other
    return "double" if kind != other and _is_number(kind) and _is_number(other) else kind


def _alias(kind: str) -> str:
    return {"double": "float64", "float": "float32", "bool": "bool_"}.get(kind, kind)
