"""From bytes to requests: frames, header blocks and bodies of an HTTP/2 client, each checked in the state it comes in.

Plain functions over the connection, which has all state: a call of a function is the cheapest step there is.
"""

from __future__ import annotations

from typing import Final

from argosy.serve.http2.control import HANDLERS
from argosy.serve.http2.duplex import begin_duplex, end_input, feed_duplex
from argosy.serve.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PADDED,
    SETTINGS,
    ErrorCode,
    Fault,
    strip_frame,
    unpack_head,
)
from argosy.serve.http2.limits import CONNECTION_WINDOW
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.streams import DuplexStream, Http2Stream
from argosy.serve.http2.uploads import Upload
from argosy.serve.http2.windows import credit_connection

__all__ = ["read_frames"]

_TINY_BYTES: Final = 64
"""A frame of a body with less than that is charged for, unless it ends the body."""


def read_frames(connection: Http2State, data: bytes, pos: int = 0) -> int:
    """Take all complete frames from `pos` on; return where the first incomplete one begins.

    Raises:
        Fault: the client broke the protocol, or a limit, so that the connection has to end.
    """
    end = len(data)
    streams = connection.streams
    while end - pos >= 9:
        first, flags, stream_id = unpack_head(data, pos)
        start = pos + 9
        length = first >> 8
        stop = start + length
        if stop > end:
            if length > MAX_FRAME_BYTES:
                break
            return pos
        pos = stop
        kind = first & 0xFF
        stream_id &= MAX_WINDOW
        if length > MAX_FRAME_BYTES:
            break
        if connection.expected:
            _check_expected(connection, kind, flags, stream_id)
        if kind == DATA:
            stream = streams.get(stream_id)
            if (
                flags == END_STREAM
                and stream is not None
                and stream.upload is None
                and not stream.is_received
                and length <= connection.max_single
            ):
                # The whole body in one frame: what most requests are.
                connection.recv_window -= length
                if connection.recv_window < CONNECTION_WINDOW // 2:
                    credit_connection(connection)
                _complete(connection, stream, data[start:stop])
            else:
                _on_data(connection, stream_id, flags, data[start:stop])
        elif kind == HEADERS:
            _on_headers(connection, stream_id, flags, data[start:stop])
        elif kind < CONTINUATION:
            HANDLERS[kind](connection, stream_id, flags, data[start:stop])
        elif kind == CONTINUATION:
            _on_continuation(connection, stream_id, flags, data[start:stop])
        else:
            connection.budget.charge(1)
    else:
        return pos
    raise Fault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are taken")


def _check_expected(connection: Http2State, kind: int, flags: int, stream_id: int) -> None:
    if connection.expected < 0:
        if kind != SETTINGS or flags & ACK:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        connection.expected = 0
    elif kind != CONTINUATION or stream_id != connection.expected:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")


# headers


