"""The Open Inference Protocol V2 over gRPC: a front's service, its methods, and the calls that wait for the batcher.

    http2/  ->  on_request  ->  requests.py  ->  admit.py ... batcher.py  ->  replies.py  ->  respond

ModelStreamInfer is in `stream.py`, all but inference in `models.py`. Under it are only `serve/http2/` and `messages.py`, no
gRPC library.

Source: grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import (
    ArgosyError,
    DeadlineError,
    FaultError,
    GrpcCode,
    InputError,
    RequestError,
    TooLargeError,
    list_choices,
)
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.errands import Errand, Errands
from argosy.serve.dispatch.router import Router
from argosy.serve.grpc import messages
from argosy.serve.grpc.models import HEALTH, METHODS, SERVICE, ErrandRequest, Method
from argosy.serve.grpc.replies import (
    ACCEPTED,
    NOT_GRPC,
    NOT_POST,
    OK_HEADERS,
    OK_TRAILERS,
    encode_message,
    encode_reply,
    encode_status,
)
from argosy.serve.grpc.requests import PREFIX_BYTES, InferCall, submit_request, unpack_message
from argosy.serve.grpc.server import GrpcServer
from argosy.serve.grpc.stream import InferStream
from argosy.serve.http2.connection import Http2Connection
from argosy.serve.http2.frames import END_HEADERS, HEADERS
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.streams import DuplexStream, Head
from argosy.serve.v2.inflate import WINDOW_BITS
from argosy.serve.v2.parameters import MAX_SHOWN

__all__ = ["GrpcCall", "GrpcConnection", "GrpcHead", "make_grpc_protocol"]

_IDENTITY: Final = b"identity"
_SERVICE: Final = f"/{SERVICE}/".encode()
_INFER: Final = _SERVICE + b"ModelInfer"
_STREAM: Final = _SERVICE + b"ModelStreamInfer"
_PATHS: Final = {f"/{SERVICE}/{name}": method for name, method in METHODS.items()} | HEALTH
_METHODS: Final = {path.encode(): method for path, method in _PATHS.items()}
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")


class GrpcHead(Head):
    """What the headers of a call say.

    Attributes:
        refusal: an answer that needs no message; empty for none.
        method: what answers the call; None for an inference.
        timeout_s: time that the caller waits for an inference at most; None for no bound of its own.
        encoding: of compressed messages.
        authorization: the header of that name; empty where it is missing.
    """

    __slots__ = ("authorization", "encoding", "method", "refusal", "timeout_s")

    def __init__(self) -> None:
        super().__init__()
        self.method: Method | None = None
        self.refusal = b""
        self.timeout_s: float | None = None
        self.encoding = _IDENTITY
        self.authorization = ""


class GrpcCall(InferCall):
    """An inference request that is a call of its own."""

    __slots__ = ()

    owner: GrpcConnection

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the answer, or DEADLINE_EXCEEDED if nobody waits for it any more."""
        try:
            if time.monotonic() > self.deadline_s:
                self.fail(DeadlineError("deadline_passed", timeout_s=self.deadline_s - self.started_s))
                return
            body = encode_reply(self.lane, outputs, self.request_id, self.wanted)
        except Exception as error:  # the batcher must not suffer from one answer
            self.owner.server.report(error)
            self.fail(FaultError("internal", detail=type(error).__name__))
            return
        self.owner.respond(self.stream_id, OK_HEADERS, body, OK_TRAILERS)

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self.owner.respond(self.stream_id, encode_status(error))


def make_grpc_protocol(
    router: Router,
    admit: Admit,
    errands: Errands | None = None,
    *,
    version: str = "",
    max_connections: int = 4096,
    limits: Limits | None = None,
) -> tuple[Callable[[], GrpcConnection], GrpcServer]:
    """Make the protocol factory for `loop.create_server`, and the object that its owner sweeps and drains.

    Args:
        router: of this front.
        admit: of this front; its `max_body_bytes` bounds a message.
        errands: of this front; None where no control process will ever be there.
        version: of Argosy, for the server's metadata.
        max_connections: more than that are closed at once.
        limits: all others; `max_connections` and `max_body_bytes` of it are replaced.
    """
    limits = replace(limits or Limits(), max_connections=max_connections, max_body_bytes=admit.max_body_bytes + PREFIX_BYTES)
    server = GrpcServer(router, admit, errands or Errands(), version, limits)
    return partial(GrpcConnection, server), server


