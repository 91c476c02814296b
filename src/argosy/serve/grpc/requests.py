"""Requests of the V2 protocol over gRPC: compressed messages, inputs to arrays, parameters, and the outputs asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.serve.v2.parameters import MAX_SHOWN, refuse_parameters
from argosy.serve.v2.tensors import array_from_raw, check_bytes_count, check_tensor, count_elements, gather_inputs
from argosy.signature import TensorSpec

if TYPE_CHECKING:
    from argosy.serve.dispatch.router import Lane

__all__ = ["read_inputs", "read_parameters", "read_wanted"]

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


def read_inputs(lane: Lane, request: Any, raws: Sequence[Any]) -> tuple[list[NDArray[Any]], int, int]:
    """Check the inputs of a request and view them as arrays, in the signature's order.

    Args:
        lane: the version that the request goes to.
        request: a ModelInferRequest.
        raws: its raw contents, one for each input or none.

    Returns:
        The arrays, the number of rows and the form, as `gather_inputs`.

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
            refuse_parameters(read_parameters(tensor.parameters, tensor.parameters))
        if not raws:
            named[name] = _array_from_contents(lane, spec, shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise InputError("mixed_contents", tensor=name)
        else:
            named[name] = array_from_raw(spec, shape, raws[index], lane)
    return gather_inputs(lane, named)


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


def read_parameters(parameters: Any, names: Iterable[str]) -> dict[str, Any]:
    """Give those of a map of InferParameter, or ModelRepositoryParameter, that have these names, as plain values."""
    return {name: _read_parameter(parameters[name]) for name in names if name in parameters}


def _read_parameter(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind else None
    return value[:MAX_SHOWN] if isinstance(value, (str, bytes)) else value


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
            name = output.name[:MAX_SHOWN]
            raise InputError("unknown_output", model=lane.name, version=lane.version, tensor=name, known=known)
        if index in wanted:
            raise InputError("duplicate_tensor", tensor=output.name)
        if output.parameters:
            refuse_parameters(read_parameters(output.parameters, output.parameters))
        wanted.append(index)
    return wanted
