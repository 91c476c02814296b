"""The state of an HTTP/2 connection, what leaves it, and the ends of its streams and of itself.

The functions of `read.py`, `control.py`, `duplex.py`, `windows.py` and `server.py` read and change it: for them are all
attributes and methods without an underscore. `connection.py` derives from it, and joins it to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from argosy.serve.dispatch.intake import Intake
from argosy.serve.http2.frames import (
    DEFAULT_WINDOW,
    GOAWAY,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    pack_goaway,
    pack_head,
    pack_u32,
)
from argosy.serve.http2.headers import HeaderBlocks
from argosy.serve.http2.limits import CONNECTION_WINDOW, FRAMES_PER_ANSWER, Budget, Limits
from argosy.serve.http2.streams import DuplexStream, DuplexToken, Head, Http2Stream
from argosy.serve.http2.uploads import UploadPool

__all__ = ["DRAIN_PING", "Http2State", "Watch"]

DRAIN_PING: Final = b"argosy:d"
"""Sent when draining begins: when it comes back, the client has seen the GOAWAY before it."""
_MAX_MUTED: Final = 4096
_LINGER_S: Final = 1.0


@dataclass(slots=True)
class Watch:
    """When a connection was last seen to move. Times are those of the sweeps that saw it; 0 is never."""

    seen_progress: int = -1
    stuck_s: float = 0.0
    """When the frame or header block that has not ended was first seen, or there was none."""
    seen_id: int = 0
    active_s: float = 0.0
    drain_s: float = 0.0
    """Since when it drains."""
    paused_s: float = 0.0
    """Since when the client has not read its answers; 0 again as soon as it does."""


class Http2State:
    """What is known of one client's connection.

    Args:
        limits: of the server.
        intake: the server's account of bodies that are not complete.
        flush_later: has the server call `flush` at the end of this turn of the event loop.

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
        watch: what the sweeps have seen of it.
        is_paused: the client does not read its answers.
        is_held: it has to wait, as the bodies of all connections hold too much.
        body_bytes: what has come of bodies that are not complete.
        is_draining: it was told that no more requests are taken soon.
        is_ending: the connection closes when all is answered.
        is_dead: nothing is read or written any more.
    """

    __slots__ = (
        "_flush_later",
        "_intake",
        "_is_flush_due",
        "_is_open",
        "_noted_bytes",
        "_rest",
        "_transport",
        "blocks",
        "body_bytes",
        "budget",
        "expected",
        "goaway_id",
        "is_dead",
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
        "watch",
    )

    # Set by `connection_made`, before anything else happens.
    _transport: asyncio.Transport

    def __init__(self, limits: Limits, intake: Intake, flush_later: Callable[[Http2State], None]) -> None:
        self._intake = intake
        self._flush_later = flush_later
        self._rest = b""
        self._is_open = False
        self._is_flush_due = False
        self._noted_bytes = 0
        self.limits = limits
        self.budget = Budget(limits)
        self.blocks = HeaderBlocks(limits, self.budget)
        self.streams: dict[int, Http2Stream] = {}
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
        self.sending: dict[int, Http2Stream] = {}
        self.unsent_bytes = 0
        self.progress = 0
        self.watch = Watch()
        self.is_paused = False
        self.is_held = False
        self.body_bytes = 0
        self.is_draining = False
        self.is_ending = False
        self.is_dead = False

    # what a protocol makes of requests

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

    # what leaves

    def flush_soon(self) -> None:
        """Write what there is to send, at the end of this turn."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._flush_later(self)

    def flush(self) -> None:
        """Write what there is to send."""
        self._is_flush_due = False
        out = self.out
        if out:
            self.out = []
            if not self.is_dead and not self._transport.is_closing():
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self.body_bytes != self._noted_bytes:
            self._note_bodies()
        if self.is_ending and not self.streams and not self.is_dead:
            self.linger()

    def send_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Send a frame, with all others of this turn."""
        self.out.append(pack_head(len(payload) << 8 | kind, flags, stream_id) + payload)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._flush_later(self)

    def send_credit(self, stream_id: int, size: int) -> None:
        """Let the client send more of a body, or with stream 0 of all."""
        self.send_frame(WINDOW_UPDATE, 0, stream_id, pack_u32(size))

    def send_reset(self, stream_id: int, code: int) -> None:
        """Tell the client that a stream has ended."""
        self.send_frame(RST_STREAM, 0, stream_id, pack_u32(code))

    def _send_goaway(self, last_id: int, code: int, detail: str = "") -> None:
        self.send_frame(GOAWAY, 0, 0, pack_goaway(last_id, code) + detail.encode("ascii", "replace"))

    def prepare_block(self, block: bytes) -> bytes:
        """Acknowledge in a header block that the client made its table smaller, if that is due."""
        if self.is_shrink_due:
            # RFC 7541, 4.2 wants the new size before any field.
            self.is_shrink_due = False
            block = b"\x20" + block
        return block

    # the end of a stream

    def close_stream(self, stream: Http2Stream) -> None:
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

    def reset(self, stream: Http2Stream, code: int) -> None:
        """End a stream with an error; the connection goes on."""
        self.send_reset(stream.id, code)
        self.drop(stream)
        self.budget.charge_abort()

    def drop(self, stream: Http2Stream) -> None:
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

    def release(self, stream: Http2Stream) -> None:
        """A body is complete or dropped: its credit goes to those that wait."""
        if stream.upload is not None:
            self.body_bytes -= len(stream.upload.body)
            stream.upload = None
            for stream_id, step in self.uploads.release(stream.id):
                self.send_credit(stream_id, step)

    # how fast it is read

    def hold(self) -> None:
        """Read nothing more: the bodies of all connections hold too much."""
        self.is_held = True
        self._pace()

    def go_on(self) -> None:
        """Read again."""
        self.is_held = False
        self._pace()

    def _pace(self) -> None:
        if self.is_dead or self._transport.is_closing():
            return
        if self.is_paused or self.is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _note_bodies(self) -> None:
        self._noted_bytes = self.body_bytes
        self._intake.note(self, self.body_bytes)

    # the end of the connection

    @property
    def is_begun(self) -> bool:
        """A preface, frame or header block was begun and not ended."""
        return bool(self._rest or self.expected)

    @property
    def is_open(self) -> bool:
        """The client's preface has come."""
        return self._is_open

    def drain(self) -> None:
        """Take no new requests, and close when all are answered.

        In two steps, so that what a client sends before it hears of it is still answered: GOAWAY that names no last
        stream and a PING; when the PING comes back, GOAWAY with the last one.
        """
        if self.is_dead:
            return
        if not self._is_open:
            self.linger()
        elif not self.is_draining:
            self.is_draining = True
            self._send_goaway(MAX_WINDOW, ErrorCode.NO_ERROR)
            self.send_frame(PING, 0, 0, DRAIN_PING)
            for stream in list(self.streams.values()):
                if isinstance(stream, DuplexStream):
                    stream.token.drain()

    def say_goaway(self) -> None:
        """Take no request that comes after this, and close when all are answered."""
        if self.goaway_id == MAX_WINDOW:
            self.goaway_id = self.last_id
            self._send_goaway(self.last_id, ErrorCode.NO_ERROR)
            self.is_ending = True

    def die(self, code: int, detail: str) -> None:
        """End the connection with an error."""
        self._is_flush_due = True
        self._drop_all()
        self._send_goaway(self.last_id, code, detail)
        self.flush()
        self.linger()

    def linger(self) -> None:
        """Close our side now and the other after a moment: closing both at once can destroy what is on its way."""
        if self.is_dead:
            return
        self.is_dead = True
        transport = self._transport
        if not transport.is_closing():
            if self.is_paused or self.is_held:
                transport.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self._transport.abort()
