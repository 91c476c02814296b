"""What travels between a front and a worker for raw requests: one stream socket for each that is answered.

A front makes the pairs, and passes the worker's ends on the socket of `frames.Kind.STREAMS`, one byte with each. A stream
carries one request at a time; the kernel's buffers are all that a slow client fills.

    front -> worker   OPEN and what it announces: a head of JSON, and the body
                      closing this side cancels; the worker then closes the stream
    worker -> front   HEAD   JSON: status, headers, length of the body or null
                      DATA   a part of the body
                      END    the answer is complete: the next request may come
                      ERROR  text: the model failed, the worker lives

The standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

__all__ = [
    "DATA",
    "END",
    "END_FRAME",
    "ERROR",
    "FRAME",
    "HEAD",
    "MAX_DATA_BYTES",
    "MAX_ERROR_BYTES",
    "MAX_HEAD_BYTES",
    "OPEN",
    "pack_data",
    "pack_frame",
]

OPEN: Final = struct.Struct("<IQ")  # bytes of the head, bytes of the body
FRAME: Final = struct.Struct("<BI")  # kind, bytes that follow
HEAD, DATA, END, ERROR = range(1, 5)
END_FRAME: Final = FRAME.pack(END, 0)
MAX_ERROR_BYTES: Final = 4000
"""Of what a model's error says, of tensors as well."""
MAX_DATA_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 256 * 1024
"""32 KiB of headers, in which JSON may need six bytes for one."""


def pack_frame(kind: int, data: bytes) -> bytes:
    """One frame."""
    return FRAME.pack(kind, len(data)) + data


def pack_data(data: bytes) -> Iterator[bytes]:
    """A part of a body as frames."""
    for start in range(0, len(data), MAX_DATA_BYTES):
        yield pack_frame(DATA, data[start : start + MAX_DATA_BYTES])
