"""The V2 protocol as a client speaks it: arrays to bodies, answers to arrays, replies to errors. It does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from argosy.datatypes import DATATYPES, is_bfloat16, is_float
from argosy.errors import (
    ArgosyError,
    AuthError,
    ConflictError,
    DeadlineError,
    FaultError,
    InputError,
    NotAllowedError,
    NotFoundError,
    OverloadedError,
    PoisonError,
    RequestError,
    TooLargeError,
    UnavailableError,
    list_choices,
)
from argosy.signature import Arrays, TensorSpec, pack_bytes, unpack_bytes

if TYPE_CHECKING:
    import httpx

__all__ = [
    "HEADER_LENGTH",
    "Inputs",
    "Metadata",
    "Prediction",
    "accept",
    "decode_answer",
    "decode_metadata",
    "encode_request",
    "fit_inputs",
    "make_error",
]

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_MAX_SHOWN: Final = 300
_BFLOAT16_MANTISSA: Final = 7  # bits, the leading one left out

_ERRORS: Final[dict[int, type[ArgosyError]]] = {
    error.status: error
    for error in (
        InputError,
        AuthError,
        NotAllowedError,
        NotFoundError,
        ConflictError,
        TooLargeError,
        PoisonError,
        OverloadedError,
        UnavailableError,
        DeadlineError,
    )
}

Inputs = Mapping[str, ArrayLike] | ArrayLike


class Prediction(Mapping[str, NDArray[Any]]):
    """The outputs of one request by name; a BYTES output is an object array of `bytes`.

    Attributes:
        model: the deployment that answered.
        version: of the model that answered.
        id: the request's, as it was sent.
    """

    __slots__ = ("_outputs", "id", "model", "version")

    def __init__(self, outputs: Arrays, *, model: str, version: str, id: str) -> None:
        self._outputs = outputs
        self.model = model
        self.version = version
        self.id = id

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Prediction({self._outputs!r}, model={self.model!r}, version={self.version!r}, id={self.id!r})"


class Metadata(msgspec.Struct, frozen=True):
    """What a server says of a deployment."""

    name: str
    versions: tuple[str, ...]
    """Those that are served now."""
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    raw_inputs: tuple[TensorSpec, ...] = ()
    """What may be sent instead of `inputs`, where the server preprocesses: pictures and text."""


class _TensorJson(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    parameters: dict[str, Any] | None = None


class _MetadataJson(msgspec.Struct):
    name: str
    inputs: tuple[_TensorJson, ...]
    outputs: tuple[_TensorJson, ...]
    versions: tuple[str, ...] = ()
    platform: str = ""
    parameters: dict[str, Any] | None = None


class _AnswerJson(msgspec.Struct):
    model_name: str
    outputs: tuple[_TensorJson, ...]
    model_version: str = ""
    id: str = ""


class _ErrorJson(msgspec.Struct):
    error: str
    key: str = ""


# errors


def make_error(kind: type[ArgosyError], said: str, key: str = "", retry_after_s: float | None = None) -> ArgosyError:
    """Make an error of what a server said, which ends in a line with a hint if it has one."""
    text, _, hint = said.partition("\nhint: ")
    error = kind("server_said", text=text, hint=hint, retry_after_s=retry_after_s)
    error.key = key or error.key
    return error


def _read_error(response: httpx.Response) -> ArgosyError:
    status = response.status_code
    kind = _ERRORS.get(status) or (RequestError if status < 500 else FaultError)
    try:
        said = msgspec.json.decode(response.content, type=_ErrorJson)
    except msgspec.DecodeError:
        # Not from a V2 server, such as a proxy's page.
        said = _ErrorJson(f"HTTP status {status}: {response.text[:_MAX_SHOWN]}")
    wait = response.headers.get("Retry-After", "")
    return make_error(kind, said.error, said.key, float(wait) if wait.isdecimal() else None)


def accept(reply: httpx.Response | httpx.RequestError, url: str, timeout_s: float) -> httpx.Response:
    """Return a reply that is a success.

    Raises:
        ArgosyError: what the server said; `no_connection`; `deadline_passed`.
    """
    import httpx

    if isinstance(reply, httpx.Response):
        if reply.is_success:
            return reply
        raise _read_error(reply)
    if isinstance(reply, httpx.TimeoutException) and not isinstance(reply, httpx.ConnectTimeout):
        raise DeadlineError("deadline_passed", timeout_s=timeout_s) from reply
    raise UnavailableError("no_connection", url=url, detail=str(reply) or type(reply).__name__) from reply


# tensors


def _fit_array(value: ArrayLike, spec: TensorSpec, model: str, version: str) -> NDArray[Any]:
    """Give a value as an array of the input's dtype; only where no value changes but by rounding of floats.

    Raises:
        InputError: `datatype_mismatch`, its kind is another; `needs_text`; `bad_value`, a value does not fit.
    """
    want = spec.dtype
    try:
        # From lists NumPy would make an array of fixed width, which forgets the zeros that an element ends in.
        array = np.asarray(value, object if want.kind == "O" and not isinstance(value, np.ndarray) else None)
    except ValueError as error:  # lists of different lengths
        raise InputError("bad_value", tensor=spec.name, datatype=spec.datatype, detail=str(error)) from None
    if array.dtype == want and want.kind != "O":
        return array
    # NumPy calls bfloat16 no float.
    kinds = "".join("f" if is_bfloat16(dtype) else dtype.kind for dtype in (array.dtype, want))
    if kinds in ("SO", "UO"):
        return array
    if kinds == "OO":
        for item in array.ravel().tolist():
            if not isinstance(item, (str, bytes)):
                raise InputError("needs_text", tensor=spec.name, got=type(item).__qualname__)
        return array
    if kinds not in ("ff", "ii", "iu", "ui", "uu", "if", "uf", "bi", "bu", "bf"):
        raise InputError(
            "datatype_mismatch", tensor=spec.name, model=model, version=version, got=array.dtype, expected=spec.datatype
        )
    detail = _find_misfit(array, want)
    if detail:
        raise InputError("bad_value", tensor=spec.name, datatype=spec.datatype, detail=detail)
    return array.astype(want)


def _find_misfit(array: NDArray[Any], want: np.dtype[Any]) -> str:
    """Say which value a number type cannot hold; "" when it holds all of them."""
    if not array.size or array.dtype.kind == "b":
        return ""
    if is_float(array.dtype):
        with np.errstate(over="ignore"):
            is_lost = np.isinf(array.astype(want)) & ~np.isinf(array)
        return f"{array[is_lost].flat[0]} is too large" if is_lost.any() else ""
    if is_float(want):
        # Every integer up to here has a float of its own.
        high = 1 << (_BFLOAT16_MANTISSA if is_bfloat16(want) else np.finfo(want).nmant) + 1
        low = -high
    else:
        low, high = int(np.iinfo(want).min), int(np.iinfo(want).max)
    least, largest = int(array.min()), int(array.max())
    return "" if low <= least and largest <= high else f"values from {least} to {largest}, it holds {low} to {high}"


def fit_inputs(metadata: Metadata, inputs: Inputs, version: str) -> Arrays:
    """Hold what a caller gave against the model's inputs.

    Raises:
        InputError: `needs_names`, `unknown_input`, `missing_input`, `datatype_mismatch`, `needs_text`, `bad_value`.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    raw = {spec.name: spec for spec in metadata.raw_inputs}
    if isinstance(inputs, Mapping) and inputs.keys() & (raw.keys() - specs.keys()):
        specs = raw
    shown = version or ", ".join(metadata.versions)
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InputError("needs_names", model=metadata.name, got=len(specs), known=list_choices(specs))
        inputs = {metadata.inputs[0].name: inputs}
    for name in inputs:
        if name not in specs:
            raise InputError("unknown_input", model=metadata.name, version=shown, tensor=name, known=list_choices(specs))
    for name in specs:
        if name not in inputs:
            raise InputError("missing_input", model=metadata.name, version=shown, tensor=name, got=list_choices(inputs))
    return {name: _fit_array(value, specs[name], metadata.name, shown) for name, value in inputs.items()}


