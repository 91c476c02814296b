"""HTTP/2 for servers (RFC 9113, RFC 7541): one `asyncio.Protocol` a connection, requests in, answers out.

It knows frames, streams and windows, and nothing of what the requests mean. A subclass gets each complete request in
`on_request` and answers it with `respond`, in the same turn of the event loop or later.

What makes it fast: a header block that was seen before is looked up by its bytes, if decoding it cannot change the
decoder's table; a body that came in one frame is one slice; all frames of a turn leave in one write.

What bounds it, whatever a client sends: `Limits`. Bodies that are not complete hold at most
`max_streams * stream_window_bytes + upload_pool_bytes + max_body_bytes` (and one window) per connection: beyond its
first window a stream gets credit only from the connection's pool, and the oldest large body always gets all it needs,
so that large bodies take turns and none waits for ever. Answers are bounded by the streams that may be open.
Time is looked at in `sweep` alone.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import hpack

__all__ = ["ErrorCode", "Head", "Http2Connection", "Http2Server", "Limits"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES: Final = 16384
"""The protocol's default, which we do not raise: per frame it costs 1 % of what moving its bytes costs."""
MAX_WINDOW: Final = (1 << 31) - 1
_CONNECTION_WINDOW: Final = 1 << 30
_DEFAULT_WINDOW: Final = 65535
_DEFAULT_TABLE_BYTES: Final = 4096
_MAX_SENT_FRAME_BYTES: Final = 1 << 17
_MAX_CACHED_BLOCKS: Final = 64
_MAX_CACHED_BLOCK_BYTES: Final = 1024
_MAX_MUTED: Final = 4096
_TINY_BYTES: Final = 64
_LINGER_S: Final = 1.0
_DRAIN_PING: Final = b"argosy:d"

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

_unpack_head: Final = struct.Struct(">IBI").unpack_from  # length << 8 | type, flags, stream
_pack_head: Final = struct.Struct(">IBI").pack
_pack_u32: Final = struct.Struct(">I").pack
_pack_goaway: Final = struct.Struct(">II").pack

_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_FORBIDDEN: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")

_HTTP1_ANSWER: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: 44\r\n"
    b"Connection: close\r\n\r\nThis port speaks gRPC, which needs HTTP/2.\r\n"
)


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may use."""

    max_connections: int = 4096
    max_body_bytes: int = 64 << 20
    max_streams: int = 256
    """Requests that may be open at once on a connection."""
    stream_window_bytes: int = 256 << 10
    """What a client may send of a body before it is given more credit; at least 65,535."""
    upload_pool_bytes: int = 32 << 20
    """Credit beyond that for all of a connection's bodies but the oldest."""
    max_unsent_bytes: int = 64 << 20
    """New requests are refused while answers of this size wait for a client to open its window."""
    max_header_bytes: int = 16 << 10
    """Size of a request's headers as RFC 9113 counts them, and of a header block on the wire."""
    max_continuations: int = 8
    aborts_burst: int = 512
    """Streams that a client may cancel, or make us cancel, beyond one for each that is answered."""
    aborts_per_s: int = 128
    frames_burst: int = 20_000
    """Frames that carry no request and no data, beyond `_FRAMES_PER_ANSWER` for each answer."""
    frames_per_s: int = 2_000
    request_timeout_s: float = 30.0
    """Time for a request, header or frame that was begun, and for an answer that the client does not read."""
    min_upload_bytes_per_s: int = 64 << 10
    """A body may take longer by its size over this."""
    idle_timeout_s: float = 600.0


_FRAMES_PER_ANSWER: Final = 16


