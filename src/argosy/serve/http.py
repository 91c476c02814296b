"""The V2 protocol over HTTP/1.1: one `asyncio.Protocol` a connection, no task and no framework on the path.

A connection handles one request at a time; requests that a client sends ahead wait in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final, cast

import httptools

from argosy.errors import ArgosyError, FaultError, InputError, TooLargeError, list_choices
from argosy.serve import openai
from argosy.serve.call import Call
from argosy.serve.errands import Errand
from argosy.serve.http_body import MIN_BYTES, BodyReceiver
from argosy.serve.http_call import HttpCall
from argosy.serve.http_replies import OK_HEAD, encode_binary_head, encode_error, encode_reply
from argosy.serve.http_server import MAX_LENGTH_DIGITS, HttpServer, refuse_method, split_path
from argosy.serve.inflate import WINDOW_BITS, inflate
from argosy.serve.raw import RawCall, find_target, open_raw
from argosy.serve.router import Lane
from argosy.serve.v2 import decode_request

__all__ = ["HttpConnection"]

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_URL_BYTES: Final = 4096
MAX_PARTS: Final = 1024
"""Pieces of a body that are kept as they came; smaller ones after them are put together."""
MAX_PIPELINED: Final = 16
"""Requests that wait before no more are read."""
MAX_FRAMING_BYTES: Final = 64 * 1024
MAX_FRAMING: Final = 16
"""A request may take up so many times the bytes of its body, and MAX_FRAMING_BYTES: the parser holds what has no end."""
REQUEST_TIMEOUT_S: Final = 60.0
"""Time that a client may take to send a request it has begun, or to read an answer."""
IDLE_TIMEOUT_S: Final = 600.0
LINGER_S: Final = 5.0
MAX_LINGER_BYTES: Final = 64 << 20
"""After an error that ends the connection: time for the client to read it, and what it may still send meanwhile."""

# Two of one of these would be read by one server in one way and by the next in another.
_SINGLE_HEADERS: Final = frozenset((b"host", b"content-encoding", b"inference-header-content-length"))
_OFFER_HEADERS: Final = frozenset((b"upgrade", b"connection", b"http2-settings"))


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
        "_is_full",
        "_is_head_complete",
        "_is_paused",
        "_is_receiving",
        "_is_refused",
        "_keep_alive",
        "_last_s",
        "_length",
        "_num_header_bytes",
        "_num_headers",
        "_num_received",
        "_parser",
        "_parts",
        "_server",
        "_size",
        "_transport",
        "_url",
        "_waiting",
        "_waiting_bytes",
        "raw",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._admit = server.admit
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        self._parts: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._num_header_bytes = self._num_headers = self._num_received = 0
        self._url = b""
        self._size = 0
        self._length = 0
        self._is_busy = False
        self._is_full = False
        self._is_head_complete = False
        self._is_paused = False
        self._is_receiving = False
        self._is_refused = False
        self._keep_alive = True
        self._last_s = time.monotonic()
        self._call: Call | Errand | None = None
        self.raw: RawCall | None = None
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0

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
        if self.raw is not None:
            self.raw.abandon()
            self.raw = None

    def pause_writing(self) -> None:
        self._is_full = True
        self._pace()
        if self.raw is not None:
            self.raw.pause()

    def resume_writing(self) -> None:
        self._is_full = False
        self._pace()
        if self.raw is not None:
            self.raw.resume()

    def _pace(self) -> None:
        """Read only while the client takes its answers, and not too far ahead of them."""
        is_ahead = len(self._waiting) >= MAX_PIPELINED or self._waiting_bytes > self._admit.max_body_bytes
        if (self._is_full or is_ahead) == self._is_paused:
            return
        self._is_paused = not self._is_paused
        if self._is_paused:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._num_received += len(data)
            if self._num_received > MAX_LINGER_BYTES:
                self._transport.abort()
            return
        if not self._is_busy and not self._is_receiving:
            # A whole request whose head was parsed before: nothing is left to parse.
            end = data.find(b"\r\n\r\n")
            known = self._server.heads.get(data[:end]) if end > 0 else None
            if known is not None and len(data) == end + 4 + known.length:
                self._is_busy = True
                self._keep_alive = not self._server.is_draining
                try:
                    self._submit(known.deployment.pick(), data[end + 4 :], known.json_bytes)
                except ArgosyError as error:
                    self.send_error(error)
                except Exception as error:
                    self.report(error)
                return
        # Only data that begins where a request begins can be remembered by its head.
        self._data = b"" if self._is_receiving else data
        parts = self._parts
        self._feed(data)
        self._data = b""
        if self._is_receiving and self._length - self._size >= MIN_BYTES and self._can_receive_whole():
            self._transport.set_protocol(BodyReceiver(self, self._length, self._parts))
        elif self._is_receiving and self._parts is parts:
            # All of the data belongs to a request that has not ended.
            self._num_received += len(data)
            if self._num_received > MAX_FRAMING_BYTES + MAX_FRAMING * self._size:
                if self._is_head_complete:
                    self._refuse(InputError("bad_http", detail=f"a chunk's head longer than {MAX_FRAMING_BYTES} bytes"))
                elif self._url:
                    self._refuse(InputError("headers_too_large", num_headers=MAX_HEADERS, limit=MAX_HEADER_BYTES))
                else:
                    self._refuse(InputError("url_too_long", limit=MAX_URL_BYTES))

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as error:
                data = self._decline_upgrade(data[error.args[0] :])
            except httptools.HttpParserCallbackError as error:
                cause = error.__context__
                self._refuse(cause if isinstance(cause, ArgosyError) else FaultError("internal", detail=type(cause).__name__))
                return
            except httptools.HttpParserError as error:
                self._refuse(InputError("bad_http", detail=str(error)))
                return

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Take a request that offers another protocol as if it did not, as RFC 9110 lets a server.

        The parser has stopped before the body: a new one gets the head without the offer.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(refuse_method("CONNECT", self._url))
            return b""
        lines = [b"%b: %b\r\n" % item for item in self._headers.items() if item[0] not in _OFFER_HEADERS]
        if b"close" in self._headers.get(b"connection", b"").lower():
            lines.append(b"connection: close\r\n")
        version = self._parser.get_http_version().encode()
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._data = b""
        return b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self._url, version, b"".join(lines), rest)

    # parser callbacks, in the order of their calls

    def on_message_begin(self) -> None:
        self._parts = []
        self._headers = {}
        self._num_header_bytes = self._num_headers = self._num_received = 0
        self._is_head_complete = False
        self._url = b""
        self._size = self._length = 0
        self._is_receiving = True
        self._last_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
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
        if num_bytes > self._admit.max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._admit.max_body_bytes)
        self._length = num_bytes
        if headers.get(b"expect", b"").lower() == b"100-continue" and not self._is_busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._admit.max_body_bytes:
            raise TooLargeError("body_too_large", limit=self._admit.max_body_bytes)
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
        self._is_receiving = False
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._is_busy:
            self._waiting.append(_Waiting(parser.get_method(), self._url, self._headers, body, parser.should_keep_alive()))
            self._waiting_bytes += len(body)
            self._pace()
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

    def _can_receive_whole(self) -> bool:
        """Say whether what comes next is the rest of one inference body, which is only ever looked at as a buffer."""
        return self._is_head_complete and not self._is_busy and not self._is_refused and self._url.endswith(b"/infer")

    def take_body(self, body: memoryview) -> None:
        """Answer the request whose body a `BodyReceiver` has received; the parser, which waits for it, is replaced."""
        parser = self._parser
        self._parser = cast(Any, httptools.HttpRequestParser(self))
        self._transport.set_protocol(self)
        self._is_receiving = False
        self._is_busy = True
        self._keep_alive = parser.should_keep_alive() and not self._server.is_draining
        self._handle(parser.get_method(), self._url, self._headers, cast(bytes, body))

    # requests

    def _handle(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        if url.startswith(b"/v1/"):
            self._handle_openai(method, url, headers, body)
            return
        try:
            if b"/raw" in url and (target := find_target(url)) is not None:
                self._last_s = time.monotonic()
                self.raw = open_raw(self, self._server, target, (method, headers, body))
            elif method == b"POST":
                lane = self._server.find_lane(url)
                if lane is None:
                    self._call = self._server.answer_post(self, url, headers, body)
                else:
                    self._infer(lane, headers, body)
            elif method == b"GET":
                self.send(*self._server.answer_get(url))
            elif method == b"HEAD":
                self._answer_head(url)
            else:
                raise refuse_method(method.decode("ascii", "replace"), url)
        except ArgosyError as error:
            self.send(*encode_error(error), has_body=method != b"HEAD")
        except Exception as error:
            self.report(error)

    def _answer_head(self, url: bytes) -> None:
        """Answer as to GET, without the body: what followed would be taken for the next answer."""
        headers = b""
        try:
            status, reply = self._server.answer_get(url, "HEAD")
        except ArgosyError as error:
            status, reply, headers = encode_error(error)
        self.send(status, reply, headers, has_body=False)

    def report(self, error: Exception) -> None:
        """The edge of the process: a fault of ours is answered, reported, and ends this connection alone."""
        self._keep_alive = False
        self.send_error(FaultError("internal", detail=type(error).__name__))
        context = {"message": "an HTTP request failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)

    def _handle_openai(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        self._last_s = time.monotonic()
        try:
            self._call = openai.answer(self, self._server, method.decode(), split_path(url), self._unpack(headers, body))
        except ArgosyError as error:
            self.send(*openai.encode_openai_error(error), has_body=method != b"HEAD")
        except Exception as error:
            self.report(error)

    def _unpack(self, headers: dict[bytes, bytes], body: bytes) -> bytes:
        if b"content-encoding" not in headers:
            return body
        encoding = headers[b"content-encoding"].lower()
        if encoding not in WINDOW_BITS:
            known = list_choices(name.decode() for name in WINDOW_BITS)
            raise InputError("unknown_choice", kind="Content-Encoding", got=_show(encoding), known=known)
        return inflate(body, encoding, self._admit.max_body_bytes)

    def _infer(self, lane: Lane, headers: dict[bytes, bytes], body: bytes) -> None:
        if b"content-encoding" in headers:
            body = self._unpack(headers, body)
        json_bytes = headers.get(b"inference-header-content-length")
        self._submit(lane, body, None if json_bytes is None else _read_length(json_bytes))

    def _submit(self, lane: Lane, body: bytes, json_bytes: int | None) -> None:
        now = time.monotonic()
        self._last_s = now
        try:
            if json_bytes is None:
                inputs, request = lane.repeats.decode(body)
            else:
                request = decode_request(lane, body, json_bytes)
                inputs = request.inputs
        except ArgosyError as error:
            lane.series.add_failure(error.status)
            raise
        call = HttpCall(self, lane, inputs, request, len(body), now)
        self._call = call
        self._admit.submit(call)

    # answers

    def send(self, status: int, body: bytes, headers: bytes = b"", *, has_body: bool = True) -> None:
        """Answer the current request, and go on with the next one that waits."""
        self._transport.write(encode_reply(status, body, headers, keep_alive=self._keep_alive, has_body=has_body))
        self._finish()

    def send_json(self, body: bytes) -> None:
        """Answer with JSON: `send(200, body)`, without what only other answers need."""
        if not self._keep_alive or self._waiting:
            self.send(200, body)
            return
        self._transport.write(b"%b%d\r\n\r\n%b" % (OK_HEAD, len(body), body))
        self._call = None
        self._is_busy = False

    def send_binary(self, head: bytes, tail: list[bytes]) -> None:
        """Answer with JSON and the binary tensors that follow it."""
        self._transport.writelines([encode_binary_head(head, tail, keep_alive=self._keep_alive), head, *tail])
        self._finish()

    def send_error(self, error: ArgosyError) -> None:
        """Answer with an error body, as V2 has it."""
        self.send(*encode_error(error))

    def send_outcome(self, error: ArgosyError | None) -> None:
        """Answer a request that has no answer but that it was done, or why not."""
        self.send(200, b"{}") if error is None else self.send_error(error)

    # raw answers, which come in parts

    @property
    def transport(self) -> asyncio.Transport:
        """What parts of an answer are written to."""
        return self._transport

    @property
    def keep_alive(self) -> bool:
        """False where the connection ends with the current answer."""
        return self._keep_alive

    @property
    def is_http_1_0(self) -> bool:
        """True where the client knows no chunks."""
        return self._parser.get_http_version() == "1.0"

    def end_raw(self) -> None:
        """The current answer is written, or cut; go on with the next request that waits."""
        self.raw = None
        self._finish()

    def _finish(self) -> None:
        self._call = None
        self._is_busy = False
        if not self._keep_alive and self._is_refused:
            self._linger()
        elif not self._keep_alive:
            self._is_refused = True
            self._transport.close()
        elif self._waiting:
            # From the loop, not from here: a client's queue must not become our stack.
            self._is_busy = True
            asyncio.get_running_loop().call_soon(self._handle_waiting)

    def _linger(self) -> None:
        """Close our side alone, and drop what the client still sends until it has read the answer and closed its own.

        Closing both with something unread makes the kernel send a reset, which can destroy the answer on its way.
        """
        transport = self._transport
        self._num_received = 0
        if transport.is_closing():
            return
        if self._is_paused:
            transport.resume_reading()
        transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def _handle_waiting(self) -> None:
        if not self._waiting:
            self._is_busy = False
            return
        request = self._waiting.popleft()
        self._waiting_bytes -= len(request.body)
        self._pace()
        self._keep_alive = request.keep_alive and not self._server.is_draining
        self._handle(request.method, request.url, request.headers, request.body)

    def _refuse(self, error: ArgosyError) -> None:
        """Answer what is not a request, and close: where the next one would begin is unknown."""
        if self._is_refused:
            return
        self._is_refused = True
        if self._waiting:
            # What was asked before is answered first; the connection ends after it.
            self._waiting[-1].keep_alive = False
            return
        if self._is_busy:
            self._keep_alive = False
            return
        self._keep_alive = False
        self.send(*(openai.encode_openai_error(error) if self._url.startswith(b"/v1/") else encode_error(error)))

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


def _show(value: bytes) -> str:
    return value[:40].decode("ascii", "replace")


def _read_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise InputError("bad_parameter", name="Inference-Header-Content-Length", got=_show(value), expected="a number")
    return int(value)
