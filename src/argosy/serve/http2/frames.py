"""Frames of HTTP/2 on the wire (RFC 9113, sections 4, 6 and 7): their numbers and layouts, and the error that ends all."""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "DEFAULT_WINDOW",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HAS_PRIORITY",
    "HEADERS",
    "MAX_FRAME_BYTES",
    "MAX_WINDOW",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "ErrorCode",
    "Fault",
    "pack_goaway",
    "pack_head",
    "pack_u32",
    "strip_frame",
    "unpack_head",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES: Final = 16384
"""The protocol's default, which we do not raise: per frame it costs 1 % of what moving its bytes costs."""
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65535

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

unpack_head: Final = struct.Struct(">IBI").unpack_from  # length << 8 | type, flags, stream
pack_head: Final = struct.Struct(">IBI").pack
pack_u32: Final = struct.Struct(">I").pack
pack_goaway: Final = struct.Struct(">II").pack  # last stream, error code


class ErrorCode:
    """The error codes of RFC 9113, section 7, that we send."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Fault(Exception):
    """A connection error: GOAWAY with this code, and close."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def strip_frame(payload: bytes, flags: int) -> bytes:
    """Remove the padding and priority that the flags speak of."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a length of padding")
        start, end = 1, end - payload[0]
    if flags & HAS_PRIORITY:
        start += 5
    if start > end:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "padding or priority longer than its frame")
    return payload[start:end]
