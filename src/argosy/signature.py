"""What goes into a model and what comes out: names, datatypes, shapes.

A shape's -1 stands for any length. Where the first axis of every input and output is -1, the first
axis counts rows and requests may be joined (`Signature.is_batched`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices

__all__ = [
    "DATATYPES",
    "MAX_RANK",
    "Arrays",
    "Signature",
    "TensorSpec",
    "check_name",
    "datatype_of",
    "pack_bytes",
    "unpack_bytes",
]

Arrays = dict[str, NDArray[Any]]

MAX_RANK: Final = 16

# The V2 datatypes with a NumPy equivalent. BYTES arrays have dtype object and hold `bytes`.
DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str, kind: str = "Model") -> str:
    """Return `name` if it may name a model, deployment or alias.

    Raises:
        InputError: it does not match `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise InputError("bad_name", kind=kind, got=name[:200])
    return name


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the V2 datatype of a NumPy dtype; strings of any kind are BYTES.

    Raises:
        InputError: no V2 datatype stands for it.
    """
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None and dtype.kind in "SU":
        return "BYTES"
    if name is None:
        raise InputError("unsupported_type", tensor="?", got=dtype, known=list_choices(DATATYPES))
    return name


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 stands for any length."""
    unit: str | None = None
    """Physical unit of the values, such as `m/s`."""
    labels: tuple[str, ...] | None = None
    """Names of the last axis' entries, such as class names."""

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise InputError("unsupported_type", tensor=self.name, got=self.datatype, known=list_choices(DATATYPES))
        if len(self.shape) > MAX_RANK or any(dim < -1 for dim in self.shape):
            raise InputError("bad_option", option=f"shape of {self.name}", got=self.shape, expected="dimensions >= -1")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        return DATATYPES[self.datatype]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Say whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The input and output tensors of a version."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            names = [spec.name for spec in specs]
            for name in names:
                if names.count(name) > 1:
                    raise InputError("duplicate_tensor", tensor=name)

    @property
    def is_batched(self) -> bool:
        """True when the first axis of every tensor counts rows, so that requests can be joined."""
        specs = self.inputs + self.outputs
        return bool(self.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in specs)

    @staticmethod
    def from_arrays(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Signature:
        """Derive a signature from one example: the first axis is rows, the other axes are as seen."""

        def specs(arrays: Mapping[str, NDArray[Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name, datatype_of(a.dtype), (-1, *a.shape[1:])) for name, a in arrays.items())

        return Signature(specs(inputs), specs(outputs))


def pack_bytes(array: NDArray[Any]) -> bytes:
    """Serialise a BYTES tensor as V2 does: each element is a 4-byte little-endian length and its bytes."""
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        raw = item.encode() if isinstance(item, str) else bytes(item)
        parts.append(len(raw).to_bytes(4, "little"))
        parts.append(raw)
    return b"".join(parts)


def unpack_bytes(buffer: bytes | memoryview, num_elements: int, tensor: str = "?") -> NDArray[Any]:
    """Read `num_elements` length-prefixed elements; the inverse of `pack_bytes`, flat.

    Raises:
        InputError: the buffer holds more or fewer elements than `num_elements`.
    """
    view = memoryview(buffer)
    out = np.empty(num_elements, dtype=object)
    pos = 0
    for index in range(num_elements):
        end = pos + 4
        size = int.from_bytes(view[pos:end], "little") if end <= len(view) else -1
        if size < 0 or end + size > len(view):
            raise InputError("size_mismatch", tensor=tensor, got=index, expected=num_elements, shape=(num_elements,))
        out[index] = bytes(view[end : end + size])
        pos = end + size
    if pos != len(view):
        raise InputError("bytes_mismatch", tensor=tensor, got=len(view), expected=pos, shape=(num_elements,), datatype="BYTES")
    return out
