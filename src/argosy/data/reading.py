"""One pass over blocks that threads share: each block's chunks are read one after the other, many blocks at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from argosy.data.ahead import map_ahead
from argosy.data.block import Chunk, Column, Reader
from argosy.data.order import Piece
from argosy.errors import ArgosyError, InputError

__all__ = ["read_pieces"]

_AHEAD: Final = 2
"""Chunks a thread that are read and not taken yet, at most."""


class _Cursor:
    """A block that is read from some row on; its chunks are taken in their order, by any thread."""

    def __init__(self, reader: Reader, names: Sequence[str], columns: Mapping[str, Column], piece: Piece) -> None:
        self._chunks = reader.read(piece.block, names, columns=columns, first=piece.first, limit=piece.limit)
        self._place = piece.first
        self._is_broken = False
        self._changed = threading.Condition()

    def take(self, piece: Piece) -> Chunk:
        with self._changed:
            # Tasks begin in their order: whoever reads what stands before has begun already.
            self._changed.wait_for(lambda: self._is_broken or self._place == piece.first)
            if self._is_broken:
                raise InputError("bad_data", detail="what stands before cannot be read")
            try:
                chunk = next(self._chunks, None)
                self._place += piece.limit
                if piece.is_last:
                    # A reader that is done says whether the block was what it claimed, and closes its file.
                    next(self._chunks, None)
            except BaseException:
                self._is_broken = True
                raise
            finally:
                self._changed.notify_all()
        return Chunk({}, np.zeros(0, np.int64)) if chunk is None else chunk

    def close(self) -> None:
        with contextlib.suppress(ArgosyError):
            self._chunks.close()


def read_pieces(
    reader: Reader,
    pieces: Iterator[Piece],
    names: Sequence[str],
    columns: Mapping[str, Column],
    finish: Callable[[Chunk], Chunk],
    num_threads: int,
) -> Generator[tuple[Piece, Chunk]]:
    """Read chunks in the order in which they are asked for.

    Args:
        reader: of the files.
        pieces: those of one block in their order, none left out.
        names: of the columns to read.
        columns: what is known of them.
        finish: is done with each chunk, in the threads.
        num_threads: that read.
    """
    cursors: dict[tuple[int, int], _Cursor] = {}

    def read(cursor: _Cursor, piece: Piece) -> tuple[Piece, Chunk]:
        return piece, finish(cursor.take(piece))

    def list_tasks() -> Iterator[Callable[[], tuple[Piece, Chunk]]]:
        for piece in pieces:
            key = piece.block.file, piece.block.place
            if key not in cursors:
                cursors[key] = _Cursor(reader, names, columns, piece)
            yield partial(read, cursors[key], piece)
            if piece.is_last:
                del cursors[key]

    tasks = map_ahead(list_tasks(), num_threads, _AHEAD * num_threads)
    try:
        yield from tasks
    finally:
        tasks.close()
        for cursor in cursors.values():
            cursor.close()
