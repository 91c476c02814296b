"""What readers of files have in common: blocks, which are read on their own, and chunks of rows, which they come in."""

from __future__ import annotations

import importlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.data.files import File
from argosy.errors import InputError

__all__ = ["CHUNK_BYTES", "BadRow", "Block", "Chunk", "Column", "Location", "Reader", "load_module", "make_zeros"]

CHUNK_BYTES: Final = 4 << 20
"""What a chunk is to hold: small beside the buffer, so that many places of the data mix in it, and large beside the cost
of a read."""

MAX_CHUNK_BYTES: Final = 1 << 30
"""Of a chunk in which one row is far wider than others."""

Arrays = dict[str, NDArray[Any]]


class Block(NamedTuple):
    """A part of a file that can be read without what stands before it."""

    file: int
    """Which of the files."""
    place: int
    """Its number, its first row or its first byte in the file, as the format counts."""
    num_rows: int | None
    """None where only reading tells."""
    size: int
    """Bytes in the file, about."""


class Location(NamedTuple):
    """Where a row stands."""

    path: Path
    unit: Literal["row", "line", "picture"]
    number: int
    """In the file: of lines counted from 1, of rows from 0; of a picture, which is a file, nothing."""

    def __str__(self) -> str:
        return repr(str(self.path)) + ("" if self.unit == "picture" else f", {self.unit} {self.number}")


class BadRow(NamedTuple):
    """A row that cannot be used."""

    row: int
    """Counted in its block from 0; in text, lines."""
    detail: str


@dataclass
class Chunk:
    """Some rows that follow one another in a block."""

    columns: Arrays
    """Those that can be used; all arrays have as many."""
    rows: NDArray[np.int64]
    """Where each stands in its block."""
    bad: list[BadRow] = field(default_factory=list[BadRow])


class Column(NamedTuple):
    """What all rows of a data set have in common in one column."""

    dtype: np.dtype[Any]
    """Objects are strings or bytes."""
    shape: tuple[int, ...]
    """Of one row."""
    is_text: bool = False

    def __str__(self) -> str:
        kind = str(self.dtype) if self.dtype.kind != "O" else "string" if self.is_text else "bytes"
        return f"{kind} {list(self.shape)}" if self.shape else kind


class Reader(Protocol):
    """Reads the files of one format."""

    @property
    def files(self) -> Sequence[File]: ...

    def read_schema(self) -> dict[str, str]:
        """Give each column's type in the format's own words, the same in all files.

        Raises:
            InputError: `schema_differs`, they are not; `bad_file`.
        """
        ...

    def list_blocks(self) -> Sequence[Block]:
        """Give the blocks of all files, in their order."""
        ...

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        """Read a block chunk by chunk.

        Args:
            block: one of `list_blocks`.
            names: of the columns to read.
            columns: what is known of them; nothing is, of a column that is not there.
            first: row of the block to begin with.
            limit: rows of a chunk at most; formats whose blocks have no number of rows give the whole block at once.

        Raises:
            InputError: `bad_file`, `data_changed`.
        """
        ...

    def locate(self, block: Block, row: int) -> Location:
        """Say where a row stands."""
        ...


def load_module(name: str, feature: str) -> Any:
    """Import what a format needs.

    Raises:
        InputError: `missing_extra`.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(name.partition(".")[0], name.partition(".")[0])
        raise InputError("missing_extra", feature=feature, package=package, extra="data") from error


def make_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Make an array for rows of which some may be bad.

    Raises:
        InputError: `bad_data`, a row is as wide as no row of a data set is.
    """
    if math.prod(shape) * dtype.itemsize > MAX_CHUNK_BYTES:
        detail = f"{shape[0]} rows of {math.prod(shape[1:])} numbers each have more than {MAX_CHUNK_BYTES >> 20} MiB"
        raise InputError("bad_data", detail=detail)
    return np.zeros(shape, dtype)
