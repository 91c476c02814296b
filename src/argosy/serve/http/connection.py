"""The V2 protocol over HTTP/1.1: one `asyncio.Protocol` a connection, no task and no framework on the path.

A connection handles one request at a time; requests that a client sends ahead wait in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final, cast

from argosy.errors import ArgosyError, FaultError, InputError, list_choices
from argosy.serve.dispatch.call import Call, Lane
from argosy.serve.dispatch.errands import Errand
from argosy.serve.http import openai
from argosy.serve.http.call import HttpCall
from argosy.serve.http.raw import HttpRawCall, find_target, open_raw
from argosy.serve.http.reader import HttpReader, Received
from argosy.serve.http.replies import OK_HEAD, encode_binary_head, encode_error, encode_reply
from argosy.serve.http.routes import MAX_LENGTH_DIGITS, HttpServer, refuse_method, split_path
from argosy.serve.v2.inflate import WINDOW_BITS, inflate
from argosy.serve.v2.json_body import decode_request
from argosy.serve.v2.raw_binary import decode_raw_binary

__all__ = ["HttpConnection"]

MAX_PIPELINED: Final = 16
"""Requests that wait before no more are read."""
REQUEST_TIMEOUT_S: Final = 60.0
"""Time that a client may take to send a request it has begun, or to read an answer."""
IDLE_TIMEOUT_S: Final = 600.0
LINGER_S: Final = 5.0
_OLD_NAMES: Final = {b"x-gzip": b"gzip"}
"""Of encodings, as RFC 9110, 8.4.1.3, has them taken."""
MAX_LINGER_BYTES: Final = 64 << 20
"""After an error that ends the connection: time for the client to read it, and what it may still send meanwhile."""


class HttpConnection(asyncio.Protocol):
    """One client's connection: its reader collects a request, `send` answers it."""

    __slots__ = (
        "_admit", "_call", "_coming_bytes", "_is_full", "_is_held", "_is_overdrawn", "_is_paused", "_keep_alive", "_last_s",
        "_num_ignored", "_reader", "_server", "_transport", "_waiting", "_waiting_bytes", "is_busy", "is_refused", "raw",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._admit = server.admit
        self._reader = HttpReader(self, server.admit.max_body_bytes)
        self._is_full = False
        self._is_held = False
        self._is_overdrawn = False
        self._is_paused = False
        self._keep_alive = True
        self._last_s = time.monotonic()
        self._num_ignored = 0
        self._call: Call | Errand | None = None
        self._waiting: deque[Received] = deque()
        self._waiting_bytes = 0
        self._coming_bytes = 0
        self.raw: HttpRawCall | None = None
        self.is_busy = False
        """A request is being answered."""
        self.is_refused = False
        """The connection ends: nothing more is read."""

    # connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= self._server.max_connections:
            self.is_refused = True
            self._transport.abort()
            return
        # Answers are written as they are made, not when this turn of the loop ends.
        self._transport.set_write_buffer_limits(0)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._waiting.clear()
        self._waiting_bytes = 0
        self.note_body(0)
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
        if self._is_held:
            self._is_held = False
            self._handle_waiting()
        if self.raw is not None:
            self.raw.resume()

    def _pace(self) -> None:
        """Read only while the client takes its answers, and not too far ahead of them."""
        is_ahead = len(self._waiting) >= MAX_PIPELINED or self._waiting_bytes > self._admit.max_body_bytes
        if (self._is_full or is_ahead or self._is_overdrawn) == self._is_paused:
            return
        self._is_paused = not self._is_paused
        if self._is_paused:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def note_body(self, num_bytes: int) -> None:
        """So much has come of a body that is not complete."""
        self._coming_bytes = num_bytes
        self._admit.intake.note(self, num_bytes + self._waiting_bytes)

    def hold(self) -> None:
        """Read nothing more: the bodies of all connections hold too much."""
        self._is_overdrawn = True
        self._pace()

    def go_on(self) -> None:
        """Read again."""
        self._is_overdrawn = False
        self.note_time()
        self._pace()

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            self._num_ignored += len(data)
            if self._num_ignored > MAX_LINGER_BYTES:
                self._transport.abort()
            return
        if not self.is_busy and not self._reader.is_receiving:
            # A whole request whose head was parsed before: nothing is left to parse.
            end = data.find(b"\r\n\r\n")
            known = self._server.heads.get(data[:end]) if end > 0 else None
            if known is not None and len(data) == end + 4 + known.length:
                self.is_busy = True
                self._keep_alive = True
                try:
                    self._submit(known.route.pick(), data[end + 4 :], known.json_bytes)
                except ArgosyError as error:
                    self.send_error(error)
                except Exception as error:
                    self.report(error)
                return
        self._reader.feed(data)

    def note_time(self) -> None:
        """A request has begun to arrive."""
        self._last_s = time.monotonic()

    def take_request(self, request: Received) -> None:
        """Answer a complete request, or keep it until those before it are answered."""
        if self.is_busy:
            self._waiting.append(request)
            self._waiting_bytes += len(request.body)
            self._pace()
            return
        self.is_busy = True
        self._keep_alive = request.keep_alive
        if request.head:
            self._server.remember_head(request.head, request.url, request.headers)
        self._handle(request.method, request.url, request.headers, request.body)

    # requests

    def _handle(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes | memoryview) -> None:
        if url.startswith(b"/v1/"):
            self._handle_openai(method, url, headers, body)
            return
        try:
            if b"/raw" in url and (target := find_target(url)) is not None:
                self._last_s = time.monotonic()
                self.raw = open_raw(self, self._server.router, self._admit, target, (method, headers, body))
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

    def _handle_openai(self, method: bytes, url: bytes, headers: dict[bytes, bytes], body: bytes | memoryview) -> None:
        self._last_s = time.monotonic()
        try:
            self._call = openai.answer(self, self._server, method.decode(), split_path(url), self._unpack(headers, body))
        except ArgosyError as error:
            self.send(*openai.encode_openai_error(error), has_body=method != b"HEAD")
        except Exception as error:
            self.report(error)

    def _unpack(self, headers: dict[bytes, bytes], body: bytes | memoryview) -> bytes | memoryview:
        if b"content-encoding" not in headers:
            return body
        encoding = headers[b"content-encoding"].lower()
        if encoding == b"identity":
            return body
        encoding = _OLD_NAMES.get(encoding, encoding)
        if encoding not in WINDOW_BITS:
            known = list_choices(name.decode() for name in (b"identity", *WINDOW_BITS))
            raise InputError("unknown_choice", kind="Content-Encoding", got=_show(encoding), known=known)
        return inflate(body, encoding, self._admit.max_body_bytes)

    def _infer(self, lane: Lane, headers: dict[bytes, bytes], body: bytes | memoryview) -> None:
        if b"content-encoding" in headers:
            body = self._unpack(headers, body)
        json_bytes = headers.get(b"inference-header-content-length")
        self._submit(lane, body, None if json_bytes is None else _read_length(json_bytes))

    def _submit(self, lane: Lane, body: bytes | memoryview, json_bytes: int | None) -> None:
        now = time.monotonic()
        self._last_s = now
        try:
            if json_bytes is None:
                inputs, request = lane.repeats.decode(body)
            else:
                request = decode_request(lane, body, json_bytes) if json_bytes else decode_raw_binary(lane, body)
                inputs = request.inputs
        except ArgosyError as error:
            lane.series.add_failure(error.status)
            raise
        timeout_s = request.timeout_s
        deadline_s = now + (lane.timeout_s if timeout_s is None else timeout_s)
        call = HttpCall(lane, inputs, request.num_rows, len(body), now, deadline_s, request.form, request.priority)
        call.sender = self
        call.request = request
        self._call = call
        self._admit.submit(call)

    # answers

    def send(self, status: int, body: bytes, headers: bytes = b"", *, has_body: bool = True) -> None:
        """Answer the current request, and go on with the next one that waits."""
        self.settle_end()
        self._transport.write(encode_reply(status, body, headers, keep_alive=self._keep_alive, has_body=has_body))
        self._finish()

    def send_json(self, body: bytes) -> None:
        """Answer with JSON: `send(200, body)`, without what only other answers need."""
        if not self._keep_alive or self._waiting or self._server.is_draining:
            self.send(200, body)
            return
        self._transport.write(b"%b%d\r\n\r\n%b" % (OK_HEAD, len(body), body))
        self._call = None
        self.is_busy = False

    def send_binary(self, head: bytes, tail: list[bytes]) -> None:
        """Answer with JSON and the binary tensors that follow it."""
        self.settle_end()
        self._transport.writelines([encode_binary_head(head, tail, keep_alive=self._keep_alive), head, *tail])
        self._finish()

    def settle_end(self) -> None:
        """Decide, where the head of an answer is written, whether the connection ends with it.

        While the server drains it does, unless its client has sent more requests already.
        """
        if self._server.is_draining and not self._waiting:
            self._keep_alive = False

    def end_with_answer(self) -> None:
        """Close the connection after the current answer."""
        self._keep_alive = False

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
        return self._reader.is_http_1_0

    def refuse_raw(self, error: ArgosyError, *, has_body: bool) -> None:
        """Answer a raw request with an error, for nothing of an answer is written."""
        self.raw = None
        self.send(*encode_error(error), has_body=has_body)

    def end_raw(self) -> None:
        """The current answer is written, or cut; go on with the next request that waits."""
        self.raw = None
        self._finish()

    def _finish(self) -> None:
        self._call = None
        self.is_busy = False
        if not self._keep_alive and self.is_refused:
            self._linger()
        elif not self._keep_alive:
            self.is_refused = True
            self._transport.close()
        elif self._waiting:
            self.is_busy = True
            # A client that asks ahead and does not read must not fill the memory with answers.
            self._is_held = self._is_full
            if self._is_held:
                return
            # From the loop, not from here: a client's queue must not become our stack.
            asyncio.get_running_loop().call_soon(self._handle_waiting)

    def _linger(self) -> None:
        """Close our side alone, and drop what the client still sends until it has read the answer and closed its own.

        Closing both with something unread makes the kernel send a reset, which can destroy the answer on its way.
        """
        transport = self._transport
        if transport.is_closing():
            return
        if self._is_paused:
            transport.resume_reading()
        transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def _handle_waiting(self) -> None:
        if not self._waiting:
            self.is_busy = False
            return
        request = self._waiting.popleft()
        self._waiting_bytes -= len(request.body)
        self.note_body(self._coming_bytes)
        self._pace()
        self._keep_alive = request.keep_alive
        self._handle(request.method, request.url, request.headers, request.body)

    def refuse(self, error: ArgosyError) -> None:
        """Answer what is not a request, and close: where the next one would begin is unknown."""
        if self.is_refused:
            return
        self.is_refused = True
        if self._waiting:
            # What was asked before is answered first; the connection ends after it.
            self._waiting[-1] = self._waiting[-1]._replace(keep_alive=False)
            return
        if self.is_busy:
            self._keep_alive = False
            return
        self._keep_alive = False
        self.send(*(openai.encode_openai_error(error) if self._reader.url.startswith(b"/v1/") else encode_error(error)))

    # owner

    def check_idle(self, now: float) -> None:
        """Close the connection if its client has been silent for too long."""
        is_unread = self._transport.get_write_buffer_size() > 0
        limit_s = REQUEST_TIMEOUT_S if self._reader.is_receiving or is_unread else IDLE_TIMEOUT_S
        if (not self.is_busy or self._is_held) and not self._is_overdrawn and now - self._last_s > limit_s:
            if is_unread:
                # Closing would wait until the client has read the rest.
                self._transport.abort()
            else:
                self._transport.close()

    def close_if_idle(self) -> None:
        """Close, unless a request is being received or answered: its answer ends the connection, as the server drains."""
        if not self.is_busy and not self._reader.is_receiving:
            self._transport.close()


def _show(value: bytes) -> str:
    return value[:40].decode("ascii", "replace")


def _read_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise InputError("bad_parameter", name="Inference-Header-Content-Length", got=_show(value), expected="a number")
    return int(value)
