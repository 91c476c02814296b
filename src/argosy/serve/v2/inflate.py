"""Unpack a compressed request, never to more than its limit; the same for every protocol."""

from __future__ import annotations

import zlib
from typing import Final

from argosy.errors import InputError, TooLargeError

__all__ = ["WINDOW_BITS", "inflate"]

WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
"""Encodings that are taken; to zlib they are these window bits."""
MAX_MEMBERS: Final = 1024
"""Of a gzip body; an empty one takes 20 bytes, and 2 us of the front."""
_PIECE_BYTES: Final = 1 << 18
"""Given to zlib at once: what follows a member is copied."""


def inflate(body: bytes | memoryview, encoding: bytes, limit: int) -> bytes:
    """Unpack a body.

    Args:
        body: one compressed stream, of gzip one or several after each other (RFC 1952, 2.2), and nothing after it.
        encoding: one of WINDOW_BITS.
        limit: of the unpacked body in bytes; never more than that is made.

    Raises:
        InputError: it is not such a stream, is cut, or is followed by other bytes.
        TooLargeError: it unpacks to more than the limit.
    """
    view, parts = memoryview(body), list[bytes]()
    pos = num_bytes = 0
    for _ in range(MAX_MEMBERS if encoding == b"gzip" else 1):
        unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
        while not unpacker.eof:
            piece = view[pos : pos + _PIECE_BYTES]
            if not piece:
                raise InputError("bad_compression", detail="it is cut")
            try:
                parts.append(unpacker.decompress(piece, limit - num_bytes + 1))
            except zlib.error as error:
                raise InputError("bad_compression", detail=str(error)) from None
            num_bytes += len(parts[-1])
            if num_bytes > limit:
                raise TooLargeError("body_too_large", limit=limit)
            pos += len(piece) - len(unpacker.unused_data)
        if pos == len(view):
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise InputError("bad_compression", detail="it is followed by other bytes")
