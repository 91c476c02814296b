"""Streams whose body is taken while it comes, and answered in parts: credit for what comes, and windows for what goes.

A subclass of the connection marks them in `read_head`, gets `on_duplex` when one begins, and then the token that this returned
is told of all that happens (`DuplexToken`). It takes what has come from `stream.upload.body`, and gives credit when it has.
"""

from __future__ import annotations

from typing import Final

from argosy.serve.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, MAX_FRAME_BYTES, ErrorCode, pack_head
from argosy.serve.http2.limits import FRAMES_PER_ANSWER
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.streams import DuplexStream, Head
from argosy.serve.http2.windows import pump

__all__ = [
    "begin_duplex",
    "end_duplex",
    "end_input",
    "extend_input",
    "feed_duplex",
    "is_duplex_stuck",
    "send_part",
    "take_input",
]

_TRAILERS: Final = END_HEADERS | END_STREAM


def begin_duplex(connection: Http2State, stream_id: int, head: Head, is_ended: bool) -> None:
    """Open a stream, and answer with its headers."""
    stream = DuplexStream(stream_id, head, connection.peer_window, connection.uploads.first_window)
    connection.streams[stream_id] = stream
    stream.token = connection.on_duplex(stream)
    if connection.is_draining:
        stream.token.drain()
    if is_ended:
        end_input(connection, stream)


# what comes


def feed_duplex(connection: Http2State, stream: DuplexStream, payload: bytes, num_bytes: int, is_last: bool) -> None:
    """Take a DATA frame that counts for `num_bytes` with its padding."""
    upload = stream.upload
    assert upload is not None
    upload.window -= num_bytes
    if upload.window < 0:
        connection.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        return
    upload.body += payload
    connection.body_bytes += len(payload)
    stream.progress += len(payload)
    stream.is_received = is_last
    stream.token.advance()


def end_input(connection: Http2State, stream: DuplexStream) -> None:
    """The client sends no more."""
    stream.is_received = True
    stream.token.advance()


def take_input(connection: Http2State, stream: DuplexStream, start: int, end: int) -> bytes | memoryview:
    """Take a message from the begin of what has come: what stands before `start` is its head, and is dropped."""
    upload = stream.upload
    assert upload is not None
    body = upload.body
    connection.body_bytes -= end
    if end == len(body) > MAX_FRAME_BYTES:
        # A large one stands alone, and need not be copied.
        message = memoryview(body)[start:]
        upload.body = bytearray()
    else:
        message = bytes(body[start:end])
        del body[:end]
    if upload.granted:
        waiting = connection.uploads.release(stream.id)
        upload.granted = 0
        for other_id, step in waiting:
            connection.send_credit(other_id, step)
    return message


def extend_input(connection: Http2State, stream: DuplexStream, missing: int) -> None:
    """Let the client send more.

    Args:
        connection: of the stream.
        stream: whose complete messages were taken.
        missing: bytes that the message at the begin of the body lacks; 0 when there is none, or its size is not known yet.
    """
    upload = stream.upload
    if upload is None or stream.is_received or upload.is_waiting:
        return
    pool = connection.uploads
    room = pool.first_window - len(upload.body) - upload.window
    if missing > max(upload.window, upload.window + room):
        # A large message: credit for just what it lacks, so that the client has no more than a first window after it.
        if upload.window < pool.first_window // 2:
            upload.wanted = missing - upload.window
            step = pool.extend(stream.id, upload)
            if step:
                connection.send_credit(stream.id, step)
    elif room >= pool.first_window // 2 or missing > upload.window:
        upload.window += room
        connection.send_credit(stream.id, room)


# what goes


def send_part(connection: Http2State, stream: DuplexStream, data: bytes) -> None:
    """Send a part of the answer, as the client's windows allow."""
    connection.flush_soon()
    connection.budget.frames_left += FRAMES_PER_ANSWER
    stream.progress += len(data)
    size = len(data)
    if stream.unsent is not None:
        stream.outbox.append(data)
        stream.outbox_bytes += size
    elif size <= connection.send_window and size <= stream.send_window and size <= connection.peer_frame_bytes:
        connection.send_window -= size
        stream.send_window -= size
        connection.out += (pack_head(size << 8 | DATA, 0, stream.id), data)
    else:
        stream.unsent = memoryview(data)
        connection.sending[stream.id] = stream
        connection.unsent_bytes += size
        pump(connection, stream)


def end_duplex(connection: Http2State, stream: DuplexStream, trailers: bytes) -> None:
    """End the answer once all its parts have gone."""
    stream.trailers = trailers
    stream.is_over = True
    if stream.unsent is None:
        connection.flush_soon()
        connection.out.append(pack_head(len(trailers) << 8 | HEADERS, _TRAILERS, stream.id) + trailers)
        connection.release(stream)
        connection.close_stream(stream)


def is_duplex_stuck(connection: Http2State, stream: DuplexStream, now: float) -> bool:
    """Say whether a message was begun and not ended, an answer not read, or nothing done at all, for too long."""
    limits = connection.limits
    upload = stream.upload
    is_begun = upload is not None and bool(upload.body) and not upload.is_waiting
    is_working = stream.num_open > 0 and stream.unsent is None
    moved = stream.progress - stream.unsent_bytes
    if stream.seen_unsent != moved or not stream.seen_s or is_working:
        stream.seen_unsent = moved
        stream.seen_s = now
    return now - stream.seen_s > (limits.request_timeout_s if is_begun or stream.unsent is not None else limits.idle_timeout_s)
