"""Read HTTP/1.1 requests out of what a connection receives, within limits; the parser is llhttp's, by httptools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import httptools

from argosy.errors import ArgosyError, FaultError, InputError, TooLargeError
from argosy.serve.http.body import MIN_BYTES, BodyReceiver
from argosy.serve.http.routes import refuse_method

if TYPE_CHECKING:
    from argosy.serve.http.connection import HttpConnection

__all__ = ["HttpReader", "Received"]

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_URL_BYTES: Final = 4096
MAX_PARTS: Final = 1024
"""Pieces of a body that are kept as they came; smaller ones after them are put together."""
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
    """By their names in lower case."""
    body: bytes
    keep_alive: bool
    head: bytes
    """All that stood before its body, if it came in one piece and nothing else with it; without the empty line."""


class HttpReader:
    """Collects one request at a time, and gives it to its connection.

    Args:
        connection: gets requests (`take_request`) and what is none (`refuse`).
        max_body_bytes: of a request.

    Attributes:
        is_receiving: a request has begun and not ended.
        url: of the request that came last, as far as it has come.
    """

    __slots__ = (
        "_connection", "_data", "_headers", "_is_head_complete", "_length", "_max_body_bytes", "_num_header_bytes",
        "_num_headers", "_num_received", "_parser", "_parts", "_size", "is_receiving", "url",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection, max_body_bytes: int) -> None:
        self._connection = connection
        self._max_body_bytes = max_body_bytes
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        self._parts: list[bytes] = []
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
        self._connection.note_body(self._size if self.is_receiving else 0)
        if not self.is_receiving:
            return
        if self._length - self._size >= MIN_BYTES and self._can_receive_whole():
            self._connection.transport.set_protocol(BodyReceiver(self._connection, self, self._length, self._parts))
        elif self._parts is parts:
            # All of the data belongs to a request that has not ended.
            self._num_received += len(data)
            if self._num_received > MAX_FRAMING_BYTES + MAX_FRAMING * self._size:
                self._connection.refuse(self._explain_framing())

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
                self._connection.refuse(
                    cause if isinstance(cause, ArgosyError) else FaultError("internal", detail=type(cause).__name__)
                )
                return
            except httptools.HttpParserError as error:
                self._connection.refuse(InputError("bad_http", detail=str(error)))
                return

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Take a request that offers another protocol as if it did not, as RFC 9110 lets a server.

        The parser has stopped before the body: a new one gets the head without the offer.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._connection.refuse(refuse_method("CONNECT", self.url))
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
        self._headers = {}
        self._num_header_bytes = self._num_headers = self._num_received = 0
        self._is_head_complete = False
        self.url = b""
        self._size = self._length = 0
        self.is_receiving = True
        self._connection.note_time()

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
        if key in self._headers and key in _SINGLE_HEADERS:
            raise InputError("bad_http", detail=f"header {key.decode('ascii')} stands twice")
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
        if headers.get(b"expect", b"").lower() == b"100-continue" and not self._connection.is_busy:
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._max_body_bytes)
        parts = self._parts
        if len(parts) < MAX_PARTS:
            parts.append(body)
            return
        if len(parts) == MAX_PARTS:
            parts.append(cast(bytes, bytearray()))
        parts[-1] += body

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return  # without its body: `_decline_upgrade` begins anew
        self.is_receiving = False
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        method = parser.get_method()
        head = b""
        if parser.should_keep_alive() and method == b"POST" and len(parts) == 1:
            head = self._data[: -len(body)]
            if not (head.startswith(b"POST ") and head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1):
                head = b""  # else the data that came last was exactly this request
        self._connection.take_request(Received(method, self.url, self._headers, body, parser.should_keep_alive(), head[:-4]))

    def _can_receive_whole(self) -> bool:
        """Say whether what comes next is the rest of one inference body, which is only ever looked at as a buffer."""
        connection = self._connection
        is_next = not (connection.is_busy or connection.is_refused)
        return is_next and self._is_head_complete and self.url.endswith(b"/infer")

    def take_body(self, body: memoryview) -> None:
        """Take the body that a `BodyReceiver` has received; the parser, which waits for it, is replaced."""
        parser = self._parser
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self.is_receiving = False
        self._connection.note_body(0)
        self._connection.transport.set_protocol(self._connection)
        self._connection.take_request(
            Received(parser.get_method(), self.url, self._headers, cast(bytes, body), parser.should_keep_alive(), b"")
        )
