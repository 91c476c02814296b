"""The Open Inference Protocol V2 over gRPC: calls to arrays, and arrays to replies.

Built on `http2.py` and `messages.py` alone; unary calls. An answer always has its tensors in `raw_output_contents`,
whatever the request used, as Triton does: tritonclient's `as_numpy` reads nothing else as surely, it is the only form
that FP16 has, and it costs one copy.

Source: grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from argosy.errors import (
    ArgosyError,
    DeadlineError,
    FaultError,
    GrpcCode,
    InputError,
    NotFoundError,
    RequestError,
    TooLargeError,
    list_choices,
)
from argosy.serve import messages
from argosy.serve.call import Call
from argosy.serve.http2 import Head, Http2Connection, Http2Server, Limits
from argosy.serve.tensors import array_from_raw, check_bytes_count, check_tensor, count_elements, gather_inputs
from argosy.signature import TensorSpec, pack_bytes

if TYPE_CHECKING:
    from argosy.serve.admit import Admit
    from argosy.serve.router import Lane, Router

__all__ = ["GrpcCall", "GrpcConnection", "GrpcServer", "make_grpc_protocol"]

MAX_TIMEOUT_S: Final = 3600.0
_PREFIX_BYTES: Final = 5  # of a gRPC message: one flag, four of length
_MAX_SHOWN: Final = 200
# Clients refuse headers beyond 8 KiB, and a header block has to fit in one frame.
_MAX_STATUS_BYTES: Final = 4000
_LARGE_BYTES: Final = 4096  # below that, copying an array twice is cheaper than making a view of it
_MAX_SHAPES: Final = 256
_SERVICE: Final = b"/inference.GRPCInferenceService/"
_ENCODINGS: Final = {b"identity": 0, b"gzip": 31, b"deflate": 15}  # window bits for zlib
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")


def _field(name: bytes, value: bytes) -> bytes:
    """A header field as an HPACK literal that enters no table."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    size -= 127
    out = bytearray((127,))
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


_HEADERS: Final = b"\x88" + _field(b"content-type", b"application/grpc")  # 0x88 is `:status: 200`
_TRAILERS: Final = _field(b"grpc-status", b"0")
_NOT_POST: Final = b"\x08\x03405" + _field(b"allow", b"POST")
_NOT_GRPC: Final = b"\x08\x03415" + _field(b"accept-post", b"application/grpc")
_ACCEPTED: Final = _field(b"grpc-accept-encoding", b"identity,deflate,gzip")
# What a message may have beside printable ASCII without the percent sign goes as %XX.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def encode_status(error: ArgosyError, code: GrpcCode | None = None) -> bytes:
    """Write an error as the header block that ends a call."""
    text = quote(str(error)[:_MAX_STATUS_BYTES], safe=_PLAIN)[:_MAX_STATUS_BYTES]
    if "%" in text[-2:]:
        text = text[: text.rindex("%")]
    block = (
        _HEADERS
        + _field(b"grpc-status", b"%d" % (error.grpc_code if code is None else code))
        + _field(b"grpc-message", text.encode())
    )
    if error.retry_after_s is not None:
        block += _field(b"grpc-retry-pushback-ms", b"%d" % max(1, round(error.retry_after_s * 1000)))
    return block


_Message = bytes | bytearray | memoryview


class _GrpcHead(Head):
    """What the headers of a call say: its method, or a refusal that needs no message."""

    __slots__ = ("encoding", "method", "refusal", "timeout_s")

    def __init__(self) -> None:
        super().__init__()
        self.method: _Method | None = None
        self.refusal = b""
        self.timeout_s: float | None = None
        self.encoding = 0


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
        self._connection.respond(self._stream_id, _HEADERS, body, _TRAILERS)

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self._connection.respond(self._stream_id, encode_status(error))


class GrpcServer(Http2Server):
    """What all gRPC connections of a front share.

    Args:
        router: of this front.
        admit: of this front.
        version: of Argosy, for the server's metadata.
        limits: for each connection.
    """

    def __init__(self, router: Router, admit: Admit, version: str, limits: Limits) -> None:
        super().__init__(limits)
        self.router = router
        self.admit = admit
        self.version = version

    def make_connection(self) -> GrpcConnection:
        """Protocol factory for the event loop."""
        return GrpcConnection(self)


