"""A large body on its way into memory: from the kernel straight into one buffer.

The parser would copy each piece that arrives, and the pieces would be joined once more at the end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from argosy.serve.http.connection import HttpConnection
    from argosy.serve.http.reader import HttpReader

__all__ = ["MIN_BYTES", "BodyReceiver"]

MIN_BYTES: Final = 64 << 10
"""With less to come, the parser's way is as fast."""


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands for a connection until the body of its request is complete.

    Args:
        connection: gets everything else that happens meanwhile.
        reader: gets the body.
        size: bytes of the body.
        parts: what has come of it.
    """

    def __init__(self, connection: HttpConnection, reader: HttpReader, size: int, parts: list[bytes]) -> None:
        self._connection = connection
        self._reader = reader
        # Not filled: pages that no byte has come for are never touched.
        self._body = np.empty(size, np.uint8).data
        self._pos = 0
        for part in parts:
            self._body[self._pos : self._pos + len(part)] = part
            self._pos += len(part)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the kernel writes what comes next; never beyond the body, where another request may begin."""
        return self._body[self._pos :]

    def buffer_updated(self, nbytes: int) -> None:
        self._pos += nbytes
        self._connection.note_body(self._pos)
        if self._pos == len(self._body):
            self._reader.take_body(self._body)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
