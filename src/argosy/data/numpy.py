"""NumPy's files: a column is a file `.npy`, of which ranges of rows are read."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib import format as npy

from argosy.data.arrow import make_chunk, mark_infinite
from argosy.data.block import CHUNK_BYTES, Block, Chunk, Column, Location
from argosy.data.files import File, open_file, read_range
from argosy.errors import InputError

__all__ = ["NumpyReader"]

_MAX_HEAD: Final = 64 << 10


class _Head(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


class NumpyReader:
    """Reads files `.npy`, one a column, of as many rows each.

    Not by memory maps: a process that touches one whose file has shrunk is killed.
    """

    def __init__(self, columns: Mapping[str, File]) -> None:
        self._names = list(columns)
        self.files = list(columns.values())
        self._heads = {name: _read_head(file) for name, file in columns.items()}

    def read_schema(self) -> dict[str, str]:
        first = self._names[0]
        for name, head in self._heads.items():
            if head.shape[0] != self._heads[first].shape[0]:
                detail = f"it has {head.shape[0]} rows, and that of column {first!r} has {self._heads[first].shape[0]}"
                raise InputError("bad_file", path=repr(str(self._file_of(name).path)), detail=detail)
        return {name: f"{head.dtype} {list(head.shape[1:])}" for name, head in self._heads.items()}

    def _file_of(self, name: str) -> File:
        return self.files[self._names.index(name)]

    def list_blocks(self) -> Sequence[Block]:
        num_rows = self._heads[self._names[0]].shape[0]
        row_bytes = max(1, sum(_count_bytes(head) for head in self._heads.values()))
        step = max(1, CHUNK_BYTES // row_bytes)
        return [
            Block(0, start, min(step, num_rows - start), min(step, num_rows - start) * row_bytes)
            for start in range(0, num_rows, step)
        ]

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        assert block.num_rows is not None
        for start in range(first, block.num_rows, limit):
            count = min(limit, block.num_rows - start)
            marked: dict[str, Any] = {}
            for name in names:
                array = self._read_rows(name, block.place + start, count)
                infinite = mark_infinite(array)
                marked[name] = array, np.zeros(count, bool) if infinite is None else infinite, "holds NaN or an infinite number"
            yield make_chunk(marked, count, start)

    def _read_rows(self, name: str, start: int, count: int) -> Any:
        head, file = self._heads[name], self._file_of(name)
        size = _count_bytes(head)
        with open_file(file) as descriptor:
            data = read_range(file, descriptor, head.start + start * size, count * size)
        array = np.frombuffer(data, head.dtype).reshape(count, *head.shape[1:])
        return array.astype(head.dtype.newbyteorder("="), copy=False)

    def locate(self, block: Block, row: int) -> Location:
        return Location(self.files[0].path, "row", block.place + row)


def _count_bytes(head: _Head) -> int:
    size = head.dtype.itemsize
    for side in head.shape[1:]:
        size *= side
    return size


def _read_head(file: File) -> _Head:
    """Read what stands before the numbers, and hold the file's size against it."""
    with open_file(file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as opened:
        try:
            version = npy.read_magic(opened)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, dtype = read(opened, max_header_size=_MAX_HEAD)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            detail = f"it is no file of NumPy's that can be read: {str(error)[:200]}"
            raise InputError("bad_file", path=repr(str(file.path)), detail=detail) from error
        start = opened.tell()
    head = _Head(dtype, shape, start)
    wrong = None
    if dtype.kind not in "fiub":
        wrong = f"it holds {dtype}, expected numbers"
    elif len(shape) < 1 or any(side < 0 for side in shape):
        wrong = f"it has shape {shape}, expected rows"
    elif is_fortran and len(shape) > 1:
        wrong = "its rows lie apart (Fortran order): write it with numpy.ascontiguousarray"
    elif not _count_bytes(head) or start + head.shape[0] * _count_bytes(head) != file.size:
        wrong = f"it says that it has shape {shape}, which {file.size} bytes are not"
    if wrong is not None:
        raise InputError("bad_file", path=repr(str(file.path)), detail=wrong)
    return head
