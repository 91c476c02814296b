"""Tensors of a request against a version's signature, the same for every protocol.

A protocol decoder does, for each input: `check_tensor`, then `array_from_raw` or its own reading of typed values into
an array of the given shape; at the end `gather_inputs`. Nothing is allocated from a shape before that shape was
compared with the bytes that came.

Where the version preprocesses, a request names the tensors (FORM_TENSORS) or what they are made of (FORM_RAW).
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.serve.dispatch.call import Lane
from argosy.serve.v2.parameters import MAX_SHOWN
from argosy.serve.wire.frames import FORM_RAW, FORM_TENSORS, MAX_EMPTY_PRODUCT
from argosy.signature import Signature, TensorSpec, unpack_bytes

__all__ = [
    "MAX_BYTES_ELEMENTS",
    "MAX_SHAPES",
    "InputPlan",
    "array_from_raw",
    "check_bytes_count",
    "check_tensor",
    "count_elements",
    "decode_base64",
    "gather_inputs",
    "plan_inputs",
]

# Reading one BYTES element costs about 0.3 us and 50 bytes of memory, whatever its length: more of them in one tensor
# would hold up every other request of the front for longer than this many do (0.3 s).
MAX_BYTES_ELEMENTS: Final = 1_000_000

# Shapes that are remembered of a tensor, whatever shapes clients send.
MAX_SHAPES: Final = 256


class InputPlan:
    """What `check_tensor` and `gather_inputs` need of a signature, worked out once per lane.

    Attributes:
        specs: input name -> its TensorSpec, of both forms.
        sizes: input name -> {shape seen and found right: number of its elements}.
        names: the inputs in the signature's order.
        raw_names: those of `Signature.raw_inputs` in its order; empty where the version does not preprocess.
        is_batched: the signature's, which is computed anew at each look.
    """

    __slots__ = ("is_batched", "names", "raw_names", "sizes", "specs")

    def __init__(self, signature: Signature) -> None:
        raw_inputs = signature.raw_inputs if signature.preprocess else ()
        self.specs = {spec.name: spec for spec in (*signature.inputs, *raw_inputs)}
        self.sizes: dict[str, dict[tuple[int, ...], int]] = {name: {} for name in self.specs}
        self.names = tuple(spec.name for spec in signature.inputs)
        self.raw_names = tuple(spec.name for spec in raw_inputs)
        self.is_batched = signature.is_batched


def plan_inputs(lane: Lane) -> InputPlan:
    """Return the plan of a lane, made on first use.

    Raises:
        InputError: only_raw, the version has no tensors.
    """
    plan: InputPlan | None = lane.cache.get("inputs")
    if plan is None:
        if not lane.signature.outputs:
            raise InputError("only_raw", model=lane.name, version=lane.version)
        plan = lane.cache["inputs"] = InputPlan(lane.signature)
    return plan


def check_tensor(lane: Lane, name: str, datatype: str, shape: tuple[int, ...]) -> TensorSpec:
    """Return the signature's input of this name if datatype and shape fit it.

    Args:
        lane: the version that the request names.
        name: as the client sent it, not checked before.
        datatype: V2 datatype as the client sent it.
        shape: plain integers of any size and sign; a decoder has made sure that they are integers.

    Raises:
        InputError: unknown_input, datatype_mismatch or shape_mismatch.
    """
    plan = plan_inputs(lane)
    spec = plan.specs.get(name)
    if spec is None:
        raise InputError(
            "unknown_input", model=lane.name, version=lane.version, tensor=name[:MAX_SHOWN], known=list_choices(plan.specs)
        )
    if datatype != spec.datatype:
        raise InputError(
            "datatype_mismatch",
            tensor=name,
            model=lane.name,
            version=lane.version,
            got=datatype[:MAX_SHOWN] or "none",
            expected=spec.datatype,
        )
    sizes = plan.sizes[name]
    if shape not in sizes:
        _check_shape(lane, spec, shape)
        if len(sizes) >= MAX_SHAPES:
            sizes.clear()
        sizes[shape] = prod(shape)
    return spec


def _check_shape(lane: Lane, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    fits = spec.accepts(shape) and all(dim >= 0 for dim in shape)
    if fits and 0 in shape:
        fits = prod(dim for dim in shape if dim) <= MAX_EMPTY_PRODUCT
    if not fits:
        shown = shape if len(shape) <= len(spec.shape) + 16 else f"with {len(shape)} dimensions"
        raise InputError(
            "shape_mismatch", tensor=spec.name, model=lane.name, version=lane.version, got=shown, expected=spec.shape
        )


def count_elements(lane: Lane, spec: TensorSpec, shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape that `check_tensor` accepted; exact for any size."""
    size = plan_inputs(lane).sizes[spec.name].get(shape)
    return prod(shape) if size is None else size


