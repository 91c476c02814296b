"""The datatypes of the V2 protocol as NumPy's, in one table, and the one that NumPy lacks. NumPy alone.

BF16 is the upper half of a float32: 8 bits of exponent and 7 of mantissa. The package `ml_dtypes` teaches it to NumPy. It is
imported where such tensors are, for a worker has none of it otherwise; where it is not installed, arrays of this type are
opaque items of two bytes: they travel, and nothing computes with them. Of all datatypes it alone has NumPy's kind V.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CODES",
    "DATATYPES",
    "DTYPES",
    "MAX_RANK",
    "OBJECT",
    "OPAQUE",
    "decode_stored",
    "find_bfloat16",
    "is_bfloat16",
    "is_float",
    "learn_bfloat16",
    "round_floats",
    "widen",
]

MAX_RANK: Final = 16
"""Axes of a tensor at most."""
OPAQUE: Final = np.dtype("V2")
"""What a `.npy` file says of bfloat16, and what it is without ml_dtypes."""

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
    "BF16": OPAQUE,
    "BYTES": np.dtype("O"),
}
"""By the protocol's names, in the order of their codes. BYTES arrays hold `bytes`; BF16 is opaque until `learn_bfloat16`."""
DTYPES: Final = list(DATATYPES.values())
"""By the codes that stand for datatypes between front and worker."""
CODES: Final = {dtype: code for code, dtype in enumerate(DTYPES)}
OBJECT: Final = CODES[np.dtype("O")]
"""The code of BYTES."""


@lru_cache(maxsize=1)
def find_bfloat16() -> np.dtype[Any]:
    """The type; OPAQUE where ml_dtypes is not installed."""
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return OPAQUE


def learn_bfloat16() -> None:
    """Know BF16 tensors by their own type from now on; before, they are items of two bytes."""
    code = CODES[OPAQUE]
    DATATYPES["BF16"] = DTYPES[code] = find_bfloat16()
    CODES[DTYPES[code]] = code


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Say whether the elements are of this type."""
    return dtype.kind == "V" and dtype in (OPAQUE, find_bfloat16())


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether the elements are floats, of NumPy's kinds or this one."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def round_floats(values: NDArray[Any]) -> NDArray[Any]:
    """Round floats to this type.

    Args:
        values: finite float64 or float32, of any shape.

    Raises:
        FloatingPointError: a value is beyond 3.39e38, and would become infinite.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(find_bfloat16())
    if not np.isfinite(rounded).all():
        raise FloatingPointError("overflow encountered in cast to bfloat16")
    return rounded


def widen(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array of this type as float32, which holds every value of it; any other array as it is."""
    if not is_bfloat16(array.dtype):
        return array
    with np.errstate(invalid="ignore"):  # what it says of a signalling NaN
        return array.astype(np.float32)


def decode_stored(array: NDArray[Any]) -> NDArray[Any]:
    """Name the type of an array from a `.npy` file, whose format knows items of two bytes and not what they are."""
    return array.view(find_bfloat16()) if array.dtype == OPAQUE else array