class Fault(Exception):
    """A connection error: GOAWAY with this code, and close."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Head:
    """What a subclass makes of a request's headers, once for all requests with the same header block.

    Attributes:
        content_length: of the header of that name.
        is_early: hand the request over without waiting for its body; `on_request` must answer it before it returns.
    """

    __slots__ = ("content_length", "is_early")

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.is_early = False


class _Upload:
    """A body that takes more than one frame."""

    __slots__ = ("body", "granted", "is_waiting", "window")

    def __init__(self, window: int) -> None:
        # Not a list of chunks: a client that sends bytes one by one must not make us keep an object for each.
        self.body = bytearray()
        self.window = window
        self.granted = 0
        self.is_waiting = False


class _Stream:
    """A request that is not answered yet."""

    __slots__ = ("head", "id", "is_received", "seen_s", "seen_unsent", "send_window", "token", "trailers", "unsent", "upload")

    def __init__(self, stream_id: int, head: Head, send_window: int) -> None:
        self.id = stream_id
        self.head = head
        self.send_window = send_window
        self.is_received = False
        self.token: Any = None
        self.upload: _Upload | None = None
        self.unsent: memoryview | None = None
        self.trailers = b""
        self.seen_s = 0.0
        self.seen_unsent = 0


def check_request(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """Return a request's headers by name; None when RFC 9113, section 8, calls them malformed.

    A name that stands several times has its values joined with commas.
    """
    headers: dict[bytes, bytes] = {}
    is_regular = False
    for name, value in fields:
        if name[:1] == b":":
            if is_regular or name not in _PSEUDO or name in headers or not _VALUE.fullmatch(value):
                return None
            headers[name] = value
        else:
            is_regular = True
            if not _is_regular(name, value):
                return None
            headers[name] = headers[name] + b"," + value if name in headers else value
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18:
        return None
    return headers if headers.get(b":method") and headers.get(b":scheme") and headers.get(b":path") else None


def _is_regular(name: bytes, value: bytes) -> bool:
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        return False
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


def _keeps_state(block: bytes) -> bool:
    """Say whether a valid block leaves the dynamic table alone: no literal to be indexed, no change of the size."""
    pos, end = 0, len(block)
    while pos < end:
        first = block[pos]
        if first & 0x80:
            pos = _skip_integer(block, pos, 0x7F)[1]
        elif first & 0x60:
            return False
        else:
            index, pos = _skip_integer(block, pos, 0x0F)
            for _ in range(1 if index else 2):
                length, pos = _skip_integer(block, pos, 0x7F)
                pos += length
    return True


def _skip_integer(block: bytes, pos: int, mask: int) -> tuple[int, int]:
    value = block[pos] & mask
    pos += 1
    if value == mask:
        shift = 0
        while True:
            value += (block[pos] & 0x7F) << shift
            shift += 7
            pos += 1
            if block[pos - 1] < 0x80:
                break
    return value, pos


def _strip(payload: bytes, flags: int) -> bytes:
    """Remove padding and priority."""
    start, end = 0, len(payload)
    if flags & _PADDED:
        if not payload:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a length of padding")
        start, end = 1, end - payload[0]
    if flags & _HAS_PRIORITY:
        start += 5
    if start > end:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "padding or priority longer than its frame")
    return payload[start:end]


class Http2Server:
    """What the connections of a front share.

    Attributes:
        connections: those that are open.
        limits: for each of them.
        is_draining: no new connections or requests.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections: set[Http2Connection] = set()
        self.is_draining = False
        self._dirty: list[Http2Connection] = []

    def sweep(self, now: float) -> None:
        """Close what has been stuck for too long, and refill budgets; called every second with `time.monotonic()`."""
        for connection in list(self.connections):
            connection.sweep(now)

    def drain(self) -> None:
        """Take no more requests, answer those that came, then close each connection; `connections` empties."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()

    def flush_later(self, connection: Http2Connection) -> None:
        """Write what a connection has to send at the end of this turn of the event loop."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush_all)
        self._dirty.append(connection)

    def _flush_all(self) -> None:
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            connection.flush()


