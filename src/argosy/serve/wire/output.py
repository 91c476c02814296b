"""What a process of a server prints: what cannot be written is lost, and fails nothing. Standard library only."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["guard_output"]


class _Lossy(io.FileIO):
    """A descriptor whose reader may have gone, and whose disk may be full."""

    def write(self, data: ReadableBuffer, /) -> int:
        written = None
        with contextlib.suppress(OSError):
            written = super().write(data)
        # Neither does one wait that does not block.
        return len(memoryview(data).cast("B")) if written is None else written


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
    raw = io.BufferedWriter(_Lossy(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=is_line_buffered)
