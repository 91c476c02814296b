"""Flow control of HTTP/2 (RFC 9113, section 5.2), both ways: credit for bodies that come, windows for answers that go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from argosy.serve.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    ErrorCode,
    Fault,
    pack_head,
)
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.streams import Stream, Upload

if TYPE_CHECKING:
    from argosy.serve.http2.connection import Http2Connection
    from argosy.serve.http2.duplex import DuplexStream

__all__ = [
    "CONNECTION_WINDOW",
    "UploadPool",
    "credit_connection",
    "on_window_update",
    "pump",
    "pump_all",
    "set_peer_window",
]

CONNECTION_WINDOW: Final = 1 << 30
"""Streams' windows bound what is held; the connection's only has to be there, so that none waits for another."""

# bodies


class UploadPool:
    """Credit beyond the first window for the bodies of a connection. The oldest of them needs none of the pool's.

    Attributes:
        first_window: what a client may send of each body at once.
        uploads: stream -> its body, of those that got credit or wait for it, the oldest first.
        granted: sum of what all but the oldest got; never over `upload_pool_bytes`.
    """

    __slots__ = ("_limits", "first_window", "granted", "uploads")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.first_window = max(limits.stream_window_bytes, DEFAULT_WINDOW)
        self.uploads: dict[int, Upload] = {}
        self.granted = 0

    def extend(self, stream_id: int, upload: Upload) -> int:
        """Let a client send more of a body: double what came, if the pool has it or the body is the oldest.

        Returns:
            The credit to tell the client of; 0 when the body has to wait.
        """
        uploads = self.uploads
        uploads.setdefault(stream_id, upload)
        limits = self._limits
        step = min(max(limits.stream_window_bytes, len(upload.body)), upload.wanted)
        if next(iter(uploads)) != stream_id:
            least = min(step, limits.stream_window_bytes)
            step = min(step, limits.upload_pool_bytes - self.granted)
            if step < least:
                upload.is_waiting = True
                return 0
            self.granted += step
        else:
            # Not far beyond the limit: just so that what is too large is seen to be so, and answered.
            least = min(step, limits.stream_window_bytes)
            step = max(min(step, limits.max_body_bytes - len(upload.body)), least)
        upload.is_waiting = False
        upload.granted += step
        upload.window += step
        return step

    def release(self, stream_id: int) -> list[tuple[int, int]]:
        """Take back the credit of a body that is complete or dropped.

        Returns:
            Stream and credit of each body that waited for it and now may go on.
        """
        uploads = self.uploads
        if stream_id not in uploads:
            return []
        was_oldest = next(iter(uploads)) == stream_id
        upload = uploads.pop(stream_id)
        if not was_oldest:
            self.granted -= upload.granted
        elif uploads:
            self.granted -= next(iter(uploads.values())).granted
        waiting = [(other_id, other) for other_id, other in uploads.items() if other.is_waiting]
        return [(other_id, step) for other_id, other in waiting if (step := self.extend(other_id, other))]

    def clear(self) -> None:
        """Forget all bodies: the connection ends."""
        self.uploads.clear()
        self.granted = 0


def credit_connection(connection: Http2Connection) -> None:
    """Fill up the connection's window; it never runs out, as this is done at its half and a frame is much smaller."""
    connection.send_credit(0, CONNECTION_WINDOW - connection.recv_window)
    connection.recv_window = CONNECTION_WINDOW


# answers


def set_peer_window(connection: Http2Connection, value: int) -> None:
    """Take another first window for answers, also for those that are under way."""
    if value > MAX_WINDOW:
        raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
    change = value - connection.peer_window
    connection.peer_window = value
    for stream in connection.streams.values():
        stream.send_window += change
        if stream.send_window > MAX_WINDOW:
            raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE overflows the window of stream {stream.id}")


def on_window_update(connection: Http2Connection, stream_id: int, flags: int, payload: bytes) -> None:
    """Take credit for answers, of one stream or all."""
    if len(payload) != 4:
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE that is not 4 bytes")
    connection.budget.charge(1)
    step = int.from_bytes(payload, "big") & MAX_WINDOW
    if not stream_id:
        was_shut = connection.send_window <= 0
        connection.send_window += step
        if not step:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if connection.send_window > MAX_WINDOW:
            raise Fault(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows the connection's window")
        if was_shut:
            # Otherwise what is unsent waits for its stream's window.
            pump_all(connection)
        return
    stream = connection.streams.get(stream_id)
    if stream is None:
        if stream_id > connection.last_id or not stream_id & 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which is not open")
        return
    stream.send_window += step
    if not step:
        connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
    elif stream.send_window > MAX_WINDOW:
        connection.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
    elif stream.unsent is not None:
        pump(connection, stream)


def pump_all(connection: Http2Connection) -> None:
    """Send what the windows allow of all answers, the oldest first."""
    if connection.sending and connection.send_window > 0:
        connection.budget.charge(len(connection.sending) >> 4)
        for stream in list(connection.sending.values()):
            pump(connection, stream)
            if connection.send_window <= 0:
                break


def pump(connection: Http2Connection, stream: Stream) -> None:
    """Send what the windows allow of an answer. Who calls it has seen to the flush."""
    unsent = stream.unsent
    assert unsent is not None
    out = connection.out
    room = sent = max(0, min(len(unsent), connection.send_window, stream.send_window))
    while room:
        size = min(room, connection.peer_frame_bytes)
        out += (pack_head(size << 8 | DATA, 0, stream.id), unsent[:size])
        unsent = unsent[size:]
        room -= size
    connection.send_window -= sent
    stream.send_window -= sent
    connection.unsent_bytes -= sent
    stream.unsent = unsent
    # The client has to tell us of what it consumed: one WINDOW_UPDATE or two for each frame.
    connection.budget.frames_left += 2 * (sent // MAX_FRAME_BYTES)
    if unsent:
        return
    if stream.head.is_duplex:
        _pump_next(connection, cast("DuplexStream", stream))
    else:
        out += (pack_head(len(stream.trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream.id), stream.trailers)
        connection.close_stream(stream)


def _pump_next(connection: Http2Connection, stream: DuplexStream) -> None:
    """A part has gone: send those that wait behind it, or the trailers, or see to what was held back meanwhile."""
    if stream.outbox:
        stream.unsent = memoryview(b"".join(stream.outbox))
        stream.outbox.clear()
        stream.outbox_bytes = 0
        connection.unsent_bytes += len(stream.unsent)
        pump(connection, stream)
    elif stream.is_over:
        trailers = stream.trailers
        connection.out.append(pack_head(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream.id) + trailers)
        connection.release(stream)
        connection.close_stream(stream)
    else:
        stream.unsent = None
        del connection.sending[stream.id]
        stream.token.advance()
