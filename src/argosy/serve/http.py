"""The V2 protocol over HTTP/1.1: one `asyncio.Protocol` a connection, no task and no framework on the path.

A connection handles one request at a time; requests that a client sends ahead wait in order.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from typing import Any, Final, cast

import httptools
import orjson
from numpy.typing import NDArray

from argosy.errors import ArgosyError, FaultError, InputError, NotFoundError, RequestError, TooLargeError
from argosy.serve.call import Call
from argosy.serve.http_server import MAX_LENGTH_DIGITS, HttpServer
from argosy.serve.router import Deployment, Lane
from argosy.serve.v2 import Request, decode_request, encode_binary, encode_json

__all__ = ["HttpConnection"]

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_URL_BYTES: Final = 4096
MAX_PIPELINED: Final = 16
REQUEST_TIMEOUT_S: Final = 60.0
"""Time that a client may take to send a request it has begun, or to read an answer."""
IDLE_TIMEOUT_S: Final = 600.0

_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_JSON: Final = b"application/json"
_OK_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "


class HttpCall(Call):
    """An inference request that came over HTTP."""

    __slots__ = ("_connection", "_id", "_wanted")

    def __init__(
        self, connection: HttpConnection, lane: Lane, request: Request, size_bytes: int, started_s: float, deadline_s: float
    ) -> None:
        # Written out: a call of the base class costs a fifth of a microsecond on every request.
        self.lane = lane
        self.inputs = request.inputs
        self.num_rows = request.num_rows
        self.size_bytes = size_bytes
        self.started_s = started_s
        self.deadline_s = deadline_s
        self.attempts = 0
        self.is_done = False
        self._connection = connection
        self._id = request.id
        self._wanted = request.wanted

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the answer as JSON, or as JSON and binary tensors."""
        connection = self._connection
        wanted = self._wanted
        try:
            if wanted is None or not any(want.is_binary for want in wanted):
                connection.send(200, encode_json(self.lane, outputs, self._id, wanted))
            else:
                head, tail = encode_binary(self.lane, outputs, self._id, wanted)
                connection.send_binary(head, tail)
        except ArgosyError as error:
            connection.send_error(error)

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self._connection.send_error(error)


class _Waiting:
    """A complete request that a client sent ahead of an answer."""

    __slots__ = ("body", "headers", "keep_alive", "method", "url")

    def __init__(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes, keep_alive: bool) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


