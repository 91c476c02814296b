"""The Open Inference Protocol V2 over HTTP: bodies to arrays, and arrays to bodies.

Source: kserve/open-inference-protocol, inference_rest.md; binary tensors as Triton's
extension_binary_data.md defines them. JSON is never coerced: "1" is no number, 1.7 no integer, 1e39 no FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from argosy.datatypes import round_floats, widen
from argosy.errors import InputError, ModelError, list_choices
from argosy.serve.dispatch.call import Lane
from argosy.serve.v2.parameters import SCHEDULE, read_schedule, refuse_parameters, shorten
from argosy.serve.v2.tensors import (
    MAX_SHAPES,
    array_from_raw,
    check_tensor,
    count_elements,
    decode_base64,
    gather_inputs,
)
from argosy.serve.wire.frames import FORM_TENSORS, MAX_TENSORS
from argosy.signature import TensorSpec, pack_bytes

__all__ = [
    "InferRequest",
    "Wanted",
    "decode_request",
    "encode_binary",
    "encode_json",
    "encode_row",
    "encode_rows",
    "list_data",
    "prepare_front",
]

MAX_ROW_NUMBERS: Final = 256
_NULL: Final = b"null"
"""What many clients write for a field that they leave out."""
_SCHEDULED: Final = frozenset(SCHEDULE)

Parameters = dict[str, str | int | float | bool]


class _InputJson(msgspec.Struct, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: Parameters | None = None


class _OutputJson(msgspec.Struct, gc=False):
    name: str
    parameters: Parameters | None = None


class _RequestJson(msgspec.Struct, gc=False):
    inputs: list[_InputJson]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_OutputJson] | None = None


class Wanted(NamedTuple):
    """An output that the request asked for: its place in the signature, and whether it goes as binary."""

    place: int
    is_binary: bool


class InferRequest(NamedTuple):
    """A decoded request."""

    inputs: list[NDArray[Any]]
    num_rows: int
    id: str
    timeout_s: float | None
    wanted: list[Wanted] | None
    """None stands for all outputs, as JSON."""
    form: int = FORM_TENSORS
    priority: int = 0


_decode_body: Final = msgspec.json.Decoder(_RequestJson).decode
_decode_any: Final = msgspec.json.Decoder().decode
# By NumPy's kinds; V is bfloat16's.
_LISTS: Final[dict[str, Any]] = {
    "f": list[float],
    "V": list[float],
    "i": list[int],
    "u": list[int],
    "b": list[bool],
    "O": list[str],
}
_decode_list: Final[dict[str, Callable[[msgspec.Raw], list[Any]]]] = {
    kind: msgspec.json.Decoder(type_).decode for kind, type_ in _LISTS.items()
}


def prepare_front() -> None:
    """Have NumPy raise where a JSON number does not fit its datatype; called once in a front process."""
    np.seterr(over="raise")


def decode_request(lane: Lane, body: bytes | memoryview, json_bytes: int | None) -> InferRequest:
    """Read an inference request.

    Args:
        lane: the version that the request goes to.
        body: the whole body.
        json_bytes: length of the JSON that stands before the binary tensors; None when there are none.

    Raises:
        InputError: the body is not what the version's signature asks for.
    """
    if json_bytes is None:
        head, tail = body, b""
    elif 0 < json_bytes <= len(body):
        head, tail = body[:json_bytes], memoryview(body)[json_bytes:]
    else:
        raise InputError("bad_parameter", name="Inference-Header-Content-Length", got=json_bytes, expected=f"1 to {len(body)}")
    try:
        request = _decode_body(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("bad_json", detail=str(error)) from None
    inputs = request.inputs
    if len(inputs) > MAX_TENSORS:
        raise InputError("bad_json", detail=f"{len(inputs)} inputs, at most {MAX_TENSORS} are taken")
    named: dict[str, NDArray[Any]] = {}
    pos = 0
    for item in inputs:
        if item.name in named:
            raise InputError("duplicate_tensor", tensor=item.name[:128])
        spec = check_tensor(lane, item.name, item.datatype, item.shape)
        size = None
        if item.parameters:
            size = item.parameters.get("binary_data_size")
            if size is None or len(item.parameters) > 1:
                refuse_parameters(item.parameters)
        if size is None:
            named[item.name] = _array_from_json(lane, spec, item)
        else:
            if type(size) is not int or not 0 <= size <= len(tail) - pos:
                raise InputError("bad_parameter", name="binary_data_size", got=shorten(size), expected=f"0 to {len(tail) - pos}")
            if item.data and bytes(item.data) != _NULL:
                raise InputError("bad_json", detail=f"input `{item.name}` has both data and binary_data_size")
            named[item.name] = array_from_raw(spec, item.shape, tail[pos : pos + size], lane)
            pos += size
    if pos != len(tail):
        raise InputError("bad_json", detail=f"{len(tail) - pos} bytes after the last binary tensor")
    arrays, num_rows, form = gather_inputs(lane, named)
    timeout_s, priority = None, 0
    if request.parameters and not _SCHEDULED.isdisjoint(request.parameters):
        timeout_s, priority = read_schedule(request.parameters)
    wanted = _read_outputs(lane, request) if request.outputs or request.parameters else None
    return InferRequest(arrays, num_rows, request.id or "", timeout_s, wanted, form, priority)


def list_data(body: bytes) -> list[bytes]:
    """Give the data of each input of a body as it is written, as `decode_request` finds it.

    Returns:
        Nothing where the body is no request.
    """
    try:
        return [bytes(item.data) for item in _decode_body(body).inputs]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _array_from_json(lane: Lane, spec: TensorSpec, item: _InputJson) -> NDArray[Any]:
    dtype = spec.dtype
    if not item.data:
        raise InputError("bad_json", detail=f"input `{item.name}` has neither data nor binary_data_size")
    try:
        values = _decode_list[dtype.kind](item.data)
    except msgspec.ValidationError:
        values = _flatten(spec, item)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("bad_json", detail=str(error)) from None
    expected = count_elements(lane, spec, item.shape)
    if len(values) != expected:
        raise InputError("size_mismatch", tensor=item.name, got=len(values), expected=expected, shape=item.shape)
    try:
        if dtype.kind == "O":
            read = decode_base64 if item.parameters and item.parameters.get("content_type") == "base64" else str.encode
            elements = np.empty(expected, object)
            elements[:] = [read(value) for value in values]
            return elements.reshape(item.shape)
        if dtype.kind == "V":
            return round_floats(np.fromiter(values, np.float64, expected)).reshape(item.shape)
        return _make_array(values, dtype, expected).reshape(item.shape)
    except (OverflowError, FloatingPointError, ValueError) as error:
        raise InputError("bad_value", tensor=item.name, datatype=spec.datatype, detail=str(error)) from None


def _make_checked(values: list[Any], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """As `np.fromiter` of NumPy 2, which refuses a number that its type does not hold."""
    array = np.fromiter(values, dtype, count)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        for value in values:
            if not bounds.min <= value <= bounds.max:
                raise OverflowError(f"Python integer {value} out of bounds for {dtype}")
    elif dtype.kind == "f" and np.isinf(array).any():
        # JSON has no infinity, so it was a finite number.
        raise FloatingPointError("overflow encountered in cast")
    return array


# NumPy 1 would wrap integers, and make floats infinite, without a word.
_make_array = np.fromiter if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else _make_checked


_NAMES: Final[dict[type[object], str]] = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
"""Of values as JSON has them."""


def _flatten(spec: TensorSpec, item: _InputJson) -> list[Any]:
    """Read data whose nesting follows the shape; or say what is wrong with it."""
    try:
        level: Any = _decode_any(item.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("bad_json", detail=str(error)) from None
    if isinstance(level, dict) and spec.dtype.kind == "O":
        raise InputError("needs_text", tensor=item.name, got=_NAMES[dict])
    if not isinstance(level, list):
        raise InputError("bad_json", detail=f"data of input `{item.name}` is not a list")
    values = cast(list[Any], level)
    if values and isinstance(values[0], list):
        for axis, dim in enumerate(item.shape[:-1]):
            if len(values) != prod(item.shape[: axis + 1]) or not all(isinstance(value, list) for value in values):
                raise InputError("size_mismatch", tensor=item.name, got=len(values), expected=dim, shape=item.shape)
            if axis + 1 < len(item.shape) and any(len(value) != item.shape[axis + 1] for value in values):
                raise InputError("bad_json", detail=f"nesting of input `{item.name}` does not follow its shape {item.shape}")
            values = [leaf for value in cast(list[list[Any]], values) for leaf in value]
    try:
        return msgspec.convert(values, _LISTS[spec.dtype.kind], strict=True)
    except msgspec.ValidationError as error:
        if spec.dtype.kind == "O":
            kinds = {cast("type[object]", type(value)) for value in values} - {str}
            raise InputError("needs_text", tensor=item.name, got=_NAMES.get(kinds.pop(), "null")) from None
        raise InputError("bad_value", tensor=item.name, datatype=spec.datatype, detail=str(error)) from None


def _read_outputs(lane: Lane, request: _RequestJson) -> list[Wanted] | None:
    default = (request.parameters or {}).get("binary_data_output", False)
    if type(default) is not bool:
        raise InputError("bad_parameter", name="binary_data_output", got=shorten(default), expected="true or false")
    if not request.outputs:
        return [Wanted(index, True) for index in range(len(lane.output_index))] if default else None
    wanted: list[Wanted] = []
    for item in request.outputs:
        index = lane.output_index.get(item.name)
        if index is None:
            known = list_choices(lane.output_index)
            raise InputError("unknown_output", model=lane.name, version=lane.version, tensor=item.name[:128], known=known)
        if any(other.place == index for other in wanted):
            raise InputError("duplicate_tensor", tensor=item.name)
        is_binary = default
        if item.parameters:
            is_binary = item.parameters.get("binary_data", default)
            if len(item.parameters) > 1 or "binary_data" not in item.parameters:
                refuse_parameters(item.parameters)
        if type(is_binary) is not bool:
            raise InputError("bad_parameter", name="binary_data", got=shorten(is_binary), expected="true or false")
        wanted.append(Wanted(index, is_binary))
    return wanted


class _Heads:
    """Constant parts of a lane's answers."""

    __slots__ = ("open", "outputs", "shapes", "single")

    def __init__(self, lane: Lane) -> None:
        name, version = orjson.dumps(lane.name), orjson.dumps(lane.version)
        self.open = b'{"model_name":' + name + b',"model_version":' + version
        specs = lane.signature.outputs
        self.outputs = [
            b'{"name":' + orjson.dumps(spec.name) + b',"datatype":"' + spec.datatype.encode() + b'","shape":' for spec in specs
        ]
        self.shapes: dict[tuple[int, ...], bytes] = {}
        self.single: dict[tuple[int, ...], bytes] = {}
        """All that stands before the numbers of an answer without id and with one output, by its shape."""