def make_grpc_protocol(
    router: Router, admit: Admit, *, version: str = "", max_connections: int = 4096, limits: Limits | None = None
) -> tuple[Callable[[], GrpcConnection], GrpcServer]:
    """Make the protocol factory for `loop.create_server`, and the object that its owner sweeps and drains.

    Args:
        router: of this front.
        admit: of this front; its `max_body_bytes` bounds a message.
        version: of Argosy, for the server's metadata.
        max_connections: more than that are closed at once.
        limits: all others; `max_connections` and `max_body_bytes` of it are replaced.
    """
    limits = replace(limits or Limits(), max_connections=max_connections, max_body_bytes=admit.max_body_bytes + _PREFIX_BYTES)
    server = GrpcServer(router, admit, version, limits)
    return server.make_connection, server


class GrpcConnection(Http2Connection):
    """One client's connection."""

    __slots__ = ("server",)

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(server)
        self.server = server

    def read_head(self, headers: dict[bytes, bytes]) -> Head:
        """Find the method and what it needs; or the refusal."""
        head = _GrpcHead()
        path = headers[b":path"]
        timeout = headers.get(b"grpc-timeout")
        encoding = headers.get(b"grpc-encoding", b"identity")
        head.method = _METHODS.get(path)
        if timeout is not None and (match := _TIMEOUT.fullmatch(timeout)):
            head.timeout_s = int(match[1]) * _TIMEOUT_UNITS_S[match[2]]
        if headers[b":method"] != b"POST":
            head.refusal = _NOT_POST
        elif not _CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")):
            head.refusal = _NOT_GRPC
        elif head.method is None:
            error = RequestError("unimplemented", method=_show(path))
            head.refusal = encode_status(error, GrpcCode.UNIMPLEMENTED)
        elif encoding not in _ENCODINGS:
            known = list_choices(name.decode() for name in _ENCODINGS)
            error = RequestError("unknown_choice", kind="grpc-encoding", got=_show(encoding), known=known)
            head.refusal = encode_status(error, GrpcCode.UNIMPLEMENTED) + _ACCEPTED
        elif timeout is not None and head.timeout_s is None:
            expected = "1 to 8 digits and one of H, M, S, m, u, n"
            head.refusal = encode_status(InputError("bad_parameter", name="grpc-timeout", got=_show(timeout), expected=expected))
        else:
            head.encoding = _ENCODINGS[encoding]
        head.is_early = bool(head.refusal)
        return head

    def on_request(self, stream_id: int, head: Head, body: bytes | bytearray) -> object:
        """Run a call; an inference answers later, and is returned."""
        assert isinstance(head, _GrpcHead)
        if head.refusal:
            self.respond(stream_id, head.refusal)
            return None
        try:
            if len(body) < _PREFIX_BYTES or int.from_bytes(body[1:_PREFIX_BYTES], "big") != len(body) - _PREFIX_BYTES:
                raise InputError("bad_grpc", detail=f"a body of {len(body)} bytes that is not exactly one message")
            # A body of one frame is small, and its copy cheaper than a view; any other is large.
            message = body[_PREFIX_BYTES:] if type(body) is bytes else memoryview(body)[_PREFIX_BYTES:]
            if body[0]:
                message = _inflate(message, body[0], head.encoding, self.server.admit.max_body_bytes)
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

    def on_too_large(self, stream_id: int, head: Head) -> None:
        """Refuse the message, before all of it has come."""
        self.respond(stream_id, encode_status(TooLargeError("body_too_large", limit=self.server.admit.max_body_bytes)))

    def on_cancel(self, token: Any) -> None:
        """Nobody waits for the answer any more: the batcher drops the request."""
        token.is_done = True

    def report(self, error: Exception) -> None:
        """Tell the event loop's exception handler of a fault of ours."""
        context = {"message": "a gRPC request failed", "exception": error, "protocol": self}
        asyncio.get_running_loop().call_exception_handler(context)

    # methods

    def infer(self, stream_id: int, head: _GrpcHead, message: _Message) -> GrpcCall:
        """Decode and submit an inference; its answer comes later."""
        now = time.monotonic()
        server = self.server
        request, raws = messages.parse_infer_request(message)
        lane = server.router.find(request.model_name, request.model_version)
        inputs, num_rows = read_inputs(lane, request, raws)
        timeout_s = lane.timeout_s if head.timeout_s is None else head.timeout_s
        if request.parameters and (asked_s := read_timeout(request.parameters)) is not None:
            timeout_s = asked_s if head.timeout_s is None else min(asked_s, timeout_s)
        wanted = read_wanted(lane, request.outputs) if request.outputs else None
        call = GrpcCall(self, stream_id, request.id, wanted, lane, inputs, num_rows, len(message), now, now + timeout_s)
        server.admit.submit(call)
        return call

    def send_reply(self, stream_id: int, reply: Any) -> None:
        """Answer with a message."""
        data = reply.SerializeToString()
        self.respond(stream_id, _HEADERS, b"\x00" + len(data).to_bytes(4, "big") + data, _TRAILERS)

    def server_live(self, stream_id: int, head: _GrpcHead, message: _Message) -> None:
        """Say that the process answers."""
        messages.ServerLiveRequest.FromString(message)
        self.send_reply(stream_id, messages.ServerLiveResponse(live=True))

    def server_ready(self, stream_id: int, head: _GrpcHead, message: _Message) -> None:
        """Say whether requests are taken."""
        messages.ServerReadyRequest.FromString(message)
        is_ready = self.server.router.is_server_ready and not self.server.is_draining
        self.send_reply(stream_id, messages.ServerReadyResponse(ready=is_ready))

    def model_ready(self, stream_id: int, head: _GrpcHead, message: _Message) -> None:
        """Say whether a model, or one version of it, is ready."""
        request = messages.ModelReadyRequest.FromString(message)
        try:
            is_ready = self.server.router.is_ready(request.name, request.version)
        except NotFoundError:
            # As Triton answers: a client that polls for a model to appear expects an answer, not an error.
            is_ready = False
        self.send_reply(stream_id, messages.ModelReadyResponse(ready=is_ready))

    def server_metadata(self, stream_id: int, head: _GrpcHead, message: _Message) -> None:
        """Say what answers, and its version."""
        messages.ServerMetadataRequest.FromString(message)
        self.send_reply(stream_id, messages.ServerMetadataResponse(name="argosy", version=self.server.version))

    def model_metadata(self, stream_id: int, head: _GrpcHead, message: _Message) -> None:
        """Describe a model's inputs and outputs."""
        request = messages.ModelMetadataRequest.FromString(message)
        lane = self.server.router.describe(request.name, request.version)
        reply = messages.ModelMetadataResponse(name=lane.name, versions=lane.versions, platform=lane.platform)
        for specs, tensors in ((lane.signature.inputs, reply.inputs), (lane.signature.outputs, reply.outputs)):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        self.send_reply(stream_id, reply)


