"""Read HTTP/1.1 requests out of what a connection receives, within limits; the parser is llhttp's, by httptools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

import httptools
import numpy as np

from argosy.errors import ArgosyError, FaultError, InputError, TooLargeError
from argosy.serve.http.routes import refuse_method

__all__ = ["HttpReader", "Received", "RequestSink"]

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_URL_BYTES: Final = 4096
MAX_PARTS: Final = 1024
"""Pieces of a body that are kept as they came; smaller ones after them are put together."""
MIN_WHOLE_BYTES: Final = 64 << 10
"""Of a body that are still to come, from which on it goes straight into one buffer; with less, the parser is as fast."""
MAX_FRAMING_BYTES: Final = 64 * 1024
MAX_FRAMING: Final = 16
"""A request may take up so many times the bytes of its body, and MAX_FRAMING_BYTES: the parser holds what has no end."""

# Two of one of these would be read by one server in one way and by the next in another.
_SINGLE_HEADERS: Final = frozenset((b"host", b"content-encoding", b"inference-header-content-length"))
_OFFER_HEADERS: Final = frozenset((b"upgrade", b"connection", b"http2-settings"))


class Received(NamedTuple):
    """A complete request."""

    method: bytes
    url: bytes
    headers: dict[bytes, bytes]
    """By their names in lower case; the values of one that stands several times are joined."""
    body: bytes | memoryview
    """A view where it is the body of an inference that is large."""
    keep_alive: bool
    head: bytes
    """All that stood before its body, if it came in one piece and nothing else with it; without the empty line."""


class RequestSink(Protocol):
    """The connection that a reader collects requests for."""

    is_busy: bool
    """A request is being answered."""
    is_refused: bool
    """Nothing more is read."""

    @property
    def transport(self) -> asyncio.Transport:
        """Of the connection."""
        ...

    def take_request(self, request: Received) -> None:
        """A request is complete."""
        ...

    def refuse(self, error: ArgosyError) -> None:
        """What came is no request."""
        ...

    def note_body(self, num_bytes: int) -> None:
        """So much has come of a body that is not complete."""
        ...

    def note_time(self) -> None:
        """A request has begun to arrive."""
        ...


class HttpReader:
    """Collects one request at a time, and gives it to its connection.

    Args:
        sink: gets requests, and what is none.
        max_body_bytes: of a request.

    Attributes:
        is_receiving: a request has begun and not ended.
        url: of the request that came last, as far as it has come.
    """

    __slots__ = (
        "_data", "_headers", "_is_head_complete", "_length", "_max_body_bytes", "_num_header_bytes",
        "_num_headers", "_num_received", "_parser", "_parts", "_rest", "_sink", "_size", "is_receiving", "url",
    )  # fmt: skip

    def __init__(self, sink: RequestSink, max_body_bytes: int) -> None:
        self._sink = sink
        self._max_body_bytes = max_body_bytes
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        self._parts: list[bytes] = []
        self._rest = bytearray()
        """What has come of a body beyond MAX_PARTS pieces."""
        self._headers: dict[bytes, bytes] = {}
        self._num_header_bytes = self._num_headers = self._num_received = 0
        self._is_head_complete = False
        self._size = self._length = 0
        self.is_receiving = False
        self.url = b""

    @property
    def is_http_1_0(self) -> bool:
        """True where the client of the last request knows no chunks."""
        return self._parser.get_http_version() == "1.0"

    def feed(self, data: bytes) -> None:
        """Read what a connection has received."""
        # Only data that begins where a request begins can be remembered by its head.
        self._data = b"" if self.is_receiving else data
        parts = self._parts
        self._parse(data)
        self._data = b""
        self._sink.note_body(self._size if self.is_receiving else 0)
        if not self.is_receiving:
            return
        if self._length - self._size >= MIN_WHOLE_BYTES and self._can_receive_whole():
            BodyReceiver(self._sink, self._take_body, self._length, (*self._parts, self._rest))
        elif self._parts is parts:
            # All of the data belongs to a request that has not ended.
            self._num_received += len(data)
            if self._num_received > MAX_FRAMING_BYTES + MAX_FRAMING * self._size:
                self._sink.refuse(self._explain_framing())

    def _explain_framing(self) -> InputError:
        if self._is_head_complete:
            return InputError("bad_http", detail=f"a chunk's head longer than {MAX_FRAMING_BYTES} bytes")
        if self.url:
            return InputError("headers_too_large", num_headers=MAX_HEADERS, limit=MAX_HEADER_BYTES)
        return InputError("url_too_long", limit=MAX_URL_BYTES)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as error:
                data = self._decline_upgrade(data[error.args[0] :])
            except httptools.HttpParserCallbackError as error:
                cause = error.__context__
                self._sink.refuse(
                    cause if isinstance(cause, ArgosyError) else FaultError("internal", detail=type(cause).__name__)
                )
                return
            except httptools.HttpParserError as error:
                self._sink.refuse(InputError("bad_http", detail=str(error)))
                return

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Take a request that offers another protocol as if it did not, as RFC 9110 lets a server.

        The parser has stopped before the body: a new one gets the head without the offer.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._sink.refuse(refuse_method("CONNECT", self.url))
            return b""
        lines = [b"%b: %b\r\n" % item for item in self._headers.items() if item[0] not in _OFFER_HEADERS]
        if b"close" in self._headers.get(b"connection", b"").lower():
            lines.append(b"connection: close\r\n")
        version = self._parser.get_http_version().encode()
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        return b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, b"".join(lines), rest)

    # parser callbacks, in the order of their calls

    def on_message_begin(self) -> None:
        self._parts = []
        self._rest.clear()
        self._headers = {}
        self._num_header_bytes = self._num_headers = self._num_received = 0
        self._is_head_complete = False
        self.url = b""
        self._size = self._length = 0
        self.is_receiving = True
        self._sink.note_time()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_URL_BYTES:
            raise InputError("url_too_long", limit=MAX_URL_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > MAX_HEADER_BYTES or self._num_headers > MAX_HEADERS:
            raise InputError("headers_too_large", num_headers=MAX_HEADERS, limit=MAX_HEADER_BYTES)
        if self._is_head_complete:
            return  # a trailer: it must not change how the body is read
        key = name.lower()
        earlier = self._headers.get(key)
        if earlier is not None:
            if key in _SINGLE_HEADERS:
                raise InputError("bad_http", detail=f"header {key.decode('ascii')} stands twice")
            # RFC 9110, 5.3; RFC 6265, 5.4.
            value = earlier + (b"; " if key == b"cookie" else b", ") + value
        self._headers[key] = value

    def on_headers_complete(self) -> None:
        self._is_head_complete = True
        headers = self._headers
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            raise InputError("bad_http", detail="header host is missing")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise InputError("bad_http", detail="the only Transfer-Encoding that is known is chunked")
        length = headers.get(b"content-length")
        num_bytes = 0 if length is None else int(length)
        if num_bytes > self._max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._max_body_bytes)
        self._length = num_bytes
        if headers.get(b"expect", b"").lower() == b"100-continue" and not self._sink.is_busy:
            self._sink.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._max_body_bytes)
        if len(self._parts) < MAX_PARTS:
            self._parts.append(body)
        else:
            self._rest += body

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return  # without its body: `_decline_upgrade` begins anew
        self.is_receiving = False
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join((*parts, self._rest))
        method = parser.get_method()
        head = b""
        if parser.should_keep_alive() and method == b"POST" and len(parts) == 1:
            head = self._data[: -len(body)]
            if not (head.startswith(b"POST ") and head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1):
                head = b""  # else the data that came last was exactly this request
        self._sink.take_request(Received(method, self.url, self._headers, body, parser.should_keep_alive(), head[:-4]))

    def _can_receive_whole(self) -> bool:
        """Say whether what comes next is the rest of one inference body, which is only ever looked at as a buffer."""
        is_next = not (self._sink.is_busy or self._sink.is_refused)
        return is_next and self._is_head_complete and self.url.endswith(b"/infer")

    def _take_body(self, body: memoryview) -> None:
        """Take the body that a `BodyReceiver` has received; the parser, which waits for it, is replaced."""
        parser = self._parser
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self.is_receiving = False
        self._sink.note_body(0)
        self._sink.take_request(Received(parser.get_method(), self.url, self._headers, body, parser.should_keep_alive(), b""))


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands for a connection until the body of its request is complete: the kernel writes it straight into one buffer.

    The parser would copy each piece that arrives, and the pieces would be joined once more at the end.

    Args:
        sink: the connection's; its protocol gets everything else that happens meanwhile.
        take: gets the body.
        size: bytes of the body.
        parts: what has come of it.
    """

    def __init__(
        self, sink: RequestSink, take: Callable[[memoryview], None], size: int, parts: Sequence[bytes | bytearray]
    ) -> None:
        self._sink = sink
        self._take = take
        # Not filled: pages that no byte has come for are never touched.
        self._body = np.empty(size, np.uint8).data
        self._pos = 0
        for part in parts:
            self._body[self._pos : self._pos + len(part)] = part
            self._pos += len(part)
        self._protocol = sink.transport.get_protocol()
        sink.transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the kernel writes what comes next; never beyond the body, where another request may begin."""
        return self._body[self._pos :]

    def buffer_updated(self, nbytes: int) -> None:
        self._pos += nbytes
        self._sink.note_body(self._pos)
        if self._pos == len(self._body):
            self._sink.transport.set_protocol(self._protocol)
            self._take(self._body)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