class HttpConnection(asyncio.Protocol):
    """One client's connection: parser callbacks collect a request, `send` answers it."""

    __slots__ = (
        "_admit",
        "_call",
        "_data",
        "_headers",
        "_is_busy",
        "_is_receiving",
        "_is_refused",
        "_keep_alive",
        "_last_s",
        "_num_header_bytes",
        "_parser",
        "_parts",
        "_server",
        "_size",
        "_transport",
        "_url",
        "_waiting",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._admit = server.admit
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        self._parts: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._num_header_bytes = 0
        self._url = b""
        self._size = 0
        self._is_busy = False
        self._is_receiving = False
        self._is_refused = False
        self._keep_alive = True
        self._last_s = time.monotonic()
        self._call: HttpCall | None = None
        self._waiting: deque[_Waiting] = deque()

    # connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= self._server.max_connections:
            self._is_refused = True
            self._transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._waiting.clear()
        if self._call is not None:
            # Nobody waits for the answer any more: the batcher drops the request.
            self._call.is_done = True
            self._call = None

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if not self._is_busy and not self._is_receiving:
            # A whole request whose head was parsed before: nothing is left to parse.
            end = data.find(b"\r\n\r\n")
            known = self._server.heads.get(data[:end])
            if known is not None and len(data) == end + 4 + known.length:
                self._is_busy = True
                self._keep_alive = not self._server.is_draining
                self._run(known.deployment, data[end + 4 :], known.json_bytes)
                return
        # Only data that begins where a request begins can be remembered by its head.
        self._data = b"" if self._is_receiving else data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(InputError("bad_http", detail="upgrade is not offered"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ArgosyError) else FaultError("internal", detail=type(cause).__name__))
        except httptools.HttpParserError as error:
            self._refuse(InputError("bad_http", detail=str(error)))
        self._data = b""

    # parser callbacks, in the order of their calls

    def on_message_begin(self) -> None:
        self._parts = []
        self._headers = {}
        self._num_header_bytes = 0
        self._url = b""
        self._size = 0
        self._is_receiving = True
        self._last_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            raise InputError("bad_http", detail=f"URL longer than {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > MAX_HEADER_BYTES or len(self._headers) >= MAX_HEADERS:
            raise InputError("bad_http", detail=f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        length = self._headers.get(b"content-length")
        if length is not None and int(length) > self._admit.max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._admit.max_body_bytes)
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._admit.max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._admit.max_body_bytes)
        self._parts.append(body)

    def on_message_complete(self) -> None:
        parser = self._parser
        self._is_receiving = False
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._is_busy:
            if len(self._waiting) >= MAX_PIPELINED:
                raise InputError("bad_http", detail=f"more than {MAX_PIPELINED} requests sent ahead")
            waiting = _Waiting(parser.get_method(), self._url, self._headers, body, parser.should_keep_alive())
            self._waiting.append(waiting)
            return
        self._is_busy = True
        method = parser.get_method()
        keep_alive = parser.should_keep_alive()
        self._keep_alive = keep_alive and not self._server.is_draining
        if keep_alive and method == b"POST" and len(parts) == 1:
            head = self._data[: -len(body)]
            if head.startswith(b"POST ") and head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1:
                # The data that came last was exactly this request.
                self._server.remember_head(head[:-4], self._url, self._headers)
        self._handle(method, self._url, self._headers, body)

    # requests

    def _handle(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        try:
            if method == b"POST":
                lane = self._server.find_lane(url)
                if lane is None:
                    raise NotFoundError("no_path", method="POST", path=url[:200].decode("ascii", "replace"))
                self._infer(lane, headers, body)
            elif method in (b"GET", b"HEAD"):
                status, reply = self._server.answer_get(url)
                self.send(status, b"" if method == b"HEAD" else reply)
            else:
                raise _method_not_allowed(method, url)
        except ArgosyError as error:
            self.send_error(error)
        except Exception as error:  # the edge of the process: one request must not end the connection's loop
            self.send_error(FaultError("internal", detail=type(error).__name__))
            raise

    def _infer(self, lane: Lane, headers: dict[bytes, bytes], body: bytes) -> None:
        if b"content-encoding" in headers:
            body = _inflate(body, headers[b"content-encoding"], self._admit.max_body_bytes)
        json_bytes = headers.get(b"inference-header-content-length")
        self._submit(lane, body, None if json_bytes is None else _read_length(json_bytes))

    def _run(self, deployment: Deployment, body: bytes, json_bytes: int | None) -> None:
        try:
            self._submit(deployment.pick(), body, json_bytes)
        except ArgosyError as error:
            self.send_error(error)
        except Exception as error:  # as in _handle
            self.send_error(FaultError("internal", detail=type(error).__name__))
            raise

    def _submit(self, lane: Lane, body: bytes, json_bytes: int | None) -> None:
        now = time.monotonic()
        self._last_s = now
        try:
            request = decode_request(lane, body, json_bytes)
        except ArgosyError as error:
            lane.series.add_failure(error.status)
            raise
        timeout_s = lane.timeout_s if request.timeout_s is None else request.timeout_s
        call = HttpCall(self, lane, request, len(body), now, now + timeout_s)
        self._call = call
        self._admit.submit(call)

    # answers

    def send(self, status: int, body: bytes, headers: bytes = b"", content_type: bytes = _JSON) -> None:
        """Answer the current request, and go on with the next one that waits."""
        if status == 200 and self._keep_alive:
            # All that differs between good answers.
            self._write(b"%b%d\r\n\r\n%b" % (_OK_HEAD, len(body), body))
            return
        self._write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n%b"
            % (
                status,
                _REASONS[status],
                content_type,
                len(body),
                headers,
                b"" if self._keep_alive else b"Connection: close\r\n",
                body,
            )
        )

    def send_binary(self, head: bytes, tail: list[bytes]) -> None:
        """Answer with JSON and the binary tensors that follow it."""
        length = len(head) + sum(map(len, tail))
        self._transport.writelines(
            [
                b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
                b"Content-Length: %d\r\n%b\r\n" % (len(head), length, b"" if self._keep_alive else b"Connection: close\r\n"),
                head,
                *tail,
            ]
        )
        self._finish()

    def send_error(self, error: ArgosyError) -> None:
        """Answer with an error body, as V2 has it."""
        headers = b"" if error.retry_after_s is None else b"Retry-After: %d\r\n" % max(1, round(error.retry_after_s))
        status = 405 if error.key == "method_not_allowed" else error.status
        self.send(status, orjson.dumps({"error": str(error)}), headers)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._finish()

    def _finish(self) -> None:
        self._call = None
        self._is_busy = False
        if not self._keep_alive:
            self._is_refused = True
            self._transport.close()
        elif self._waiting:
            # From the loop, not from here: a client's queue must not become our stack.
            self._is_busy = True
            asyncio.get_running_loop().call_soon(self._handle_waiting)

    def _handle_waiting(self) -> None:
        if not self._waiting:
            self._is_busy = False
            return
        request = self._waiting.popleft()
        self._keep_alive = request.keep_alive and not self._server.is_draining
        self._handle(request.method, request.url, request.headers, request.body)

    def _refuse(self, error: ArgosyError) -> None:
        """Answer what is not a request, and close: where the next one would begin is unknown."""
        if self._is_refused:
            return
        self._is_refused = True
        if self._is_busy:
            # Its answer comes first; the connection ends after it.
            self._keep_alive = False
            return
        self._keep_alive = False
        self.send_error(error)

    # owner

    def check_idle(self, now: float) -> None:
        """Close the connection if its client has been silent for too long."""
        limit_s = REQUEST_TIMEOUT_S if self._is_receiving or self._transport.get_write_buffer_size() else IDLE_TIMEOUT_S
        if not self._is_busy and now - self._last_s > limit_s:
            self._transport.close()

    def close_when_idle(self) -> None:
        """Close now, or after the answer that is due."""
        if self._is_busy:
            self._keep_alive = False
        else:
            self._transport.close()


def _method_not_allowed(method: bytes, url: bytes) -> RequestError:
    return InputError("method_not_allowed", method=method.decode("ascii", "replace"), path=url[:200].decode("ascii", "replace"))


def _read_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        shown = value[:40].decode("ascii", "replace")
        raise InputError("bad_parameter", name="Inference-Header-Content-Length", got=shown, expected="a number")
    return int(value)


def _inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Unpack a compressed body, never to more than `limit` bytes."""
    windows = {b"gzip": 31, b"deflate": 15}
    bits = windows.get(encoding.lower())
    if bits is None:
        shown = encoding[:40].decode("ascii", "replace")
        raise InputError("unknown_choice", kind="Content-Encoding", got=shown, known="deflate, gzip")
    unpacker = zlib.decompressobj(bits)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError("bad_http", detail=str(error)) from None
    if len(data) > limit or not unpacker.eof:
        raise TooLargeError("body_too_large", limit=limit) if len(data) > limit else InputError("bad_http", detail="body is cut")
    return data