def _heads(lane: Lane) -> _Heads:
    heads = lane.cache.get("v2")
    if heads is None:
        heads = lane.cache["v2"] = _Heads(lane)
    return heads


def _shape_json(heads: _Heads, shape: tuple[int, ...]) -> bytes:
    text = heads.shapes.get(shape)
    if text is None:
        if len(heads.shapes) >= MAX_SHAPES:
            heads.shapes.clear()
        text = heads.shapes[shape] = orjson.dumps(shape)
    return text


def _id_json(request_id: str) -> bytes:
    return b',"id":' + orjson.dumps(request_id) + b',"outputs":[' if request_id else b',"outputs":['


def encode_json(lane: Lane, outputs: Sequence[NDArray[Any]], request_id: str, wanted: list[Wanted] | None) -> bytes:
    """Write an answer whose outputs are all JSON.

    Raises:
        ModelError: an output holds NaN or infinity.
        InputError: an output's bytes are not text.
    """
    heads = _heads(lane)
    if wanted is None and len(outputs) == 1 and not request_id:
        array = outputs[0]
        head = heads.single.get(array.shape) or _make_single(heads, array.shape)
        return b"%b%b}]}" % (head, _data_json(lane, 0, array))
    parts = [heads.open, _id_json(request_id)]
    for number, index in enumerate(range(len(outputs)) if wanted is None else [want.place for want in wanted]):
        array = outputs[index]
        shape = _shape_json(heads, array.shape)
        parts += (b"," if number else b"", heads.outputs[index], shape, b',"data":', _data_json(lane, index, array), b"}")
    parts.append(b"]}")
    return b"".join(parts)