def array_from_raw(spec: TensorSpec, shape: tuple[int, ...], buffer: bytes | memoryview, lane: Lane) -> NDArray[Any]:
    """View a tensor's raw little-endian bytes as an array, without a copy (BYTES elements are copied).

    Args:
        spec: the input, from `check_tensor`.
        shape: accepted by `check_tensor`.
        buffer: exactly the tensor's bytes, of format B. The array is read-only if the buffer is, and keeps it alive.
        lane: the version, for messages.

    Raises:
        InputError: bytes_mismatch, size_mismatch or bad_value (a BOOL byte that is neither 0 nor 1).
    """
    num_elements = count_elements(lane, spec, shape)
    datatype = spec.datatype
    if datatype == "BYTES":
        return _array_from_elements(spec, shape, buffer, num_elements)
    dtype = spec.dtype
    size_bytes = num_elements * dtype.itemsize
    if len(buffer) != size_bytes:
        raise InputError("bytes_mismatch", tensor=spec.name, got=len(buffer), expected=size_bytes, shape=shape, datatype=datatype)
    if datatype == "BOOL" and num_elements and int(np.frombuffer(buffer, np.uint8).max()) > 1:
        # NumPy would take it, and then disagree with itself: True that is neither equal to 1 nor to True in bytes.
        raise InputError("bad_value", tensor=spec.name, datatype=datatype, detail="a byte that is neither 0 nor 1")
    return np.ndarray(shape, dtype, buffer)


def _array_from_elements(spec: TensorSpec, shape: tuple[int, ...], buffer: bytes | memoryview, num_elements: int) -> NDArray[Any]:
    check_bytes_count(spec, num_elements)
    # Each element has a length of four bytes: more elements than that cannot be there, and are not allocated.
    if num_elements * 4 > len(buffer):
        raise InputError("size_mismatch", tensor=spec.name, got=len(buffer) // 4, expected=num_elements, shape=shape)
    return unpack_bytes(buffer, num_elements, spec.name).reshape(shape)


def check_bytes_count(spec: TensorSpec, num_elements: int) -> None:
    """Refuse a BYTES tensor of more than `MAX_BYTES_ELEMENTS` elements.

    Raises:
        InputError: too_many_elements.
    """
    if num_elements > MAX_BYTES_ELEMENTS:
        raise InputError(
            "too_many_elements", tensor=spec.name, got=num_elements, datatype=spec.datatype, limit=MAX_BYTES_ELEMENTS
        )


def gather_inputs(lane: Lane, named: Mapping[str, NDArray[Any]]) -> tuple[list[NDArray[Any]], int, int]:
    """Put the inputs of a request into the signature's order and count its rows.

    Args:
        lane: the version that the request names.
        named: input name -> array; every name went through `check_tensor`.

    Returns:
        One array per input of the signature; the rows, which are the common length of the first axes, or 1 where the
        signature is not batched; and the form: FORM_TENSORS, or FORM_RAW where the arrays are those of
        `Signature.raw_inputs`.

    Raises:
        InputError: missing_input, mixed_inputs, rows_differ or no_rows.
    """
    plan = plan_inputs(lane)
    names, form = _choose_form(lane, plan, named) if plan.raw_names else (plan.names, FORM_TENSORS)
    try:
        arrays = [named[name] for name in names]
    except KeyError as missing:
        raise InputError(
            "missing_input", model=lane.name, version=lane.version, tensor=missing.args[0], got=list_choices(named)
        ) from None
    if not plan.is_batched:
        return arrays, 1, form
    return arrays, _count_rows(lane, names, arrays), form


def _choose_form(lane: Lane, plan: InputPlan, named: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, ...], int]:
    """Say which inputs the request has to hold, by those that it names."""
    steps = lane.signature.preprocess
    if not any(step.name in named for step in steps):
        return plan.names, FORM_TENSORS
    if mixed := [name for step in steps for name in step.inputs if name in named]:
        known = list_choices(plan.raw_names)
        raise InputError("mixed_inputs", model=lane.name, version=lane.version, got=list_choices(mixed), expected=known)
    return plan.raw_names, FORM_RAW


def decode_base64(text: str) -> bytes:
    """Decode an element that a client marked with `content_type` base64; strictly, as RFC 4648 has it.

    Raises:
        ValueError: it has other characters, or no right padding.
    """
    return binascii.a2b_base64(text, strict_mode=True)


def _count_rows(lane: Lane, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> int:
    num_rows = arrays[0].shape[0]
    for array in arrays:
        if array.shape[0] != num_rows:
            got = ", ".join(f"{name} {each.shape[0]}" for name, each in zip(names[:20], arrays, strict=False))
            raise InputError("rows_differ", model=lane.name, version=lane.version, got=got)
    if not num_rows:
        raise InputError("no_rows")
    return num_rows