_Method = Callable[[GrpcConnection, int, _GrpcHead, _Message], object]
# A streaming call will stand here too, with `is_early` in its head, so that it begins before its client has ended.
_METHODS: Final[dict[bytes, _Method]] = {
    _SERVICE + b"ModelInfer": GrpcConnection.infer,
    _SERVICE + b"ServerLive": GrpcConnection.server_live,
    _SERVICE + b"ServerReady": GrpcConnection.server_ready,
    _SERVICE + b"ModelReady": GrpcConnection.model_ready,
    _SERVICE + b"ServerMetadata": GrpcConnection.server_metadata,
    _SERVICE + b"ModelMetadata": GrpcConnection.model_metadata,
}


def _show(value: bytes) -> str:
    return value[:_MAX_SHOWN].decode("ascii", "replace")


def _inflate(message: _Message, flag: int, window_bits: int, limit: int) -> bytes:
    """Unpack a compressed message, never to more than `limit` bytes."""
    if flag != 1 or not window_bits:
        raise RequestError("unimplemented", method=f"compressed message (flag {flag}) without a grpc-encoding")
    unpacker = zlib.decompressobj(window_bits)
    try:
        data = unpacker.decompress(message, limit + 1)
    except zlib.error as error:
        raise InputError("bad_grpc", detail=str(error)) from None
    if len(data) > limit:
        raise TooLargeError("body_too_large", limit=limit)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError("bad_grpc", detail="the compressed message is cut, or followed by other bytes")
    return data