def _on_headers(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if not stream_id & 1:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
    if flags & (PADDED | HAS_PRIORITY):
        payload = strip_frame(payload, flags)
    if flags & END_HEADERS:
        _on_block(connection, stream_id, flags, payload)
    else:
        connection.expected = stream_id
        connection.blocks.begin(flags, payload)


def _on_continuation(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    if not connection.expected:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION that continues nothing")
    connection.blocks.extend(payload)
    if flags & END_HEADERS:
        connection.expected = 0
        _on_block(connection, stream_id, *connection.blocks.finish())


def _on_block(connection: Http2State, stream_id: int, flags: int, block: bytes) -> None:
    if stream_id <= connection.last_id:
        _on_trailers(connection, stream_id, flags, block)
        return
    connection.last_id = stream_id
    blocks = connection.blocks
    head = blocks.heads.get(block) or blocks.read_request(block, connection.read_head)
    is_ended = flags & END_STREAM
    streams = connection.streams
    limits = connection.limits
    if stream_id > connection.goaway_id:
        # Opened before the client saw our GOAWAY, which tells it that this one was not looked at.
        if not is_ended:
            connection.mute(stream_id)
    elif len(streams) >= limits.max_streams or connection.unsent_bytes > limits.max_unsent_bytes:
        connection.budget.charge(4)
        _refuse(connection, stream_id, is_ended, ErrorCode.REFUSED_STREAM)
    elif head is None:
        connection.budget.charge_abort()
        _refuse(connection, stream_id, is_ended, ErrorCode.PROTOCOL_ERROR)
    elif head.is_duplex:
        begin_duplex(connection, stream_id, head, bool(is_ended))
    else:
        stream = streams[stream_id] = Http2Stream(stream_id, head, connection.peer_window)
        if is_ended:
            _complete(connection, stream, b"")
        elif head.is_early:
            stream.token = connection.on_request(stream_id, head, b"")


def _refuse(connection: Http2State, stream_id: int, is_ended: int, code: int) -> None:
    """Answer a request with an error of its stream, without having opened that."""
    connection.send_reset(stream_id, code)
    if not is_ended:
        connection.mute(stream_id)


def _on_trailers(connection: Http2State, stream_id: int, flags: int, block: bytes) -> None:
    is_valid = connection.blocks.read_trailers(block)
    stream = connection.streams.get(stream_id)
    if stream is None:
        if stream_id not in connection.muted:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which is closed or was passed over")
        _drop_muted(connection, stream_id, flags)
    elif stream.is_received:
        connection.reset(stream, ErrorCode.STREAM_CLOSED)
    elif not flags & END_STREAM or not is_valid:
        connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
    elif isinstance(stream, DuplexStream):
        end_input(connection, stream)
    else:
        _complete(connection, stream, b"" if stream.upload is None else stream.upload.body)


# bodies


def _on_data(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
    """Take a DATA frame that is not a body by itself."""
    length = len(payload)
    connection.recv_window -= length
    if connection.recv_window < CONNECTION_WINDOW // 2:
        credit_connection(connection)
    stream = connection.streams.get(stream_id)
    if stream is None or stream.is_received:
        _on_stray_data(connection, stream_id, stream, flags)
        return
    if flags & PADDED:
        payload = strip_frame(payload, PADDED)
    is_last = bool(flags & END_STREAM)
    if len(payload) < _TINY_BYTES and not is_last:
        connection.budget.charge(1)
    if isinstance(stream, DuplexStream):
        feed_duplex(connection, stream, payload, length, is_last)
        return
    uploads = connection.uploads
    upload = stream.upload
    if upload is None:
        upload = stream.upload = Upload(uploads.first_window)
    upload.window -= length
    body = upload.body
    body += payload
    connection.body_bytes += len(payload)
    limits = connection.limits
    if upload.window < 0:
        connection.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
    elif len(body) > limits.max_body_bytes:
        stream.is_received = is_last
        connection.release(stream)
        connection.on_too_large(stream_id, stream.head)
    elif is_last:
        _complete(connection, stream, body)
    elif upload.window < limits.stream_window_bytes // 2 and not upload.is_waiting:
        step = uploads.extend(stream_id, upload)
        if step:
            connection.send_credit(stream_id, step)


def _on_stray_data(connection: Http2State, stream_id: int, stream: Http2Stream | None, flags: int) -> None:
    if stream is not None:
        connection.reset(stream, ErrorCode.STREAM_CLOSED)
    elif stream_id in connection.muted:
        _drop_muted(connection, stream_id, flags)
    elif stream_id > connection.last_id or not stream_id & 1:
        raise Fault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is not open")
    else:
        raise Fault(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id}, which is closed")


def _drop_muted(connection: Http2State, stream_id: int, flags: int) -> None:
    """Pass over a frame of a request that we have ended before its client did."""
    connection.budget.charge(1)
    if flags & END_STREAM:
        del connection.muted[stream_id]


def _complete(connection: Http2State, stream: Http2Stream, body: bytes | bytearray) -> None:
    stream.is_received = True
    if stream.upload is not None:
        connection.release(stream)
    head = stream.head
    if head.content_length is not None and head.content_length != len(body):
        connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
        return
    stream.token = connection.on_request(stream.id, head, body)
