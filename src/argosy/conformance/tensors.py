"""Tensors on the wire: the datatypes of the protocol, values to send, and how answers are read and compared.

BF16 has no NumPy dtype: its arrays hold the 16 bits of each element as uint16.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DATATYPES",
    "FLOATS",
    "INTEGERS",
    "Array",
    "equal",
    "from_json",
    "from_raw",
    "make_edges",
    "make_not_finite",
    "make_octets",
    "make_sample",
    "to_json",
    "to_raw",
]

Array = NDArray[Any]

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
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""Every datatype of the protocol, and the dtype of its arrays here."""
FLOATS: Final = ("FP16", "BF16", "FP32", "FP64")
INTEGERS: Final = tuple(name for name in DATATYPES if "INT" in name)

_WORDS: Final = ("", "a", "\u00e9\u00df", "\u65e5\u672c\u8a9e", "line\nbreak", "nul\0inside", '"quoted" \\ back', "\U0001f6a2")
_MAX_RANK: Final = 64


def _to_bf16(values: Array) -> Array:
    """Round float32 to the upper 16 bits, ties to even; NaN stays one."""
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype("<u2")


def _from_bf16(bits: Array) -> Array:
    return (bits.astype("<u4") << 16).view("<f4")


def make_sample(datatype: str, shape: tuple[int, ...], seed: int) -> Array:
    """Values that nearly any model takes: 0 to 1, integers 0 to 3, short words; the same for the same seed."""
    rng = np.random.default_rng(seed)
    if datatype == "BYTES":
        words = [b"word-%d" % number for number in rng.integers(0, 1000, prod(shape))]
        return np.array([*words, None], object)[:-1].reshape(shape)
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype("?")
    if datatype in FLOATS:
        values = rng.random(shape).astype("<f4")
        return _to_bf16(values) if datatype == "BF16" else values.astype(DATATYPES[datatype])
    return rng.integers(0, 4, shape).astype(DATATYPES[datatype])


def make_edges(datatype: str) -> Array:
    """Eight values at the edges of a datatype, shape (2, 4); all are finite, and BYTES are UTF-8."""
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        array = np.array([*(word.encode() for word in _WORDS), None], object)[:-1]
    elif datatype == "BOOL":
        array = np.array([True, False, False, True, True, True, False, False])
    elif datatype in INTEGERS:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        array = np.array([low, low + 1, 0, 1, 2, high // 2, high - 1, high], dtype)
    elif datatype == "BF16":
        array = np.array([0x0000, 0x3F80, 0xBF81, 0x7F7F, 0xFF7F, 0x0001, 0x0080, 0x4049], dtype)
    else:
        info = np.finfo(dtype)
        small = [float(info.smallest_subnormal), float(info.tiny)]
        array = np.array([0.0, 1.0, -1.0 / 3.0, float(info.max), float(info.min), *small, 1000.5], dtype)
    return array.reshape(2, 4)


def make_not_finite(datatype: str) -> Array:
    """Eight values of a datatype of floats, shape (2, 4), infinities and NaN among them."""
    values = np.array([[np.inf, -np.inf, np.nan, 1.0], [0.0, np.nan, -1.0, np.inf]], "<f4")
    return _to_bf16(values) if datatype == "BF16" else values.astype(DATATYPES[datatype])


def make_octets() -> Array:
    """Eight BYTES elements of any bytes, shape (2, 4)."""
    items = [b"", b"\x00", b"\xff\xfe\x00", bytes(range(256)), b"\xc3", b"\xed\xa0\x80", b"plain", b"\x80" * 1000]
    return np.array([*items, None], object)[:-1].reshape(2, 4)


def to_json(array: Array, datatype: str) -> list[Any]:
    """The flat `data` of a tensor.

    Raises:
        ValueError: it holds what JSON cannot.
    """
    flat = array.ravel()
    if datatype == "BYTES":
        return [cast(bytes, item).decode() for item in flat.tolist()]
    return (_from_bf16(flat) if datatype == "BF16" else flat).tolist()


def to_raw(array: Array, datatype: str) -> bytes:
    """The binary form of a tensor: little-endian, row by row; each BYTES element after its length."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return array.astype(DATATYPES[datatype], copy=False).tobytes()


def from_raw(raw: bytes, datatype: str, shape: tuple[int, ...]) -> Array:
    """Read the binary form of a tensor.

    Raises:
        ValueError: its size is not what shape and datatype say.
    """
    count = prod(shape)
    if datatype != "BYTES":
        size = count * DATATYPES[datatype].itemsize
        if len(raw) != size:
            raise ValueError(f"{len(raw)} bytes of data, not {size}")
        return np.frombuffer(raw, DATATYPES[datatype]).reshape(shape)
    items: list[bytes] = []
    pos = 0
    while pos < len(raw):
        end = pos + 4 + int.from_bytes(raw[pos : pos + 4], "little")
        if pos + 4 > len(raw) or end > len(raw):
            raise ValueError(f"element {len(items)} ends after the data")
        items.append(raw[pos + 4 : end])
        pos = end
    if len(items) != count:
        raise ValueError(f"{len(items)} elements, not {count}")
    return np.array([*items, None], object)[:-1].reshape(shape)


def from_json(data: object, datatype: str, shape: tuple[int, ...]) -> Array:
    """Read the `data` of a tensor, flat or nested.

    Raises:
        ValueError: it does not fit datatype and shape; the text says how.
    """
    values = _flatten(data, shape)
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise ValueError("an element of BYTES that is no string")
        return np.array([*(cast(str, value).encode() for value in values), None], object)[:-1].reshape(shape)
    if datatype == "BOOL":
        if not all(isinstance(value, bool) for value in values):
            raise ValueError("an element of BOOL that is neither true nor false")
        return np.array(values, "?").reshape(shape)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"an element of {datatype} that is no number")
    if datatype in INTEGERS:
        return _read_integers(values, DATATYPES[datatype]).reshape(shape)
    with np.errstate(over="ignore"):
        floats = np.array(values, "<f4" if datatype == "BF16" else DATATYPES[datatype])
    return (_to_bf16(floats) if datatype == "BF16" else floats).reshape(shape)


def _read_integers(values: list[Any], dtype: np.dtype[Any]) -> Array:
    """JSON has numbers only: 1.0 is as good an integer as 1."""
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    info = np.iinfo(dtype)
    if not all(isinstance(value, int) and info.min <= value <= info.max for value in whole):
        raise ValueError(f"a number that is no {dtype}")
    return np.array(whole, dtype)


def _flatten(data: object, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("data is no array")
    level = cast(list[Any], data)
    for width in shape[1:]:
        if not any(isinstance(value, list) for value in level):
            break
        if not all(isinstance(value, list) and len(cast(list[Any], value)) == width for value in level):
            raise ValueError(f"nested data that does not follow the shape {list(shape)}")
        level = [leaf for value in cast(list[list[Any]], level) for leaf in value]
    if len(level) != prod(shape):
        raise ValueError(f"{len(level)} elements of data, not {prod(shape)} for shape {list(shape)}")
    return level


def equal(one: Array, other: Array) -> bool:
    """True if two tensors have the same shape and values; NaN is equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