def _make_single(heads: _Heads, shape: tuple[int, ...]) -> bytes:
    if len(heads.single) >= MAX_SHAPES:
        heads.single.clear()
    head = heads.single[shape] = b"".join((heads.open, _id_json(""), heads.outputs[0], _shape_json(heads, shape), b',"data":'))
    return head


def encode_rows(array: NDArray[Any]) -> list[bytes]:
    """The numbers of each row of a batch's only output as JSON, for `encode_row`.

    Returns:
        Nothing where rows are not lists of numbers, or large, or one holds NaN or infinity: then each is encoded alone.
    """
    if array.ndim != 2 or array.shape[1] > MAX_ROW_NUMBERS or array.dtype.kind not in "fiub":
        return []
    data = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    return [] if b"null" in data else data[2:-2].split(b"],[")


def encode_row(lane: Lane, array: NDArray[Any], text: bytes) -> bytes:
    """Write the answer of one row: `encode_json` without id and wanted outputs."""
    heads = _heads(lane)
    shape = (1, array.shape[1])
    return b"%b[%b]}]}" % (heads.single.get(shape) or _make_single(heads, shape), text)


def _data_json(lane: Lane, index: int, array: NDArray[Any]) -> bytes:
    if array.dtype.kind == "O":
        try:
            data = orjson.dumps([item.decode() for item in array.ravel().tolist()])
        except UnicodeDecodeError:
            raise InputError("needs_raw", tensor=lane.signature.outputs[index].name, datatype="BYTES") from None
    else:
        if array.dtype.kind == "V":
            array = widen(array)
        data = orjson.dumps(array.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
        # orjson writes NaN and infinity as null, which no client expects among numbers.
        if b"null" in data:
            tensor = lane.signature.outputs[index].name
            raise ModelError("not_finite_output", tensor=tensor, model=lane.name, version=lane.version)
    return data


def encode_binary(
    lane: Lane, outputs: Sequence[NDArray[Any]], request_id: str, wanted: list[Wanted]
) -> tuple[bytes, list[bytes]]:
    """Write an answer with binary outputs: the JSON, and the tensors that follow it.

    Raises:
        ModelError, InputError: as `encode_json`, for the outputs that go as JSON.
    """
    heads = _heads(lane)
    parts = [heads.open, _id_json(request_id)]
    tail: list[bytes] = []
    for number, want in enumerate(wanted):
        array = outputs[want.place]
        parts += (b"," if number else b"", heads.outputs[want.place], _shape_json(heads, array.shape))
        if want.is_binary:
            raw = pack_bytes(array) if array.dtype.kind == "O" else array.tobytes()
            parts.append(b',"parameters":{"binary_data_size":%d}}' % len(raw))
            tail.append(raw)
        else:
            parts += (b',"data":', _data_json(lane, want.place, array), b"}")
    parts.append(b"]}")
    return b"".join(parts), tail
