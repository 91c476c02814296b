"""HTTP/2 for servers (RFC 9113, RFC 7541): one `asyncio.Protocol` a connection, requests in, answers out.

It knows frames, streams and windows, and nothing of what the requests mean. A subclass gets each complete request in
`on_request` and answers it with `respond`, in the same turn of the event loop or later.

    http2_read.py  ->  on_request  ->  respond  ->  http2_windows.py  ->  flush

This file has the state of a connection, what leaves it, and the ends of streams and connection. `http2_read.py` makes
requests of bytes, `http2_control.py` takes all other frames, `http2_windows.py` has flow control both ways, and
`http2_server.py` the clock. Those are functions over the connection, whose attributes and methods without an underscore
are for them; a subclass needs only what stands under "for subclasses".

What makes it fast: a header block that was seen before is looked up by its bytes, if decoding it cannot change the
decoder's table; a body that came in one frame is one slice; all frames of a turn leave in one write.

What bounds it, whatever a client sends: `Limits`. Bodies that are not complete hold at most
`max_streams * stream_window_bytes + upload_pool_bytes + max_body_bytes` (and one window) per connection: beyond its
first window a stream gets credit only from the connection's pool, and the oldest large body always gets all it needs,
so that large bodies take turns and none waits for ever. Answers are bounded by the streams that may be open.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final, cast

from argosy.serve.http2.control import DRAIN_PING
from argosy.serve.http2.duplex import DuplexStream, DuplexToken
from argosy.serve.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Fault,
    pack_goaway,
    pack_head,
    pack_u32,
)
from argosy.serve.http2.headers import HeaderBlocks
from argosy.serve.http2.limits import FRAMES_PER_ANSWER, Budget, Limits
from argosy.serve.http2.read import read_frames, read_preface
from argosy.serve.http2.server import Http2Server, Watch
from argosy.serve.http2.streams import Head, Stream
from argosy.serve.http2.windows import CONNECTION_WINDOW, UploadPool, pump

__all__ = ["Head", "Http2Connection", "Http2Server", "Limits"]

_MAX_MUTED: Final = 4096
_LINGER_S: Final = 1.0


class Http2Connection(asyncio.Protocol):
    """One client's connection. A subclass has `read_head`, `on_request`, `on_too_large` and `on_cancel`.

    Attributes:
        limits: of the server.
        budget: what the client may still waste.
        blocks: its header blocks.
        streams: requests that are not answered yet, by stream.
        muted: streams that we have ended and the client has not: what it still sends on them is dropped.
        uploads: credit for large bodies.
        max_single: size of a body that may come in one frame.
        expected: 0 for any frame; -1: SETTINGS, the first one; above 0: a CONTINUATION of this stream.
        last_id: of the streams that the client opened.
        goaway_id: streams above it are not looked at.
        recv_window: what the client may send on all streams together.
        send_window: what it takes now on all streams together.
        peer_window: what it takes on a new stream.
        peer_frame_bytes: what it takes in a frame.
        is_shrink_due: it made its header table smaller than the default, which our next block has to acknowledge.
        out: frames, or parts of them, that leave at the end of this turn.
        sending: streams whose answers the windows have not let out, the oldest answer first.
        unsent_bytes: size of what is left of those answers.
        progress: counts reads that held a complete frame.
        is_paused: the client does not read its answers.
        is_held: it has to wait, as the bodies of all connections hold too much.
        body_bytes: what has come of bodies that are not complete.
        is_draining: it was told that no more requests are taken soon.
        is_ending: the connection closes when all is answered.
    """

    __slots__ = (
        "_is_dead",
        "_is_flush_due",
        "_is_open",
        "_noted_bytes",
        "_rest",
        "_server",
        "_transport",
        "_watch",
        "blocks",
        "body_bytes",
        "budget",
        "expected",
        "goaway_id",
        "is_draining",
        "is_ending",
        "is_held",
        "is_paused",
        "is_shrink_due",
        "last_id",
        "limits",
        "max_single",
        "muted",
        "out",
        "peer_frame_bytes",
        "peer_window",
        "progress",
        "recv_window",
        "send_window",
        "sending",
        "streams",
        "unsent_bytes",
        "uploads",
    )

    def __init__(self, server: Http2Server) -> None:
        limits = self.limits = server.limits
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._watch = Watch()
        self._rest = b""
        self._is_open = False
        self._is_dead = False
        self._is_flush_due = False
        self._noted_bytes = 0
        self.body_bytes = 0
        self.budget = Budget(limits)
        self.blocks = HeaderBlocks(limits, self.budget)
        self.streams: dict[int, Stream] = {}
        self.muted: dict[int, None] = {}
        self.uploads = UploadPool(limits)
        self.max_single = min(limits.max_body_bytes, limits.stream_window_bytes)
        self.expected = -1
        self.last_id = 0
        self.goaway_id = MAX_WINDOW
        self.recv_window = CONNECTION_WINDOW
        self.send_window = DEFAULT_WINDOW
        self.peer_window = DEFAULT_WINDOW
        self.peer_frame_bytes = MAX_FRAME_BYTES
        self.is_shrink_due = False
        self.out: list[bytes | memoryview] = []
        self.sending: dict[int, Stream] = {}
        self.unsent_bytes = 0
        self.progress = 0
        self.is_paused = False
        self.is_held = False
        self.is_draining = False
        self.is_ending = False

    # for subclasses

    def read_head(self, headers: dict[bytes, bytes]) -> Head:
        """Judge a request's headers, pseudo-headers among them. Must not depend on anything else: results are kept."""
        raise NotImplementedError

    def on_request(self, stream_id: int, head: Head, body: bytes | bytearray) -> object:
        """Take a complete request; answer with `respond`. What it returns is given to `on_cancel`. Never raises."""
        raise NotImplementedError

    def on_too_large(self, stream_id: int, head: Head) -> None:
        """Answer a request whose body is over `max_body_bytes`."""
        raise NotImplementedError

    def on_cancel(self, token: Any) -> None:
        """The client no longer waits for the answer of a request that `on_request` or `on_duplex` took."""
        raise NotImplementedError

    def on_duplex(self, stream: DuplexStream) -> DuplexToken:
        """A stream begins that is taken and answered in parts; send its headers. Only for heads with `is_duplex`."""
        raise NotImplementedError

    def respond(self, stream_id: int, headers: bytes, body: bytes = b"", trailers: bytes = b"") -> None:
        """Answer a request; nothing happens if its client has gone.

        Args:
            stream_id: of the request.
            headers: an HPACK block that uses no dynamic table, smaller than a frame.
            body: sent as the client's windows allow. Without one the headers end the answer.
            trailers: like `headers`; end the answer after a body.
        """
        stream = self.streams.get(stream_id)
        if stream is None or stream.unsent is not None:
            return
        out = self.out
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)
        if self.is_shrink_due:
            headers = self.prepare_block(headers)
        size = len(body)
        if not size:
            out.append(pack_head(len(headers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream_id) + headers)
            self.close_stream(stream)
        elif size <= self.send_window and size <= stream.send_window and size <= self.peer_frame_bytes:
            self.send_window -= size
            out += (
                pack_head(len(headers) << 8 | HEADERS, END_HEADERS, stream_id),
                headers,
                pack_head(size << 8 | DATA, 0, stream_id),
                body,
                pack_head(len(trailers) << 8 | HEADERS, END_HEADERS | END_STREAM, stream_id),
                trailers,
            )
            self.close_stream(stream)
        else:
            out += (pack_head(len(headers) << 8 | HEADERS, END_HEADERS, stream_id), headers)
            stream.unsent = memoryview(body)
            stream.trailers = trailers
            self.sending[stream_id] = stream
            self.unsent_bytes += size
            pump(self, stream)

    def prepare_block(self, block: bytes) -> bytes:
        """Acknowledge in a header block that the client made its table smaller, if that is due."""
        if self.is_shrink_due:
            # RFC 7541, 4.2 wants the new size before any field.
            self.is_shrink_due = False
            block = b"\x20" + block
        return block

    # transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        if server.is_draining or len(server.connections) >= self.limits.max_connections:
            self._is_dead = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=1 << 20)
        server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_dead = True
        self._drop_all()
        self._note_bodies()

    def pause_writing(self) -> None:
        # A client that does not read its answers sends no more requests.
        self.is_paused = True
        self._pace()

    def resume_writing(self) -> None:
        self.is_paused = False
        self._watch.paused_s = 0.0
        self._pace()

    def hold(self) -> None:
        """Read nothing more: the bodies of all connections hold too much."""
        self.is_held = True
        self._pace()

    def go_on(self) -> None:
        """Read again."""
        self.is_held = False
        self._pace()

    def _pace(self) -> None:
        if self._is_dead or self._transport.is_closing():
            return
        if self.is_paused or self.is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _note_bodies(self) -> None:
        self._noted_bytes = self.body_bytes
        self._server.intake.note(self, self.body_bytes)

    def data_received(self, data: bytes) -> None:
        if self._is_dead:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        # What is answered in this call leaves at its end.
        self._is_flush_due = True
        try:
            pos = read_frames(self, data) if self._is_open else read_preface(self, data)
            if pos < len(data):
                self._rest = data[pos:]
            if pos:
                self.progress += 1
        except Fault as fault:
            self._die(fault.code, fault.detail)
        except Exception:
            # The edge of the process: a fault of ours ends this connection, and the event loop reports it.
            self._die(ErrorCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what there is to send."""
        self._is_flush_due = False
        out = self.out
        if out:
            self.out = []
            if not self._is_dead and not self._transport.is_closing():
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self.body_bytes != self._noted_bytes:
            self._note_bodies()
        if self.is_ending and not self.streams and not self._is_dead:
            self._linger()

    # frames out

    def flush_soon(self) -> None:
        """Write what there is to send, at the end of this turn."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)

    def send_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Send a frame, with all others of this turn."""
        self.out.append(pack_head(len(payload) << 8 | kind, flags, stream_id) + payload)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)

    def send_credit(self, stream_id: int, size: int) -> None:
        """Let the client send more of a body, or with stream 0 of all."""
        self.send_frame(WINDOW_UPDATE, 0, stream_id, pack_u32(size))

    def send_reset(self, stream_id: int, code: int) -> None:
        """Tell the client that a stream has ended."""
        self.send_frame(RST_STREAM, 0, stream_id, pack_u32(code))

    def _send_goaway(self, last_id: int, code: int, detail: str = "") -> None:
        self.send_frame(GOAWAY, 0, 0, pack_goaway(last_id, code) + detail.encode("ascii", "replace"))

    # the end of a stream

    def close_stream(self, stream: Stream) -> None:
        """An answer is complete."""
        stream_id = stream.id
        del self.streams[stream_id]
        if stream.unsent is not None:
            del self.sending[stream_id]
        if stream.is_received:
            budget = self.budget
            budget.frames_left += FRAMES_PER_ANSWER
            budget.aborts_left += 1
        else:
            # RFC 9113, 8.1: asks the client to stop sending a body that is not needed, without an error.
            # What is answered before it is complete costs a client nothing, so it earns nothing.
            self.release(stream)
            self.mute(stream_id)
            self.send_reset(stream_id, ErrorCode.NO_ERROR)

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream with an error; the connection goes on."""
        self.send_reset(stream.id, code)
        self.drop(stream)
        self.budget.charge_abort()

    def drop(self, stream: Stream) -> None:
        """Forget a stream without an answer."""
        self.streams.pop(stream.id, None)
        if not stream.is_received:
            self.mute(stream.id)
        self.release(stream)
        if stream.unsent is not None:
            self.sending.pop(stream.id, None)
            self.unsent_bytes -= len(stream.unsent)
            stream.unsent = None
        if stream.token is not None:
            self.on_cancel(stream.token)

    def _drop_all(self) -> None:
        self.uploads.clear()
        for stream in list(self.streams.values()):
            self.drop(stream)

    def mute(self, stream_id: int) -> None:
        """Pass over what the client still sends on a stream that has ended."""
        muted = self.muted
        muted[stream_id] = None
        if len(muted) > _MAX_MUTED:
            # Its client had time enough to hear that the stream has ended.
            del muted[next(iter(muted))]

    def release(self, stream: Stream) -> None:
        """A body is complete or dropped: its credit goes to those that wait."""
        if stream.upload is not None:
            self.body_bytes -= len(stream.upload.body)
            stream.upload = None
            for stream_id, step in self.uploads.release(stream.id):
                self.send_credit(stream_id, step)

    # the connection from begin to end

    @property
    def is_begun(self) -> bool:
        """A preface, frame or header block was begun and not ended."""
        return bool(self._rest or self.expected)

    def begin(self) -> None:
        """Greet a client that has greeted us."""
        self._is_open = True
        limits = self.limits
        settings = (3, limits.max_streams, 4, self.uploads.first_window, 6, limits.max_header_bytes)
        self.send_frame(SETTINGS, 0, 0, struct.pack(">HIHIHI", *settings))
        self.send_credit(0, CONNECTION_WINDOW - DEFAULT_WINDOW)
        if self._server.is_draining:
            self.drain()

    def sweep(self, now: float) -> None:
        """Refill the budget; end what has been stuck for too long."""
        if self._is_dead:
            return
        self.budget.refill()
        try:
            self._watch.check(self, now)
        except Fault as fault:
            self._die(fault.code, fault.detail)

    def drain(self) -> None:
        """Take no new requests, and close when all are answered.

        In two steps, so that what a client sends before it hears of it is still answered: GOAWAY that names no last
        stream and a PING; when the PING comes back, GOAWAY with the last one.
        """
        if self._is_dead:
            return
        if not self._is_open:
            self._linger()
        elif not self.is_draining:
            self.is_draining = True
            self._send_goaway(MAX_WINDOW, ErrorCode.NO_ERROR)
            self.send_frame(PING, 0, 0, DRAIN_PING)

    def say_goaway(self) -> None:
        """Take no request that comes after this, and close when all are answered."""
        if self.goaway_id == MAX_WINDOW:
            self.goaway_id = self.last_id
            self._send_goaway(self.last_id, ErrorCode.NO_ERROR)
            self.is_ending = True

    def refuse(self, answer: bytes) -> None:
        """Close a connection that speaks another protocol, with an answer in it if there is one."""
        if answer:
            self.out.append(answer)
            self.flush()
        self._linger()

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self._transport.abort()

    def _die(self, code: int, detail: str) -> None:
        """End the connection with an error."""
        self._is_flush_due = True
        self._drop_all()
        self._send_goaway(self.last_id, code, detail)
        self.flush()
        self._linger()

    def _linger(self) -> None:
        """Close our side now and the other after a moment: closing both at once can destroy what is on its way."""
        if self._is_dead:
            return
        self._is_dead = True
        transport = self._transport
        if not transport.is_closing():
            if self.is_paused or self.is_held:
                transport.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
