"""The raw endpoint over HTTP: any method on `/v2/models/{m}[/versions/{v}]/raw[/...]`, answered by the model's own code.

What the worker sends is checked as what a client sends: a status, headers and a length that would break the connection's
framing end that one answer, not the connection's next.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from asyncio import Transport
from http.client import responses
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote

import msgspec
import orjson

from argosy.errors import ArgosyError, NotFoundError
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.router import Router
from argosy.serve.dispatch.streams import RawCall, StreamQueue

__all__ = ["HttpRawCall", "RawSender", "RawTarget", "find_target", "open_raw"]

MAX_ANSWER_HEADERS: Final = 100
_PATH: Final = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/raw(/.*)?", re.DOTALL)
# Those of one connection, which end here; and what opens doors elsewhere, which model code has no use for.
_NOT_PASSED: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"expect", b"http2-settings", b"authorization", b"proxy-authorization", b"proxy-authenticate"),
    )
)
_NOT_ANSWERED: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "proxy-authenticate", "proxy-authorization"),
    )
)
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_RESET: Final = struct.pack("ii", 1, 0)


class RawTarget(NamedTuple):
    """What a raw URL names, percent-decoded but for the query."""

    model: str
    version: str
    path: str
    query: str


class _Head(msgspec.Struct):
    """What a worker sends before the body."""

    status: int
    headers: list[tuple[str, str]]
    length: int | None


_decode_head: Final = msgspec.json.Decoder(_Head).decode


def find_target(url: bytes) -> RawTarget | None:
    """What a raw URL names; None when it is another's."""
    path, _, query = url.partition(b"#")[0].partition(b"?")
    if path.startswith((b"http://", b"https://")):
        path = b"/" + path.split(b"//", 1)[1].partition(b"/")[2]
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    model, version, rest = (unquote((part or b"").decode("latin-1"), errors="replace") for part in found.groups())
    return RawTarget(model, version, rest, query.decode("latin-1"))


class RawSender(Protocol):
    """The connection that a raw answer goes to, in parts."""

    @property
    def transport(self) -> Transport:
        """What parts of an answer are written to."""
        ...

    @property
    def keep_alive(self) -> bool:
        """False where the connection ends with the current answer."""
        ...

    @property
    def is_http_1_0(self) -> bool:
        """True where the client knows no chunks."""
        ...

    def end_raw(self) -> None:
        """The current answer is written, or cut."""
        ...

    def refuse_raw(self, error: ArgosyError, *, has_body: bool) -> None:
        """Answer with an error, for nothing of an answer is written."""
        ...

    def settle_end(self) -> None:
        """Decide whether the connection ends with the answer whose head is written now."""
        ...

    def end_with_answer(self) -> None:
        """Close after the current answer."""
        ...


def find_queue(router: Router, target: RawTarget) -> StreamQueue:
    """Where raw requests wait for the version that answers.

    Raises:
        NotFoundError: no such deployment or version, or it has no raw endpoint.
        UnavailableError: the deployment takes no requests now.
    """
    lane = router.find(target.model, target.version)
    if not lane.streams.max_streams:
        raise NotFoundError("no_raw", model=lane.name, version=lane.version)
    return lane.streams


def open_raw(
    sender: RawSender,
    router: Router,
    admit: Admit,
    target: RawTarget,
    request: tuple[bytes, dict[bytes, bytes], bytes | memoryview],
) -> HttpRawCall:
    """Make a call of a request (method, headers, body), and queue it.

    Raises:
        NotFoundError, UnavailableError: as `find_queue`.
        LoadError: it is not admitted.
    """
    call = HttpRawCall(sender, find_queue(router, target), target, request)
    admit.submit_raw(call)
    return call


def _encode_request(target: RawTarget, method: bytes, headers: dict[bytes, bytes]) -> bytes:
    named = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
    passed = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers.items()
        if name not in _NOT_PASSED and name not in named
    }
    return orjson.dumps({"method": method.decode("latin-1"), "path": target.path, "query": target.query, "headers": passed})


