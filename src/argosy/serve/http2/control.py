"""Frames of an HTTP/2 client that carry no request: settings, pings, cancellations, farewells."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from argosy.serve.http2.frames import (
    ACK,
    GOAWAY,
    MAX_FRAME_BYTES,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Fault,
)
from argosy.serve.http2.state import DRAIN_PING, Http2State
from argosy.serve.http2.windows import on_window_update, pump_all, set_peer_window

__all__ = ["HANDLERS"]

_DEFAULT_TABLE_BYTES: Final = 4096
_MAX_SENT_FRAME_BYTES: Final = 1 << 17


def _on_priority(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    connection.budget.charge(1)
    if not stream_id:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
    if len(payload) != 5:
        stream = connection.streams.get(stream_id)
        if stream is None:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY that is not 5 bytes")
        connection.reset(stream, ErrorCode.FRAME_SIZE_ERROR)


def _on_rst_stream(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if len(payload) != 4:
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM that is not 4 bytes")
    if stream_id > connection.last_id or not stream_id & 1:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which is not open")
    connection.budget.charge(1)
    connection.muted.pop(stream_id, None)
    stream = connection.streams.get(stream_id)
    if stream is not None:
        stream.is_received = True
        connection.drop(stream)
        connection.budget.charge_abort()


def _on_settings(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if stream_id:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
    if len(payload) % 6 or (flags & ACK and payload):
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    connection.budget.charge(8 + len(payload) // 2)
    if flags & ACK:
        return
    for key, value in struct.iter_unpack(">HI", payload):
        if key == 1 and value < _DEFAULT_TABLE_BYTES:
            connection.is_shrink_due = True
        elif key == 2 and value > 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        elif key == 4:
            set_peer_window(connection, value)
        elif key == 5:
            if not MAX_FRAME_BYTES <= value < 1 << 24:
                raise Fault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
            connection.peer_frame_bytes = min(value, _MAX_SENT_FRAME_BYTES)
    connection.send_frame(SETTINGS, ACK, 0, b"")
    pump_all(connection)


def _on_push_promise(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    raise Fault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")


def _on_ping(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if stream_id:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
    if len(payload) != 8:
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, "PING that is not 8 bytes")
    connection.budget.charge(1)
    if not flags & ACK:
        connection.send_frame(PING, ACK, 0, payload)
    elif connection.is_draining and payload == DRAIN_PING:
        connection.say_goaway()


def _on_goaway(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if stream_id:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
    if len(payload) < 8:
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
    connection.budget.charge(1)
    connection.is_ending = True


HANDLERS: Final[dict[int, Callable[[Http2State, int, int, bytes], None]]] = {
    PRIORITY: _on_priority,
    RST_STREAM: _on_rst_stream,
    SETTINGS: _on_settings,
    PUSH_PROMISE: _on_push_promise,
    PING: _on_ping,
    GOAWAY: _on_goaway,
    WINDOW_UPDATE: on_window_update,
}
