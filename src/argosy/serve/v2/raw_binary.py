"""Raw binary requests of V2: the body is one tensor and nothing else, which `Inference-Header-Content-Length: 0` says.

Source: Triton's extension_binary_data, Raw Binary Request.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.serve.dispatch.call import Lane
from argosy.serve.v2.json_body import InferRequest, Wanted
from argosy.serve.v2.tensors import array_from_raw, check_tensor, gather_inputs, plan_inputs
from argosy.signature import TensorSpec

__all__ = ["decode_raw_binary"]


def decode_raw_binary(lane: Lane, body: bytes | memoryview) -> InferRequest:
    """Read a body that is the only input of a version: one row, whose free dimension is as long as the body makes it.

    Of BYTES it is the one element, such as the picture or the text that the version preprocesses. All outputs go as binary.

    Args:
        lane: the version that the request goes to.
        body: the whole body.

    Raises:
        InputError: `no_raw_binary`, the body alone would not say what it is; `bytes_mismatch`, it has no whole number of
            elements; `shape_mismatch` or `bad_value`, as for any tensor.
    """
    plan = plan_inputs(lane)
    names = plan.raw_names or plan.names
    if len(names) != 1:
        raise InputError("no_raw_binary", model=lane.name, version=lane.version, detail=f"{len(names)} inputs")
    spec = plan.specs[names[0]]
    array = _read_element(lane, spec, body) if spec.datatype == "BYTES" else _read_row(lane, spec, body, plan.is_batched)
    arrays, num_rows, form = gather_inputs(lane, {spec.name: array})
    wanted = [Wanted(place, True) for place in range(len(lane.output_index))]
    return InferRequest(arrays, num_rows, "", None, wanted, form)


def _read_element(lane: Lane, spec: TensorSpec, body: bytes | memoryview) -> NDArray[Any]:
    shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
    if prod(shape) != 1:
        raise InputError("no_raw_binary", model=lane.name, version=lane.version, detail=f"several in {spec.name!r}")
    array = np.empty(1, object)
    array[0] = bytes(body)
    return array.reshape(shape)


def _read_row(lane: Lane, spec: TensorSpec, body: bytes | memoryview, is_batched: bool) -> NDArray[Any]:
    row = (1, *spec.shape[1:]) if is_batched else spec.shape
    if row.count(-1) > 1:
        raise InputError("no_raw_binary", model=lane.name, version=lane.version, detail=f"several in {spec.name!r}")
    step_bytes = spec.dtype.itemsize * prod(dim for dim in row if dim != -1)
    length = len(body) // step_bytes if step_bytes else 0
    shape = tuple(length if dim == -1 else dim for dim in row)
    return array_from_raw(check_tensor(lane, spec.name, spec.datatype, shape), shape, memoryview(body), lane)