class HttpRawCall(RawCall):
    """A raw request that came over HTTP."""

    __slots__ = ("_has_body", "_is_chunked", "_left", "_method", "_sender", "_status")

    def __init__(
        self,
        sender: RawSender,
        queue: StreamQueue,
        target: RawTarget,
        request: tuple[bytes, dict[bytes, bytes], bytes | memoryview],
    ) -> None:
        self._method, headers, body = request
        super().__init__(queue, _encode_request(target, self._method, headers), body, time.monotonic())
        self._sender = sender
        self._has_body = self._method != b"HEAD"
        self._is_chunked = False
        self._left: int | None = None
        self._status = 0

    def begin(self, data: bytes) -> None:
        """Check the head of the answer, and write it.

        Raises:
            ModelError: it is none that can be written.
        """
        try:
            head = _decode_head(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.spoil(str(error)) from None
        self._check(head)
        sender = self._sender
        self._status = head.status
        lines = [f"HTTP/1.1 {head.status} {responses.get(head.status, '')}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in head.headers]
        if head.status in (204, 304):
            self._has_body = False
        elif head.length is not None:
            self._left = head.length
            lines.append(f"Content-Length: {head.length}\r\n")
        elif sender.is_http_1_0:
            sender.end_with_answer()  # the end of the connection is the end of the body
        else:
            self._is_chunked = True
            lines.append("Transfer-Encoding: chunked\r\n")
        sender.settle_end()
        if not sender.keep_alive:
            lines.append("Connection: close\r\n")
        self.has_begun = True
        sender.transport.write("".join((*lines, "\r\n")).encode("latin-1"))

    def _check(self, head: _Head) -> None:
        if not 200 <= head.status <= 599:
            raise self.spoil(f"its status is {head.status}, expected 200 to 599")
        if head.status in (204, 304) and head.length != 0:
            raise self.spoil(f"its status is {head.status}, which has no body")
        if head.length is not None and head.length < 0:
            raise self.spoil(f"its length is {head.length}")
        if len(head.headers) > MAX_ANSWER_HEADERS:
            raise self.spoil(f"it has {len(head.headers)} headers, at most {MAX_ANSWER_HEADERS} are taken")
        for name, value in head.headers:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise self.spoil(f"its header {name[:80]!r} has the value {value[:80]!r}, which no HTTP header can hold")
            if name.lower() in _NOT_ANSWERED:
                raise self.spoil(f"its header {name[:80]!r} is the server's to write")

    def add(self, data: bytes) -> None:
        """Write a part of the body.

        Raises:
            ModelError: the body is longer than its head said.
        """
        if not self._has_body or not data:
            return
        if self._is_chunked:
            self._sender.transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
            return
        if self._left is not None:
            if len(data) > self._left:
                raise self.spoil("its body is longer than its head said")
            self._left -= len(data)
        self._sender.transport.write(data)

    def end(self, now: float) -> None:
        """End the answer.

        Raises:
            ModelError: the body is shorter than its head said.
        """
        if self._has_body and self._left:
            raise self.spoil("its body is shorter than its head said")
        self.is_done = True
        if self._status < 400:
            self.queue.lane.series.add_answers([now - self.started_s], 1, now - self.sent_s, 0.0)
        else:
            self.queue.lane.series.add_failure(self._status)
        if self._is_chunked and self._has_body:
            self._sender.transport.write(b"0\r\n\r\n")
        self._sender.end_raw()

    def fail(self, error: ArgosyError) -> None:
        """Answer with an error; or cut the answer that was begun, so that its client sees that it is not whole."""
        self.is_done = True
        self.queue.lane.series.add_failure(error.status)
        sender = self._sender
        if not self.has_begun:
            sender.refuse_raw(error, has_body=self._has_body)
            return
        transport = sender.transport
        sender.end_with_answer()
        if sender.is_http_1_0 or transport.get_write_buffer_size():
            # An end like any other would look like the body's; or its client takes nothing, not even that.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        sender.end_raw()