class Http2Connection(asyncio.Protocol):
    """One client's connection. A subclass has `read_head`, `on_request`, `on_too_large` and `on_cancel`."""

    __slots__ = (
        "_aborts_left",
        "_active_s",
        "_block",
        "_block_flags",
        "_decoder",
        "_drain_s",
        "_expected",
        "_frames_left",
        "_goaway_id",
        "_granted",
        "_heads",
        "_is_dead",
        "_is_draining",
        "_is_ending",
        "_is_flush_due",
        "_is_open",
        "_is_paused",
        "_is_shrink_due",
        "_last_id",
        "_limits",
        "_max_single",
        "_muted",
        "_num_continuations",
        "_out",
        "_paused_s",
        "_peer_frame_bytes",
        "_peer_window",
        "_progress",
        "_recv_window",
        "_rest",
        "_seen_id",
        "_seen_progress",
        "_send_window",
        "_sending",
        "_server",
        "_streams",
        "_stuck_s",
        "_transport",
        "_unsent_bytes",
        "_uploads",
    )

    def __init__(self, server: Http2Server) -> None:
        limits = server.limits
        self._server = server
        self._limits = limits
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._decoder = hpack.Decoder(max_header_list_size=limits.max_header_bytes)
        self._heads: dict[bytes, Head] = {}
        self._streams: dict[int, _Stream] = {}
        # Streams that we have ended and the client has not: what it still sends on them is dropped.
        self._muted: dict[int, None] = {}
        self._uploads: dict[int, _Stream] = {}
        self._granted = 0
        self._sending: dict[int, _Stream] = {}
        self._unsent_bytes = 0
        self._rest = PREFACE[:0]
        self._is_open = False
        self._is_dead = False
        # 0: any frame; -1: SETTINGS, the first one; above 0: a CONTINUATION of this stream.
        self._expected = -1
        self._block = bytearray()
        self._block_flags = 0
        self._num_continuations = 0
        self._last_id = 0
        self._goaway_id = MAX_WINDOW
        self._is_draining = False
        self._is_ending = False
        self._max_single = min(limits.max_body_bytes, limits.stream_window_bytes)
        self._recv_window = _CONNECTION_WINDOW
        self._send_window = _DEFAULT_WINDOW
        self._peer_window = _DEFAULT_WINDOW
        self._peer_frame_bytes = MAX_FRAME_BYTES
        self._is_shrink_due = False
        self._frames_left = limits.frames_burst
        self._aborts_left = limits.aborts_burst
        self._out: list[bytes | memoryview] = []
        self._is_flush_due = False
        self._progress = 0
        self._seen_progress = -1
        self._stuck_s = 0.0
        self._active_s = 0.0
        self._seen_id = 0
        self._drain_s = 0.0
        self._is_paused = False
        self._paused_s = 0.0

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
        """The client no longer waits for the answer of a request that `on_request` took."""
        raise NotImplementedError

    def respond(self, stream_id: int, headers: bytes, body: bytes = b"", trailers: bytes = b"") -> None:
        """Answer a request; nothing happens if its client has gone.

        Args:
            stream_id: of the request.
            headers: an HPACK block that uses no dynamic table, smaller than a frame.
            body: sent as the client's windows allow. Without one the headers end the answer.
            trailers: like `headers`; end the answer after a body.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.unsent is not None:
            return
        out = self._out
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)
        if self._is_shrink_due:
            # The client made its table smaller than the default: RFC 7541, 4.2 wants the new size before any field.
            self._is_shrink_due = False
            headers = b"\x20" + headers
        size = len(body)
        if not size:
            out.append(_pack_head(len(headers) << 8 | _HEADERS, _END_HEADERS | _END_STREAM, stream_id) + headers)
            self._close_stream(stream)
        elif size <= self._send_window and size <= stream.send_window and size <= self._peer_frame_bytes:
            self._send_window -= size
            out += (
                _pack_head(len(headers) << 8 | _HEADERS, _END_HEADERS, stream_id),
                headers,
                _pack_head(size << 8 | _DATA, 0, stream_id),
                body,
                _pack_head(len(trailers) << 8 | _HEADERS, _END_HEADERS | _END_STREAM, stream_id),
                trailers,
            )
            self._close_stream(stream)
        else:
            out += (_pack_head(len(headers) << 8 | _HEADERS, _END_HEADERS, stream_id), headers)
            stream.unsent = memoryview(body)
            stream.trailers = trailers
            self._sending[stream_id] = stream
            self._unsent_bytes += size
            self._pump(stream)

    # connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        if server.is_draining or len(server.connections) >= self._limits.max_connections:
            self._is_dead = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=1 << 20)
        server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_dead = True
        self._drop_all()

    def pause_writing(self) -> None:
        # A client that does not read its answers sends no more requests.
        self._is_paused = True
        if not self._is_dead and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_paused = False
        self._paused_s = 0.0
        if not self._is_dead and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_dead:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        # What is answered in this call leaves at its end.
        self._is_flush_due = True
        try:
            pos = self._read_frames(data, 0) if self._is_open else self._read_preface(data)
            if pos < len(data):
                self._rest = data[pos:]
            if pos:
                self._progress += 1
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
        out = self._out
        if out:
            self._out = []
            if not self._is_dead and not self._transport.is_closing():
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self._is_ending and not self._streams and not self._is_dead:
            self._linger()

    # frames in

    def _read_preface(self, data: bytes) -> int:
        if not PREFACE.startswith(data[: len(PREFACE)]):
            if re.match(rb"[A-Z]{3,16} ", data):
                self._out.append(_HTTP1_ANSWER)
                self.flush()
            self._linger()
            return len(data)
        if len(data) < len(PREFACE):
            return 0
        self._is_open = True
        limits = self._limits
        settings = struct.pack(
            ">HIHIHI", 3, limits.max_streams, 4, max(limits.stream_window_bytes, _DEFAULT_WINDOW), 6, limits.max_header_bytes
        )
        self._send_frame(_SETTINGS, 0, 0, settings)
        self._send_frame(_WINDOW_UPDATE, 0, 0, _pack_u32(_CONNECTION_WINDOW - _DEFAULT_WINDOW))
        if self._server.is_draining:
            self.drain()
        return self._read_frames(data, len(PREFACE))

    def _read_frames(self, data: bytes, pos: int) -> int:
        """Take all complete frames; return where the first incomplete one begins."""
        end = len(data)
        streams = self._streams
        while end - pos >= 9:
            first, flags, stream_id = _unpack_head(data, pos)
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
            if self._expected:
                self._check_expected(kind, flags, stream_id)
            if kind == _DATA:
                stream = streams.get(stream_id)
                if (
                    flags == _END_STREAM
                    and stream is not None
                    and stream.upload is None
                    and not stream.is_received
                    and length <= self._max_single
                ):
                    # The whole body in one frame: what most requests are.
                    self._recv_window -= length
                    if self._recv_window < _CONNECTION_WINDOW // 2:
                        self._credit_connection()
                    self._complete(stream, data[start:stop])
                else:
                    self._on_data(stream_id, flags, data[start:stop])
            elif kind == _HEADERS:
                self._on_headers(stream_id, flags, data[start:stop])
            elif kind <= _CONTINUATION:
                self._handlers[kind](self, stream_id, flags, data[start:stop])
            else:
                self._charge(1)
        else:
            return pos
        raise Fault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are taken")

    def _check_expected(self, kind: int, flags: int, stream_id: int) -> None:
        if self._expected < 0:
            if kind != _SETTINGS or flags & _ACK:
                raise Fault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._expected = 0
        elif kind != _CONTINUATION or stream_id != self._expected:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted by another frame")

    def _charge(self, cost: int) -> None:
        """Pay for a frame that carries no request and no data."""
        self._frames_left -= cost
        if self._frames_left < 0:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def _charge_abort(self) -> None:
        self._aborts_left -= 1
        if self._aborts_left < 0:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "too many cancelled streams")

    # requests in

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if flags & (_PADDED | _HAS_PRIORITY):
            payload = _strip(payload, flags)
        if flags & _END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._expected = stream_id
            self._block = bytearray(payload)
            self._block_flags = flags
            self._num_continuations = 0

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not self._expected:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "a CONTINUATION that continues nothing")
        self._num_continuations += 1
        self._block += payload
        limits = self._limits
        if self._num_continuations > limits.max_continuations or len(self._block) > limits.max_header_bytes:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block over {limits.max_header_bytes} bytes or in too many frames")
        if flags & _END_HEADERS:
            self._expected = 0
            self._on_block(stream_id, self._block_flags, bytes(self._block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, flags, block)
            return
        self._last_id = stream_id
        head = self._heads.get(block) or self._read_block(block)
        is_ended = flags & _END_STREAM
        if stream_id > self._goaway_id:
            # Opened before the client saw our GOAWAY, which tells it that this one was not looked at.
            if not is_ended:
                self._mute(stream_id)
            return
        streams = self._streams
        if len(streams) >= self._limits.max_streams or self._unsent_bytes > self._limits.max_unsent_bytes:
            self._charge(4)
            self._send_frame(_RST_STREAM, 0, stream_id, _pack_u32(ErrorCode.REFUSED_STREAM))
            if not is_ended:
                self._mute(stream_id)
            return
        if head is None:
            self._charge_abort()
            self._send_frame(_RST_STREAM, 0, stream_id, _pack_u32(ErrorCode.PROTOCOL_ERROR))
            if not is_ended:
                self._mute(stream_id)
            return
        stream = streams[stream_id] = _Stream(stream_id, head, self._peer_window)
        if is_ended:
            self._complete(stream, b"")
        elif head.is_early:
            stream.token = self.on_request(stream_id, head, b"")

    def _read_block(self, block: bytes) -> Head | None:
        """Decode a header block of a request; None when it is malformed."""
        headers = check_request(self._decode(block))
        keeps_state = _keeps_state(block)
        if not keeps_state:
            # Indexes into the dynamic table have moved: blocks that held one now say something else.
            self._heads.clear()
        if headers is None:
            return None
        head = self.read_head(headers)
        length = headers.get(b"content-length")
        head.content_length = None if length is None else int(length)
        if keeps_state and len(block) <= _MAX_CACHED_BLOCK_BYTES:
            if len(self._heads) >= _MAX_CACHED_BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        # Decoding costs more than receiving: a flood of large blocks is a flood.
        self._charge(len(block) >> 6)
        if len(block) > self._limits.max_header_bytes:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block over {self._limits.max_header_bytes} bytes")
        try:
            return cast("list[tuple[bytes, bytes]]", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            detail = f"headers over {self._limits.max_header_bytes} bytes"
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, detail) from None
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise Fault(ErrorCode.COMPRESSION_ERROR, f"a header block that cannot be decoded: {type(error).__name__}") from None

    def _on_trailers(self, stream_id: int, flags: int, block: bytes) -> None:
        fields = self._decode(block)
        if not _keeps_state(block):
            self._heads.clear()
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id not in self._muted:
                raise Fault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which is closed or was passed over")
            self._charge(1)
            if flags & _END_STREAM:
                self._muted.pop(stream_id, None)
        elif stream.is_received:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        elif not flags & _END_STREAM or not all(_is_regular(name, value) for name, value in fields):
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._complete(stream, b"" if stream.upload is None else stream.upload.body)

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        """Take a DATA frame that is not a body by itself."""
        length = len(payload)
        self._recv_window -= length
        if self._recv_window < _CONNECTION_WINDOW // 2:
            self._credit_connection()
        stream = self._streams.get(stream_id)
        is_last = flags & _END_STREAM
        if stream is None or stream.is_received:
            self._on_stray_data(stream_id, stream, bool(is_last))
            return
        if flags & _PADDED:
            payload = _strip(payload, flags & _PADDED)
        if len(payload) < _TINY_BYTES and not is_last:
            self._charge(1)
        upload = stream.upload
        if upload is None:
            upload = stream.upload = _Upload(max(self._limits.stream_window_bytes, _DEFAULT_WINDOW))
        upload.window -= length
        body = upload.body
        body += payload
        if upload.window < 0:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif len(body) > self._limits.max_body_bytes:
            stream.is_received = bool(is_last)
            self._release(stream)
            self.on_too_large(stream_id, stream.head)
        elif is_last:
            self._complete(stream, body)
        elif upload.window < self._limits.stream_window_bytes // 2 and not upload.is_waiting:
            self._extend(stream, upload)

    def _on_stray_data(self, stream_id: int, stream: _Stream | None, is_last: bool) -> None:
        if stream is not None:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        elif stream_id in self._muted:
            self._charge(1)
            if is_last:
                self._muted.pop(stream_id, None)
        elif stream_id > self._last_id or not stream_id & 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is not open")
        else:
            raise Fault(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id}, which is closed")

    def _complete(self, stream: _Stream, body: bytes | bytearray) -> None:
        stream.is_received = True
        if stream.upload is not None:
            self._release(stream)
        head = stream.head
        if head.content_length is not None and head.content_length != len(body):
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.token = self.on_request(stream.id, head, body)

    # credit for the client

    def _credit_connection(self) -> None:
        # Streams' windows bound what is held; the connection's only has to be there, so that none waits for another.
        # It never runs out: it is filled up at its half, and a frame is much smaller than that.
        self._send_frame(_WINDOW_UPDATE, 0, 0, _pack_u32(_CONNECTION_WINDOW - self._recv_window))
        self._recv_window = _CONNECTION_WINDOW

    def _extend(self, stream: _Stream, upload: _Upload) -> None:
        """Let a client send more of a body: double what came, if the pool has it or the body is the oldest."""
        uploads = self._uploads
        uploads.setdefault(stream.id, stream)
        limits = self._limits
        step = max(limits.stream_window_bytes, len(upload.body))
        if next(iter(uploads)) != stream.id:
            step = min(step, limits.upload_pool_bytes - self._granted)
            if step < limits.stream_window_bytes:
                upload.is_waiting = True
                return
            self._granted += step
        else:
            # Not far beyond the limit: just so that what is too large is seen to be so, and answered.
            step = max(min(step, limits.max_body_bytes - len(upload.body)), limits.stream_window_bytes)
        upload.is_waiting = False
        upload.granted += step
        upload.window += step
        self._send_frame(_WINDOW_UPDATE, 0, stream.id, _pack_u32(step))

    def _release(self, stream: _Stream) -> None:
        """A body is complete or dropped: its credit goes to those that wait."""
        upload = stream.upload
        stream.upload = None
        uploads = self._uploads
        if upload is None or stream.id not in uploads:
            return
        was_oldest = next(iter(uploads)) == stream.id
        del uploads[stream.id]
        if not was_oldest:
            self._granted -= upload.granted
        elif uploads:
            oldest = next(iter(uploads.values())).upload
            self._granted -= oldest.granted if oldest is not None else 0
        for other in list(uploads.values()):
            if other.upload is not None and other.upload.is_waiting:
                self._extend(other, other.upload)

    # other frames in

    def _on_priority(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._charge(1)
        if not stream_id:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            stream = self._streams.get(stream_id)
            if stream is None:
                raise Fault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY that is not 5 bytes")
            self._reset(stream, ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream(self, stream_id: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM that is not 4 bytes")
        if stream_id > self._last_id or not stream_id & 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which is not open")
        self._charge(1)
        self._muted.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.is_received = True
            self._drop(stream)
            self._charge_abort()

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if len(payload) % 6 or (flags & _ACK and payload):
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self._charge(8 + len(payload) // 2)
        if flags & _ACK:
            return
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 1 and value < _DEFAULT_TABLE_BYTES:
                self._is_shrink_due = True
            elif key == 2 and value > 1:
                raise Fault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
            elif key == 4:
                self._set_peer_window(value)
            elif key == 5:
                if not MAX_FRAME_BYTES <= value < 1 << 24:
                    raise Fault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
                self._peer_frame_bytes = min(value, _MAX_SENT_FRAME_BYTES)
        self._send_frame(_SETTINGS, _ACK, 0, b"")
        self._pump_all()

    def _set_peer_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        change = value - self._peer_window
        self._peer_window = value
        for stream in self._streams.values():
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise Fault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE overflows the window of stream {stream.id}")

    def _on_push_promise(self, stream_id: int, flags: int, payload: bytes) -> None:
        raise Fault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(payload) != 8:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "PING that is not 8 bytes")
        self._charge(1)
        if not flags & _ACK:
            self._send_frame(_PING, _ACK, 0, payload)
        elif self._is_draining and payload == _DRAIN_PING:
            self._say_goaway()

    def _on_goaway(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(payload) < 8:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
        self._charge(1)
        self._is_ending = True

    def _on_window_update(self, stream_id: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE that is not 4 bytes")
        self._charge(1)
        step = int.from_bytes(payload, "big") & MAX_WINDOW
        if not stream_id:
            was_shut = self._send_window <= 0
            self._send_window += step
            if not step:
                raise Fault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if self._send_window > MAX_WINDOW:
                raise Fault(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE overflows the connection's window")
            if was_shut:
                # Otherwise what is unsent waits for its stream's window.
                self._pump_all()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_id or not stream_id & 1:
                raise Fault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which is not open")
            return
        stream.send_window += step
        if not step:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.send_window > MAX_WINDOW:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.unsent is not None:
            self._pump(stream)

    # frames out

    def _send_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self._out.append(_pack_head(len(payload) << 8 | kind, flags, stream_id) + payload)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)

    def _pump_all(self) -> None:
        if self._sending and self._send_window > 0:
            self._charge(len(self._sending) >> 4)
            for stream in list(self._sending.values()):
                self._pump(stream)
                if self._send_window <= 0:
                    break

    def _pump(self, stream: _Stream) -> None:
        """Send what the windows allow of an answer."""
        unsent = stream.unsent
        assert unsent is not None
        before = left = len(unsent)
        out = self._out
        room = min(left, self._send_window, stream.send_window)
        while room > 0:
            size = min(room, self._peer_frame_bytes)
            out += (_pack_head(size << 8 | _DATA, 0, stream.id), unsent[:size])
            unsent = unsent[size:]
            left -= size
            room -= size
        sent = before - left
        self._send_window -= sent
        stream.send_window -= sent
        self._unsent_bytes -= sent
        stream.unsent = unsent
        # The client has to tell us of what it consumed: one WINDOW_UPDATE or two for each frame.
        self._frames_left += 2 * (sent // MAX_FRAME_BYTES)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._server.flush_later(self)
        if not left:
            out += (_pack_head(len(stream.trailers) << 8 | _HEADERS, _END_HEADERS | _END_STREAM, stream.id), stream.trailers)
            self._close_stream(stream)

    def _mute(self, stream_id: int) -> None:
        muted = self._muted
        muted[stream_id] = None
        if len(muted) > _MAX_MUTED:
            # Its client had time enough to hear that the stream has ended.
            del muted[next(iter(muted))]

    def _close_stream(self, stream: _Stream) -> None:
        """An answer is complete."""
        stream_id = stream.id
        del self._streams[stream_id]
        self._frames_left += _FRAMES_PER_ANSWER
        self._aborts_left += 1
        if stream.unsent is not None:
            del self._sending[stream_id]
        if not stream.is_received:
            # RFC 9113, 8.1: asks the client to stop sending a body that is not needed, without an error.
            self._release(stream)
            self._mute(stream_id)
            self._charge_early_end()
            self._send_frame(_RST_STREAM, 0, stream_id, _pack_u32(ErrorCode.NO_ERROR))

    def _charge_early_end(self) -> None:
        # What is answered before it is complete costs a client nothing, so it earns nothing.
        self._frames_left -= _FRAMES_PER_ANSWER
        self._aborts_left -= 1

    def _reset(self, stream: _Stream, code: int) -> None:
        """End a stream with an error; the connection goes on."""
        self._send_frame(_RST_STREAM, 0, stream.id, _pack_u32(code))
        self._drop(stream)
        self._charge_abort()

    def _drop(self, stream: _Stream) -> None:
        """Forget a stream without an answer."""
        self._streams.pop(stream.id, None)
        if not stream.is_received:
            self._mute(stream.id)
        self._release(stream)
        if stream.unsent is not None:
            self._sending.pop(stream.id, None)
            self._unsent_bytes -= len(stream.unsent)
            stream.unsent = None
        if stream.token is not None:
            self.on_cancel(stream.token)

    def _drop_all(self) -> None:
        for stream in list(self._streams.values()):
            self._uploads.pop(stream.id, None)
            self._drop(stream)

    # the end

    def drain(self) -> None:
        """Take no new requests, and close when all are answered.

        In two steps, so that what a client sends before it hears of it is still answered: GOAWAY that names no last
        stream and a PING; when the PING comes back, GOAWAY with the last one.
        """
        if self._is_dead:
            return
        if not self._is_open:
            self._linger()
        elif not self._is_draining:
            self._is_draining = True
            self._send_frame(_GOAWAY, 0, 0, _pack_goaway(MAX_WINDOW, ErrorCode.NO_ERROR))
            self._send_frame(_PING, 0, 0, _DRAIN_PING)

    def _say_goaway(self) -> None:
        if self._goaway_id == MAX_WINDOW:
            self._goaway_id = self._last_id
            self._send_frame(_GOAWAY, 0, 0, _pack_goaway(self._last_id, ErrorCode.NO_ERROR))
            self._is_ending = True

    def _die(self, code: int, detail: str) -> None:
        """End the connection with an error."""
        self._is_flush_due = True
        self._drop_all()
        self._send_frame(_GOAWAY, 0, 0, _pack_goaway(self._last_id, code) + detail.encode("ascii", "replace"))
        self.flush()
        self._linger()

    def _linger(self) -> None:
        """Close our side now and the other after a moment: closing both at once can destroy what is on its way."""
        if self._is_dead:
            return
        self._is_dead = True
        transport = self._transport
        if not transport.is_closing():
            if self._is_paused:
                transport.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)

    def sweep(self, now: float) -> None:
        """Refill budgets; end what has been stuck for too long."""
        limits = self._limits
        if self._is_dead:
            return
        self._frames_left = min(self._frames_left + limits.frames_per_s, limits.frames_burst)
        self._aborts_left = min(self._aborts_left + limits.aborts_per_s, limits.aborts_burst)
        try:
            self._sweep_connection(now)
            for stream in list(self._streams.values()):
                self._sweep_stream(stream, now)
        except Fault as fault:
            self._die(fault.code, fault.detail)

    def _sweep_connection(self, now: float) -> None:
        limits = self._limits
        if not (self._rest or self._expected) or self._seen_progress != self._progress:
            self._seen_progress = self._progress
            self._stuck_s = now
        elif now - self._stuck_s > limits.request_timeout_s:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "a frame or header block was begun and not ended")
        if self._is_paused:
            self._paused_s = self._paused_s or now
            if now - self._paused_s > limits.request_timeout_s:
                self._transport.abort()
        if self._streams or self._last_id != self._seen_id or not self._active_s:
            self._active_s = now
            self._seen_id = self._last_id
        elif now - self._active_s > limits.idle_timeout_s:
            self._say_goaway()
        if self._is_draining:
            self._drain_s = self._drain_s or now
            if now - self._drain_s >= _LINGER_S:
                self._say_goaway()

    def _sweep_stream(self, stream: _Stream, now: float) -> None:
        limits = self._limits
        if not stream.is_received:
            upload = stream.upload
            if not stream.seen_s or (upload is not None and upload.is_waiting):
                stream.seen_s = now
            elif now - stream.seen_s > limits.request_timeout_s + (
                0 if upload is None else len(upload.body) / limits.min_upload_bytes_per_s
            ):
                self._reset(stream, ErrorCode.CANCEL)
        elif stream.unsent is not None:
            if stream.seen_unsent != len(stream.unsent):
                stream.seen_unsent = len(stream.unsent)
                stream.seen_s = now
            elif now - stream.seen_s > limits.request_timeout_s:
                self._reset(stream, ErrorCode.CANCEL)

    _handlers: ClassVar[dict[int, Callable[[Any, int, int, bytes], None]]] = {
        _PRIORITY: _on_priority,
        _RST_STREAM: _on_rst_stream,
        _SETTINGS: _on_settings,
        _PUSH_PROMISE: _on_push_promise,
        _PING: _on_ping,
        _GOAWAY: _on_goaway,
        _WINDOW_UPDATE: _on_window_update,
        _CONTINUATION: _on_continuation,
    }