# requests

_CONTENTS: Final = {
    "BOOL": ("bool_contents", np.dtype("?")),
    "INT8": ("int_contents", np.dtype("i4")),
    "INT16": ("int_contents", np.dtype("i4")),
    "INT32": ("int_contents", np.dtype("i4")),
    "INT64": ("int64_contents", np.dtype("i8")),
    "UINT8": ("uint_contents", np.dtype("u4")),
    "UINT16": ("uint_contents", np.dtype("u4")),
    "UINT32": ("uint_contents", np.dtype("u4")),
    "UINT64": ("uint64_contents", np.dtype("u8")),
    "FP32": ("fp32_contents", np.dtype("f4")),
    "FP64": ("fp64_contents", np.dtype("f8")),
    "BYTES": ("bytes_contents", np.dtype("O")),
}


def read_inputs(lane: Lane, request: Any, raws: Sequence[Any]) -> tuple[list[NDArray[Any]], int]:
    """Check the inputs of a request and view them as arrays, in the signature's order.

    Args:
        lane: the version that the request goes to.
        request: a ModelInferRequest.
        raws: its raw contents, one for each input or none.

    Returns:
        The arrays and the number of rows, as `gather_inputs`.

    Raises:
        InputError: they are not what the version's signature asks for.
    """
    tensors = request.inputs
    if raws and len(raws) != len(tensors):
        raise InputError("raw_count", got=len(raws), expected=len(tensors))
    named: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(tensors):
        name: str = tensor.name
        if name in named:
            raise InputError("duplicate_tensor", tensor=name)
        shape = tuple(tensor.shape[:])
        spec = check_tensor(lane, name, tensor.datatype, shape)
        if tensor.parameters:
            _check_tensor_parameters(tensor.parameters)
        if not raws:
            named[name] = _array_from_contents(lane, spec, shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise InputError("mixed_contents", tensor=name)
        else:
            named[name] = array_from_raw(spec, shape, raws[index], lane)
    return gather_inputs(lane, named)


def _check_tensor_parameters(parameters: Any) -> None:
    """Refuse what would change the meaning of a tensor if it were passed over."""
    for name in ("shared_memory_region", "classification"):
        if name in parameters:
            raise InputError("bad_parameter", name=name, got=_parameter(parameters[name]), expected="none: it is not offered")


def _array_from_contents(lane: Lane, spec: TensorSpec, shape: tuple[int, ...], contents: Any) -> NDArray[Any]:
    datatype = spec.datatype
    if datatype not in _CONTENTS:
        raise InputError("no_typed_contents", tensor=spec.name, datatype=datatype)
    field, wire_dtype = _CONTENTS[datatype]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InputError("wrong_contents", tensor=spec.name, datatype=datatype, got=other.name, expected=field)
    values = getattr(contents, field)
    num_elements = count_elements(lane, spec, shape)
    if len(values) != num_elements:
        raise InputError("size_mismatch", tensor=spec.name, got=len(values), expected=num_elements, shape=shape)
    if datatype == "BYTES":
        check_bytes_count(spec, num_elements)
    array = np.fromiter(values, wire_dtype, num_elements)
    dtype = spec.dtype
    if dtype != wire_dtype and num_elements:
        bounds = np.iinfo(dtype)
        for value in (int(array.min()), int(array.max())):
            if not bounds.min <= value <= bounds.max:
                raise InputError("bad_value", tensor=spec.name, datatype=datatype, detail=value)
    return array.astype(dtype, copy=False).reshape(shape)


def _parameter(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind else None
    return value[:_MAX_SHOWN] if isinstance(value, str) else value


def read_timeout(parameters: Any) -> float | None:
    """Read the `timeout` parameter: microseconds, as Triton's schedule policy extension has it; 0 is none.

    Raises:
        InputError: bad_parameter, also for parameters of sequences, which would be answered wrongly without a state.
    """
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if name in parameters and (got := _parameter(parameters[name])):
            raise InputError("bad_parameter", name=name, got=got, expected="none: sequences are not offered")
    if "timeout" not in parameters:
        return None
    timeout = _parameter(parameters["timeout"])
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT_S * 1e6:
        raise InputError("bad_parameter", name="timeout", got=timeout, expected="microseconds, at most one hour")
    return timeout * 1e-6 if timeout else None


def read_wanted(lane: Lane, outputs: Iterable[Any]) -> list[int]:
    """Read which outputs a request asks for, as indexes into the signature's.

    Raises:
        InputError: unknown_output, duplicate_tensor or bad_parameter.
    """
    wanted: list[int] = []
    for output in outputs:
        index = lane.output_index.get(output.name)
        if index is None:
            known = list_choices(lane.output_index)
            name = output.name[:_MAX_SHOWN]
            raise InputError("unknown_output", model=lane.name, version=lane.version, tensor=name, known=known)
        if index in wanted:
            raise InputError("duplicate_tensor", tensor=output.name)
        if output.parameters:
            _check_tensor_parameters(output.parameters)
        wanted.append(index)
    return wanted


# replies


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _ReplyParts:
    """Constant parts of a lane's replies, in the wire form of ModelInferResponse."""

    __slots__ = ("dtypes", "open", "shapes", "specs")

    def __init__(self, lane: Lane) -> None:
        self.open: bytes = messages.ModelInferResponse(model_name=lane.name, model_version=lane.version).SerializeToString()
        self.specs = lane.signature.outputs
        self.dtypes = [spec.dtype for spec in self.specs]
        # Per output: shape -> its entry in `outputs`, and what stands before its bytes in `raw_output_contents`.
        self.shapes: list[dict[tuple[int, ...], tuple[bytes, bytes]]] = [{} for _ in self.specs]

    def describe(self, index: int, array: NDArray[Any]) -> tuple[bytes, bytes]:
        """Return the entry of an output, and the tag and length of its bytes (of no use for BYTES)."""
        shapes = self.shapes[index]
        parts = shapes.get(array.shape)
        if parts is None:
            spec = self.specs[index]
            reply = messages.ModelInferResponse()
            reply.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            if len(shapes) >= _MAX_SHAPES:
                shapes.clear()
            parts = shapes[array.shape] = (reply.SerializeToString(), b"\x32" + _varint(array.nbytes))
        return parts


def encode_reply(lane: Lane, outputs: Sequence[NDArray[Any]], request_id: str, wanted: list[int] | None) -> bytes:
    """Write a ModelInferResponse with the prefix of a gRPC message.

    Args:
        lane: the version that answered.
        outputs: one array per output of the signature, in its order.
        request_id: echoed.
        wanted: indexes of the outputs to send, in this order; None for all.
    """
    parts: _ReplyParts | None = lane.cache.get("grpc")
    if parts is None:
        parts = lane.cache["grpc"] = _ReplyParts(lane)
    reply: list[bytes | memoryview] = [b"", parts.open]
    if request_id:
        encoded = request_id.encode()
        reply += (b"\x1a", _varint(len(encoded)), encoded)
    raws: list[bytes | memoryview] = []
    for index in range(len(outputs)) if wanted is None else wanted:
        array = outputs[index]
        if array.dtype != parts.dtypes[index]:
            raise TypeError(f"output {parts.specs[index].name} is {array.dtype}")
        entry, raw_head = parts.describe(index, array)
        reply.append(entry)
        if array.dtype.kind == "O":
            raw = pack_bytes(array)
            raw_head = b"\x32" + _varint(len(raw))
        elif array.nbytes > _LARGE_BYTES and array.flags.c_contiguous:
            raw = array.data.cast("B")
        else:
            raw = array.tobytes()
        raws += (raw_head, raw)
    reply += raws
    size = sum(map(len, reply))
    reply[0] = b"\x00" + size.to_bytes(4, "big")
    return b"".join(reply)
