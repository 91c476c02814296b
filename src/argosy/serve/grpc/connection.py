"""The Open Inference Protocol V2 over gRPC: a front's service, its methods, and the calls that wait for the batcher.

    http2.py  ->  on_request  ->  grpc_requests.py  ->  admit.py ... batcher.py  ->  grpc_replies.py  ->  respond

ModelStreamInfer is in `grpc_stream.py`, all but inference in `grpc_models.py`. Under it are only `http2.py` and `messages.py`,
no gRPC library.

Source: grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from argosy.errors import (
    ArgosyError,
    DeadlineError,
    FaultError,
    GrpcCode,
    InputError,
    RequestError,
    TooLargeError,
    UnavailableError,
    list_choices,
)
from argosy.serve.dispatch.call import Call
from argosy.serve.dispatch.errands import Errands
from argosy.serve.grpc import messages
from argosy.serve.grpc.models import METHODS
from argosy.serve.grpc.replies import ACCEPTED, NOT_GRPC, NOT_POST, OK_HEADERS, OK_TRAILERS, encode_reply, encode_status
from argosy.serve.grpc.requests import read_inputs, read_parameters, read_wanted
from argosy.serve.grpc.stream import InferStream
from argosy.serve.http2.connection import Head, Http2Connection, Http2Server, Limits
from argosy.serve.http2.duplex import DuplexStream
from argosy.serve.http2.frames import END_HEADERS, HEADERS
from argosy.serve.v2.inflate import WINDOW_BITS, inflate
from argosy.serve.v2.parameters import MAX_SHOWN, SCHEDULE, read_schedule

if TYPE_CHECKING:
    from argosy.serve.dispatch.admit import Admit
    from argosy.serve.dispatch.router import Router

__all__ = ["GrpcCall", "GrpcConnection", "GrpcHead", "GrpcServer", "Message", "make_grpc_protocol"]

_IDENTITY: Final = b"identity"
_PREFIX_BYTES: Final = 5  # of a gRPC message: one flag, four of length
_SERVICE: Final = b"/inference.GRPCInferenceService/"
_STREAM: Final = _SERVICE + b"ModelStreamInfer"
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")

Message = bytes | bytearray | memoryview


class GrpcHead(Head):
    """What the headers of a call say: its method, or a refusal that needs no message."""

    __slots__ = ("authorization", "encoding", "method", "refusal", "timeout_s")

    def __init__(self) -> None:
        super().__init__()
        self.method: _Method | None = None
        self.refusal = b""
        self.timeout_s: float | None = None
        self.encoding = _IDENTITY
        self.authorization = ""


class GrpcCall(Call):
    """An inference request that came over gRPC."""

    __slots__ = ("_connection", "_id", "_stream_id", "_wanted")

    def __init__(self, connection: GrpcConnection, stream_id: int, request_id: str, wanted: list[int] | None, *args: Any) -> None:
        super().__init__(*args)
        self._connection = connection
        self._stream_id = stream_id
        self._id = request_id
        self._wanted = wanted

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the answer, or DEADLINE_EXCEEDED if nobody waits for it any more."""
        try:
            if time.monotonic() > self.deadline_s:
                self.fail(DeadlineError("deadline_passed", timeout_s=self.deadline_s - self.started_s))
                return
            body = encode_reply(self.lane, outputs, self._id, self._wanted)
        except Exception as error:  # the batcher must not suffer from one answer
            self._connection.report(error)
            self.fail(FaultError("internal", detail=type(error).__name__))
            return
        self._connection.respond(self._stream_id, OK_HEADERS, body, OK_TRAILERS)

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self._connection.respond(self._stream_id, encode_status(error))


