"""What a process of a server prints: what cannot be written is lost, and fails nothing. Standard library only."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["guard_output"]


_PIPE_BYTES: Final = 4096
"""A pipe that has room takes so much at once without waiting for its reader."""


class _Lossy(io.FileIO):
    """A descriptor whose reader may have gone or may read no more, and whose disk may be full."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        with contextlib.suppress(OSError):
            if self._room.poll(0):
                return super().write(view[:_PIPE_BYTES]) or len(view)
        return len(view)


def guard_output() -> None:
    """Have `print` and tracebacks of this process never raise; a standard descriptor that is closed becomes one of nothing.

    Else the next file or socket would get its number, and be written to by whoever prints.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = _open(1, is_line_buffered=False)
    sys.stderr = _open(2, is_line_buffered=True)


def _open(fd: int, *, is_line_buffered: bool) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Lossy(fd))
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=is_line_buffered)