class GrpcConnection(Http2Connection):
    """One client's connection."""

    __slots__ = ("server",)

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(server)
        self.server = server

    def read_head(self, headers: dict[bytes, bytes]) -> Head:
        """Find the method and what it needs; or the refusal."""
        head = GrpcHead()
        path = headers[b":path"]
        timeout = headers.get(b"grpc-timeout")
        encoding = headers.get(b"grpc-encoding", _IDENTITY)
        head.method = _METHODS.get(path)
        if timeout is not None and (match := _TIMEOUT.fullmatch(timeout)):
            head.timeout_s = int(match[1]) * _TIMEOUT_UNITS_S[match[2]]
        if headers[b":method"] != b"POST":
            head.refusal = NOT_POST
        elif not _CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")):
            head.refusal = NOT_GRPC
        elif head.method is None and path not in (_INFER, _STREAM):
            error = RequestError("unimplemented", method=_show(path))
            head.refusal = encode_status(error, GrpcCode.UNIMPLEMENTED)
        elif encoding != _IDENTITY and encoding not in WINDOW_BITS:
            known = list_choices(name.decode() for name in (_IDENTITY, *WINDOW_BITS))
            error = RequestError("unknown_choice", kind="grpc-encoding", got=_show(encoding), known=known)
            head.refusal = encode_status(error, GrpcCode.UNIMPLEMENTED) + ACCEPTED
        elif timeout is not None and head.timeout_s is None:
            expected = "1 to 8 digits and one of H, M, S, m, u, n"
            head.refusal = encode_status(InputError("bad_parameter", name="grpc-timeout", got=_show(timeout), expected=expected))
        else:
            head.encoding = encoding
            head.authorization = headers.get(b"authorization", b"").decode("latin-1")
            head.is_duplex = path == _STREAM
        head.is_early = bool(head.refusal)
        return head

    def on_request(self, stream_id: int, head: Head, body: bytes | bytearray) -> object:
        """Run a call; an inference answers later, and is returned."""
        assert isinstance(head, GrpcHead)
        if head.refusal:
            self.respond(stream_id, head.refusal)
            return None
        server = self.server
        try:
            if len(body) < PREFIX_BYTES or int.from_bytes(body[1:PREFIX_BYTES], "big") != len(body) - PREFIX_BYTES:
                raise InputError("bad_grpc", detail=f"a body of {len(body)} bytes that is not exactly one message")
            # A body of one frame is small, and its copy cheaper than a view; any other is large.
            message = body[PREFIX_BYTES:] if type(body) is bytes else memoryview(body)[PREFIX_BYTES:]
            if body[0]:
                message = unpack_message(body[0], message, head.encoding, server.admit.max_body_bytes)
            if head.method is None:
                return submit_request(server, message, head.timeout_s, GrpcCall, self, stream_id)
            reply = head.method(server, message)
            if isinstance(reply, ErrandRequest):
                return self._send_errand(stream_id, reply, head.authorization)
            self.respond(stream_id, OK_HEADERS, encode_message(reply), OK_TRAILERS)
        except ArgosyError as error:
            code = GrpcCode.UNIMPLEMENTED if error.key == "unimplemented" else None
            self.respond(stream_id, encode_status(error, code))
        except messages.DecodeError as error:
            self.respond(stream_id, encode_status(InputError("bad_grpc", detail=str(error) or "the message cannot be parsed")))
        except Exception as error:  # the edge of the process: one request must not end its connection
            server.report(error)
            self.respond(stream_id, encode_status(FaultError("internal", detail=type(error).__name__)))
        return None

    def on_duplex(self, stream: DuplexStream) -> InferStream:
        """A ModelStreamInfer begins."""
        head = stream.head
        assert isinstance(head, GrpcHead)
        self.send_frame(HEADERS, END_HEADERS, stream.id, self.prepare_block(OK_HEADERS))
        return InferStream(self.server, self, stream, head.encoding, head.timeout_s)

    def on_too_large(self, stream_id: int, head: Head) -> None:
        """Refuse the message, before all of it has come."""
        self.respond(stream_id, encode_status(TooLargeError("body_too_large", limit=self.server.admit.max_body_bytes)))

    def on_cancel(self, token: Any) -> None:
        """Nobody waits for the answer any more: the batcher drops the request."""
        if isinstance(token, InferStream):
            token.cancel()
        else:
            token.is_done = True

    def _send_errand(self, stream_id: int, request: ErrandRequest, authorization: str) -> Errand:
        """Have the control process do what a client asks for; the answer comes later."""

        def answer(error: ArgosyError | None) -> None:
            if error is None:
                self.respond(stream_id, OK_HEADERS, encode_message(request.reply), OK_TRAILERS)
            else:
                self.respond(stream_id, encode_status(error))

        return self.server.errands.send(request.op, request.model, request.parameters, authorization, answer)


def _show(value: bytes) -> str:
    return value[:MAX_SHOWN].decode("ascii", "replace")
