"""The raw endpoint over HTTP: any method on `/v2/models/{m}[/versions/{v}]/raw[/...]`, answered by the model's own code.

What the worker sends is checked as what a client sends: a status, headers and a length that would break the connection's
framing end that one answer, not the connection's next.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from http.client import responses
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

import msgspec
import orjson

from argosy.errors import ArgosyError, DeadlineError, ModelError, NotFoundError
from argosy.serve.http.replies import encode_error

if TYPE_CHECKING:
    from argosy.serve.dispatch.router import Lane, Router
    from argosy.serve.dispatch.streams import Stream
    from argosy.serve.http.connection import HttpConnection
    from argosy.serve.http.routes import HttpServer

__all__ = ["RawCall", "Target", "find_target", "open_raw"]

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


class Target(NamedTuple):
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


def find_target(url: bytes) -> Target | None:
    """What a raw URL names; None when it is another's."""
    path, _, query = url.partition(b"#")[0].partition(b"?")
    if path.startswith((b"http://", b"https://")):
        path = b"/" + path.split(b"//", 1)[1].partition(b"/")[2]
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    model, version, rest = (unquote((part or b"").decode("latin-1"), errors="replace") for part in found.groups())
    return Target(model, version, rest, query.decode("latin-1"))


def find_lane(router: Router, target: Target) -> Lane:
    """The lane that answers.

    Raises:
        NotFoundError: no such deployment or version, or it has no raw endpoint.
        UnavailableError: the deployment takes no requests now.
    """
    lane = router.find(target.model, target.version)
    if not lane.streams.max_streams:
        raise NotFoundError("no_raw", model=lane.name, version=lane.version)
    return lane


def open_raw(
    connection: HttpConnection, server: HttpServer, target: Target, request: tuple[bytes, dict[bytes, bytes], bytes]
) -> RawCall:
    """Make a call of a request (method, headers, body), and queue it.

    Raises:
        NotFoundError, UnavailableError: as `find_lane`.
        LoadError: it is not admitted.
    """
    call = RawCall(connection, find_lane(server.router, target), target, request)
    server.admit.submit_raw(call)
    return call


def _encode_request(target: Target, method: bytes, headers: dict[bytes, bytes]) -> bytes:
    named = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
    passed = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers.items()
        if name not in _NOT_PASSED and name not in named
    }
    return orjson.dumps({"method": method.decode("latin-1"), "path": target.path, "query": target.query, "headers": passed})


class RawCall:
    """One raw request, and how far its answer is.

    Attributes:
        lane: the version that answers it; changes when it waited and is routed again.
        head: what the worker is told beside the body.
        body: as received.
        started_s: `time.monotonic()` when the request was complete.
        sent_s: when it was handed to a worker.
        deadline_s: after which the answer, all of it, is not waited for.
        attempts: how many workers died while they answered it.
        has_begun: the head of the answer was written: it can only be ended or cut.
        is_done: answered, failed, or its client went away.
        stream: what carries it, while a worker has it.
    """

    __slots__ = (
        "_connection",
        "_has_body",
        "_is_chunked",
        "_left",
        "_method",
        "_status",
        "attempts",
        "body",
        "deadline_s",
        "has_begun",
        "head",
        "is_done",
        "lane",
        "sent_s",
        "started_s",
        "stream",
    )

    def __init__(
        self, connection: HttpConnection, lane: Lane, target: Target, request: tuple[bytes, dict[bytes, bytes], bytes]
    ) -> None:
        self._method, headers, self.body = request
        self.lane = lane
        self.head = _encode_request(target, self._method, headers)
        self.started_s = self.sent_s = time.monotonic()
        self.deadline_s = self.started_s + lane.timeout_s
        self.attempts = 0
        self.has_begun = self.is_done = False
        self.stream: Stream | None = None
        self._connection = connection
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
        connection = self._connection
        self._status = head.status
        lines = [f"HTTP/1.1 {head.status} {responses.get(head.status, '')}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in head.headers]
        if head.status in (204, 304):
            self._has_body = False
        elif head.length is not None:
            self._left = head.length
            lines.append(f"Content-Length: {head.length}\r\n")
        elif connection.is_http_1_0:
            connection.close_when_idle()  # the end of the connection is the end of the body
        else:
            self._is_chunked = True
            lines.append("Transfer-Encoding: chunked\r\n")
        if not connection.keep_alive:
            lines.append("Connection: close\r\n")
        self.has_begun = True
        connection.transport.write("".join((*lines, "\r\n")).encode("latin-1"))

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

    def spoil(self, detail: str) -> ModelError:
        """The error for an answer that cannot be sent."""
        return ModelError("bad_raw_answer", model=self.lane.name, version=self.lane.version, detail=detail)

    def add(self, data: bytes) -> None:
        """Write a part of the body.

        Raises:
            ModelError: the body is longer than its head said.
        """
        if not self._has_body or not data:
            return
        if self._is_chunked:
            self._connection.transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
            return
        if self._left is not None:
            if len(data) > self._left:
                raise self.spoil("its body is longer than its head said")
            self._left -= len(data)
        self._connection.transport.write(data)

    def end(self, now: float) -> None:
        """End the answer.

        Raises:
            ModelError: the body is shorter than its head said.
        """
        if self._has_body and self._left:
            raise self.spoil("its body is shorter than its head said")
        self.is_done = True
        if self._status < 400:
            self.lane.series.add_answers([now - self.started_s], 1, now - self.sent_s, 0.0)
        else:
            self.lane.series.add_failure(self._status)
        if self._is_chunked and self._has_body:
            self._connection.transport.write(b"0\r\n\r\n")
        self._connection.end_raw()

    def fail(self, error: ArgosyError) -> None:
        """Answer with an error; or cut the answer that was begun, so that its client sees that it is not whole."""
        self.is_done = True
        self.lane.series.add_failure(error.status)
        connection = self._connection
        if not self.has_begun:
            connection.raw = None
            connection.send(*encode_error(error), has_body=self._has_body)
            return
        transport = connection.transport
        connection.close_when_idle()
        if connection.is_http_1_0 or transport.get_write_buffer_size():
            # An end like any other would look like the body's; or its client takes nothing, not even that.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        connection.end_raw()

    def expire(self) -> None:
        """Fail, for the deadline has passed."""
        self.fail(DeadlineError("deadline_passed", timeout_s=self.deadline_s - self.started_s))

    def abandon(self) -> None:
        """The client went away."""
        self.is_done = True
        if self.stream is not None:
            self.stream.cancel()

    def pause(self) -> None:
        """The client takes no more for now."""
        if self.stream is not None:
            self.stream.pause()

    def resume(self) -> None:
        """The client takes more."""
        if self.stream is not None:
            self.stream.resume()
