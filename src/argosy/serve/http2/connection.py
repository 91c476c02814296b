"""HTTP/2 for servers (RFC 9113, RFC 7541): one `asyncio.Protocol` a connection, requests in, answers out.

It knows frames, streams and windows, and nothing of what the requests mean. A subclass gets each complete request in
`on_request` and answers it with `respond`, in the same turn of the event loop or later.

    read.py  ->  on_request  ->  respond  ->  windows.py  ->  flush

This file joins a connection to the event loop. `state.py` has its state, what leaves it, and its end. `read.py` makes
requests of bytes, `control.py` takes all other frames, `windows.py` has flow control, `uploads.py` the credit for large
bodies, `duplex.py` the streams that are answered in parts, and `server.py` the clock. Those are functions over the state:
a call of a function is the cheapest step there is.

What makes it fast: a header block that was seen before is looked up by its bytes, if decoding it cannot change the
decoder's table; a body that came in one frame is one slice; all frames of a turn leave in one write.

What bounds it, whatever a client sends: `Limits`. Bodies that are not complete hold at most
`max_streams * stream_window_bytes + upload_pool_bytes + max_body_bytes` (and one window) per connection: beyond its
first window a stream gets credit only from the connection's pool, and the oldest large body always gets all it needs,
so that large bodies take turns and none waits for ever. Answers are bounded by the streams that may be open.
"""

from __future__ import annotations

import asyncio
import re
import struct
from typing import Final, cast

from argosy.serve.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    ErrorCode,
    Fault,
    pack_head,
)
from argosy.serve.http2.limits import CONNECTION_WINDOW
from argosy.serve.http2.read import read_frames
from argosy.serve.http2.server import Http2Server
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.windows import pump

__all__ = ["Http2Connection"]

_HTTP1_ANSWER: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: 44\r\n"
    b"Connection: close\r\n\r\nThis port speaks gRPC, which needs HTTP/2.\r\n"
)


class Http2Connection(Http2State, asyncio.Protocol):
    """One client's connection. A subclass has `read_head`, `on_request`, `on_too_large` and `on_cancel`."""

    __slots__ = ("_server",)

    def __init__(self, server: Http2Server) -> None:
        super().__init__(server.limits, server.intake, server.flush_later)
        self._server = server

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
            self._flush_later(self)
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

    # transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What `create_server` gives is one that reads and writes; uvloop's do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        if server.is_over or len(server.connections) >= self.limits.max_connections:
            self.is_dead = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=1 << 20)
        server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self.is_dead = True
        self._drop_all()
        self._note_bodies()

    def pause_writing(self) -> None:
        # A client that does not read its answers sends no more requests.
        self.is_paused = True
        self._pace()

    def resume_writing(self) -> None:
        self.is_paused = False
        self.watch.paused_s = 0.0
        self._pace()

    def data_received(self, data: bytes) -> None:
        if self.is_dead:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        # What is answered in this call leaves at its end.
        self._is_flush_due = True
        try:
            pos = read_frames(self, data) if self._is_open else self._greet(data)
            if pos < len(data):
                self._rest = data[pos:]
            if pos:
                self.progress += 1
        except Fault as fault:
            self.die(fault.code, fault.detail)
        except Exception:
            # The edge of the process: a fault of ours ends this connection, and the event loop reports it.
            self.die(ErrorCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            self.flush()

    def _greet(self, data: bytes) -> int:
        """Answer a client's preface, and take its frames; return where the first incomplete one begins."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            if re.match(rb"[A-Z]{3,16} ", data):
                self.out.append(_HTTP1_ANSWER)
                self.flush()
            self.linger()
            return len(data)
        if len(data) < len(PREFACE):
            return 0
        self._is_open = True
        limits = self.limits
        settings = (3, limits.max_streams, 4, self.uploads.first_window, 6, limits.max_header_bytes)
        self.send_frame(SETTINGS, 0, 0, struct.pack(">HIHIHI", *settings))
        self.send_credit(0, CONNECTION_WINDOW - DEFAULT_WINDOW)
        if self._server.is_over:
            self.drain()
        return read_frames(self, data, len(PREFACE))
