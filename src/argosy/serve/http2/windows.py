"""Flow control of HTTP/2 (RFC 9113, section 5.2): the windows that answers go through, and the one of all bodies together."""

from __future__ import annotations

from argosy.serve.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    ErrorCode,
    Fault,
    pack_head,
)
from argosy.serve.http2.limits import CONNECTION_WINDOW
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.streams import DuplexStream, Http2Stream

__all__ = [
    "credit_connection",
    "on_window_update",
    "pump",
    "pump_all",
    "set_peer_window",
]


def credit_connection(connection: Http2State) -> None:
    """Fill up the connection's window; it never runs out, as this is done at its half and a frame is much smaller."""
    connection.send_credit(0, CONNECTION_WINDOW - connection.recv_window)
    connection.recv_window = CONNECTION_WINDOW


def set_peer_window(connection: Http2State, value: int) -> None:
    """Take another first window for answers, also for those that are under way."""
    if value > MAX_WINDOW:
        raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
    change = value - connection.peer_window
    connection.peer_window = value
    for stream in connection.streams.values():
        stream.send_window += change
        if stream.send_window > MAX_WINDOW:
            raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE overflows the window of stream {stream.id}")


def on_window_update(connection: Http2State, stream_id: int, flags: int, payload: bytes) -> None:
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


def pump_all(connection: Http2State) -> None:
    """Send what the windows allow of all answers, the oldest first."""
    if connection.sending and connection.send_window > 0:
        connection.budget.charge(len(connection.sending) >> 4)
        for stream in list(connection.sending.values()):
            pump(connection, stream)
            if connection.send_window <= 0:
                break


def pump(connection: Http2State, stream: Http2Stream) -> None:
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
    if isinstance(stream, DuplexStream):
        _pump_next(connection, stream)
    else:
        out += (pack_head(len(stream.trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream.id), stream.trailers)
        connection.close_stream(stream)


def _pump_next(connection: Http2State, stream: DuplexStream) -> None:
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
