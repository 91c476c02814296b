"""Unpack a compressed request, never to more than its limit; the same for every protocol."""

from __future__ import annotations

import zlib
from typing import Final

from argosy.errors import InputError, TooLargeError

__all__ = ["WINDOW_BITS", "inflate"]

WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
"""Encodings that are taken; to zlib they are these window bits."""


def inflate(body: bytes | memoryview, encoding: bytes, limit: int) -> bytes:
    """Unpack a body.

    Args:
        body: one compressed stream, and nothing after it.
        encoding: one of WINDOW_BITS.
        limit: of the unpacked body in bytes; never more than that is made.

    Raises:
        InputError: it is not such a stream, is cut, or is followed by other bytes.
        TooLargeError: it unpacks to more than the limit.
    """
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError("bad_compression", detail=str(error)) from None
    if len(data) > limit:
        raise TooLargeError("body_too_large", limit=limit)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError("bad_compression", detail="it is cut, or followed by other bytes")
    return data
