"""Replies of the V2 protocol over gRPC: header blocks, errors as statuses, and arrays to a ModelInferResponse.

An answer always has its tensors in `raw_output_contents`, whatever the request used, as Triton does: tritonclient's
`as_numpy` reads nothing else as surely, it is the only form that FP16 has, and it costs one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from numpy.typing import NDArray

from argosy.errors import ArgosyError, GrpcCode
from argosy.serve.dispatch.call import Lane
from argosy.serve.grpc import messages
from argosy.serve.http2.headers import encode_field
from argosy.serve.v2.tensors import MAX_SHAPES
from argosy.signature import pack_bytes

__all__ = [
    "ACCEPTED",
    "NOT_GRPC",
    "NOT_POST",
    "OK_HEADERS",
    "OK_TRAILERS",
    "encode_message",
    "encode_reply",
    "encode_status",
    "encode_stream_error",
]

# Clients refuse headers beyond 8 KiB, and a header block has to fit in one frame.
_MAX_STATUS_BYTES: Final = 4000
_LARGE_BYTES: Final = 4096  # below that, copying an array twice is cheaper than making a view of it
# What a message may have beside printable ASCII without the percent sign goes as %XX.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

OK_HEADERS: Final = b"\x88" + encode_field(b"content-type", b"application/grpc")  # 0x88 is `:status: 200`
OK_TRAILERS: Final = encode_field(b"grpc-status", b"0")
NOT_POST: Final = b"\x08\x03405" + encode_field(b"allow", b"POST")
NOT_GRPC: Final = b"\x08\x03415" + encode_field(b"accept-post", b"application/grpc")
# Of a streamed answer: clients of models that answer one request with several wait for it.
_FINAL: Final = messages.ModelInferResponse(
    parameters={"triton_final_response": messages.InferParameter(bool_param=True)}
).SerializeToString()
ACCEPTED: Final = encode_field(b"grpc-accept-encoding", b"identity,deflate,gzip")


def encode_status(error: ArgosyError, code: GrpcCode | None = None, *, is_trailing: bool = False) -> bytes:
    """Write an error as the header block that ends a call; `is_trailing` where the headers of the answer have gone before."""
    text = quote(str(error)[:_MAX_STATUS_BYTES], safe=_PLAIN)[:_MAX_STATUS_BYTES]
    if "%" in text[-2:]:
        text = text[: text.rindex("%")]
    block = (
        (b"" if is_trailing else OK_HEADERS)
        + encode_field(b"grpc-status", b"%d" % (error.grpc_code if code is None else code))
        + encode_field(b"grpc-message", text.encode())
    )
    if error.retry_after_s is not None:
        block += encode_field(b"grpc-retry-pushback-ms", b"%d" % max(1, round(error.retry_after_s * 1000)))
    return block


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
            if len(shapes) >= MAX_SHAPES:
                shapes.clear()
            parts = shapes[array.shape] = (reply.SerializeToString(), b"\x32" + _varint(array.nbytes))
        return parts


def encode_reply(
    lane: Lane, outputs: Sequence[NDArray[Any]], request_id: str, wanted: list[int] | None, *, is_streamed: bool = False
) -> bytes:
    """Write a ModelInferResponse with the prefix of a gRPC message.

    Args:
        lane: the version that answered.
        outputs: one array per output of the signature, in its order.
        request_id: echoed.
        wanted: indexes of the outputs to send, in this order; None for all.
        is_streamed: write a ModelStreamInferResponse, whose part it is.
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
        elif array.nbytes > _LARGE_BYTES and array.flags.c_contiguous and array.dtype.kind != "V":
            raw = array.data.cast("B")
        else:
            raw = array.tobytes()
        raws += (raw_head, raw)
    reply += raws
    if is_streamed:
        reply.append(_FINAL)
        reply[0] = b"\x12" + _varint(sum(map(len, reply)))
        reply.insert(0, b"")
    size = sum(map(len, reply))
    reply[0] = b"\x00" + size.to_bytes(4, "big")
    return b"".join(reply)


def encode_stream_error(error: ArgosyError, request_id: str) -> bytes:
    """Write a ModelStreamInferResponse that says why a request was not answered, with the prefix of a gRPC message."""
    reply = messages.ModelStreamInferResponse(error_message=str(error))
    reply.infer_response.id = request_id
    return encode_message(reply)


def encode_message(message: Any) -> bytes:
    """Write a message with the prefix that gRPC gives it."""
    data = message.SerializeToString()
    return b"\x00" + len(data).to_bytes(4, "big") + data