def encode_request(
    arrays: Arrays,
    specs: Sequence[TensorSpec],
    outputs: Sequence[str] | None,
    timeout_s: float | None,
    request_id: str | None,
    priority: int = 0,
) -> tuple[bytes, int]:
    """Write a V2 request; returns the body, and how many of its bytes are the JSON that stands first."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    raws = {name: pack_bytes(array, name) if datatypes[name] == "BYTES" else array.tobytes() for name, array in arrays.items()}
    parameters: dict[str, Any] = {"binary_data_output": True}
    if timeout_s is not None:
        parameters["timeout"] = max(1, int(timeout_s * 1e6))  # microseconds, by the protocol
    if priority:
        parameters["priority"] = priority
    head: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatypes[name],
                "parameters": {"binary_data_size": len(raws[name])},
            }
            for name, array in arrays.items()
        ],
    }
    if request_id is not None:
        head["id"] = request_id
    if outputs is not None:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    text = msgspec.json.encode(head)
    return b"".join((text, *raws.values())), len(text)


def decode_answer(response: httpx.Response) -> Prediction:
    """Read a V2 answer, binary or JSON. Arrays are the caller's own, and writable."""
    content = response.content
    length = response.headers.get(HEADER_LENGTH)
    pos = len(content) if length is None else int(length)
    answer = msgspec.json.decode(content[:pos], type=_AnswerJson)
    outputs: Arrays = {}
    for item in answer.outputs:
        size = (item.parameters or {}).get("binary_data_size")
        dtype = DATATYPES[item.datatype]
        if size is None:
            outputs[item.name] = _array_from_json(item, dtype)
            continue
        raw = content[pos : pos + size]
        pos += size
        num_elements = int(np.prod(item.shape, dtype=np.int64))
        flat = unpack_bytes(raw, num_elements, item.name) if dtype.kind == "O" else np.frombuffer(raw, dtype).copy()
        outputs[item.name] = flat.reshape(item.shape)
    return Prediction(outputs, model=answer.model_name, version=answer.model_version, id=answer.id)


def _array_from_json(item: _TensorJson, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.array(item.data, dtype)
    if dtype.kind == "O":
        array = np.array([text.encode() for text in array.ravel().tolist()], dtype)
    return array.reshape(item.shape)


def decode_metadata(response: httpx.Response) -> Metadata:
    found = msgspec.json.decode(response.content, type=_MetadataJson)
    raw = msgspec.convert((found.parameters or {}).get("raw_inputs", ()), tuple[_TensorJson, ...])
    inputs, outputs, raw_inputs = (tuple(_read_spec(item) for item in side) for side in (found.inputs, found.outputs, raw))
    return Metadata(found.name, found.versions, found.platform, inputs, outputs, raw_inputs)


def _read_spec(item: _TensorJson) -> TensorSpec:
    more = {key: value for key, value in (item.parameters or {}).items() if key in ("labels", "unit")}
    return msgspec.convert({"name": item.name, "datatype": item.datatype, "shape": item.shape, **more}, TensorSpec)