class GrpcServer(Http2Server):
    """What all gRPC connections of a front share.

    Args:
        router: of this front.
        admit: of this front.
        errands: of this front.
        version: of Argosy, for the server's metadata.
        limits: for each connection.
    """

    def __init__(self, router: Router, admit: Admit, errands: Errands, version: str, limits: Limits) -> None:
        super().__init__(limits, admit.intake)
        self.router = router
        self.admit = admit
        self.errands = errands
        self.version = version

    def make_connection(self) -> GrpcConnection:
        """Protocol factory for the event loop."""
        return GrpcConnection(self)


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
    limits = replace(limits or Limits(), max_connections=max_connections, max_body_bytes=admit.max_body_bytes + _PREFIX_BYTES)
    server = GrpcServer(router, admit, errands or Errands(), version, limits)
    return server.make_connection, server


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
        is_stream = path == _STREAM
        if timeout is not None and (match := _TIMEOUT.fullmatch(timeout)):
            head.timeout_s = int(match[1]) * _TIMEOUT_UNITS_S[match[2]]
        if headers[b":method"] != b"POST":
            head.refusal = NOT_POST
        elif not _CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")):
            head.refusal = NOT_GRPC
        elif head.method is None and not is_stream:
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
            head.is_duplex = is_stream
        head.is_early = bool(head.refusal)
        return head

    def on_request(self, stream_id: int, head: Head, body: bytes | bytearray) -> object:
        """Run a call; an inference answers later, and is returned."""
        assert isinstance(head, GrpcHead)
        if head.refusal:
            self.respond(stream_id, head.refusal)
            return None
        try:
            if len(body) < _PREFIX_BYTES or int.from_bytes(body[1:_PREFIX_BYTES], "big") != len(body) - _PREFIX_BYTES:
                raise InputError("bad_grpc", detail=f"a body of {len(body)} bytes that is not exactly one message")
            # A body of one frame is small, and its copy cheaper than a view; any other is large.
            message = body[_PREFIX_BYTES:] if type(body) is bytes else memoryview(body)[_PREFIX_BYTES:]
            if body[0]:
                message = self.unpack(body[0], message, head.encoding)
            assert head.method is not None
            return head.method(self, stream_id, head, message)
        except ArgosyError as error:
            code = GrpcCode.UNIMPLEMENTED if error.key == "unimplemented" else None
            self.respond(stream_id, encode_status(error, code))
        except messages.DecodeError as error:
            self.respond(stream_id, encode_status(InputError("bad_grpc", detail=str(error) or "the message cannot be parsed")))
        except Exception as error:  # the edge of the process: one request must not end its connection
            self.report(error)
            self.respond(stream_id, encode_status(FaultError("internal", detail=type(error).__name__)))
        return None

    def unpack(self, flag: int, message: Message, encoding: bytes) -> Message:
        """Unpack a message if its flag says that it is compressed.

        Raises:
            RequestError: `unimplemented`, the headers do not say how.
            InputError, TooLargeError: as `inflate`.
        """
        if not flag:
            return message
        if flag != 1 or encoding == _IDENTITY:
            raise RequestError("unimplemented", method=f"compressed message (flag {flag}) without a grpc-encoding")
        return inflate(memoryview(message), encoding, self.server.admit.max_body_bytes)

    def on_duplex(self, stream: DuplexStream) -> InferStream:
        """A ModelStreamInfer begins."""
        head = stream.head
        assert isinstance(head, GrpcHead)
        self.send_frame(HEADERS, END_HEADERS, stream.id, self.prepare_block(OK_HEADERS))
        token = InferStream(self, stream, head.encoding, head.timeout_s)
        if self.is_draining:
            token.stop(UnavailableError("draining", retry_after_s=1.0))
        return token

    def drain(self) -> None:
        """As of any connection; streams end when what is under way on them is answered."""
        super().drain()
        for token in self._list_streams():
            token.stop(UnavailableError("draining", retry_after_s=1.0))

    def sweep(self, now: float) -> None:
        """As of any connection; streams whose own deadline has passed end."""
        super().sweep(now)
        for token in self._list_streams():
            token.check_deadline(now)

    def _list_streams(self) -> list[InferStream]:
        return [stream.token for stream in self.streams.values() if isinstance(stream.token, InferStream)]

    def on_too_large(self, stream_id: int, head: Head) -> None:
        """Refuse the message, before all of it has come."""
        self.respond(stream_id, encode_status(TooLargeError("body_too_large", limit=self.server.admit.max_body_bytes)))

    def on_cancel(self, token: Any) -> None:
        """Nobody waits for the answer any more: the batcher drops the request."""
        if isinstance(token, InferStream):
            token.cancel()
        else:
            token.is_done = True

    def report(self, error: Exception) -> None:
        """Tell the event loop's exception handler of a fault of ours."""
        context = {"message": "a gRPC request failed", "exception": error, "protocol": self}
        asyncio.get_running_loop().call_exception_handler(context)

    # methods

    def infer(
        self, stream_id: int, limit: GrpcHead | InferStream, message: Message, make_call: Callable[..., Call] = GrpcCall
    ) -> Call:
        """Decode and submit an inference; its answer comes later.

        Args:
            stream_id: that it came on.
            limit: has the time that the caller waits for it at most, as `timeout_s`.
            message: a ModelInferRequest.
            make_call: called as `GrpcCall`.

        Raises:
            ArgosyError: it is refused.
            DecodeError: it is no such message.
        """
        now = time.monotonic()
        server = self.server
        request, raws = messages.parse_infer_request(message)
        lane = server.router.find(request.model_name, request.model_version)
        priority = 0
        try:
            inputs, num_rows, form = read_inputs(lane, request, raws)
            waits_s = limit.timeout_s
            timeout_s = lane.timeout_s if waits_s is None else waits_s
            if request.parameters:
                asked_s, priority = read_schedule(read_parameters(request.parameters, SCHEDULE))
                if asked_s is not None:
                    timeout_s = asked_s if waits_s is None else min(asked_s, waits_s)
            wanted = read_wanted(lane, request.outputs) if request.outputs else None
        except ArgosyError as error:
            lane.series.add_failure(error.status)
            raise
        call = make_call(self, stream_id, request.id, wanted, lane, inputs, num_rows, len(message), now, now + timeout_s)
        call.form = form
        call.priority = priority
        server.admit.submit(call)
        return call

    def send_reply(self, stream_id: int, reply: Any) -> None:
        """Answer with a message."""
        data = reply.SerializeToString()
        self.respond(stream_id, OK_HEADERS, b"\x00" + len(data).to_bytes(4, "big") + data, OK_TRAILERS)


_Method = Callable[[GrpcConnection, int, GrpcHead, Message], object]
_METHODS: Final[dict[bytes, _Method]] = {
    _SERVICE + b"ModelInfer": GrpcConnection.infer,
    **{_SERVICE + name.encode(): method for name, method in METHODS.items()},
}


def _show(value: bytes) -> str:
    return value[:MAX_SHOWN].decode("ascii", "replace")
