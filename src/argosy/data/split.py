"""Parts of a data set by the hash of a key: a row stays in its part when the data grows, moves or changes its order."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError

__all__ = ["Part", "hash_rows", "split"]

_RANGE: Final = 2.0**64

Numbers = NDArray[np.uint64]


class Part(NamedTuple):
    """The rows whose hash lies in a range."""

    key: str | None
    """A column; None: all columns that are read."""
    low: float
    high: float
    """From 0 to 1."""
    seed: int

    def choose(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Tell which rows belong to the part."""
        hashes = hash_rows([columns[self.key]] if self.key is not None else list(columns.values()), self.seed)
        places = hashes.astype(np.float64) / _RANGE
        # A float of the largest hashes is 1.
        return (places >= self.low) & ((places < self.high) | (self.high >= 1))

    def describe(self) -> dict[str, Any]:
        return {"key": self.key, "from": self.low, "to": self.high, "seed": self.seed}


class Divisible(Protocol):
    """What can be split: a stream."""

    def take_part(self, part: Part) -> Self:
        """Give the rows of a part."""
        ...


D = TypeVar("D", bound=Divisible)


@overload
def split(stream: D, parts: Mapping[str, float], *, key: str | None = None, seed: int = 0) -> dict[str, D]: ...
@overload
def split(stream: D, parts: Sequence[float], *, key: str | None = None, seed: int = 0) -> tuple[D, ...]: ...
def split(
    stream: D, parts: Mapping[str, float] | Sequence[float], *, key: str | None = None, seed: int = 0
) -> dict[str, D] | tuple[D, ...]:
    """Split a stream into parts, each a stream.

    Where a row goes depends on its key and the seed alone: not on where it stands, on other rows or on the format. Rows of one
    key stay together, so that what a model is tested on is nothing that it was trained on.

    Args:
        stream: of `argosy.data.open`.
        parts: fractions of the keys, by name or in order, together at most 1; what is left of 1 is in no part.
        key: a column of numbers, strings or bytes, such as a customer's number; it need not be an input. None: the row's
            content, all columns of the stream's inputs, targets and weights.
        seed: of the hash.

    Raises:
        InputError: `bad_option`.

    >>> import argosy, numpy, tempfile
    >>> numpy.save(path := tempfile.mkdtemp() + "/x.npy", numpy.arange(1000.0))
    >>> train, test = split(argosy.data.open(path), (0.8, 0.2))
    >>> sum(len(rows.inputs) for rows in test.iterate(100))
    208
    """
    names, sizes = (list(parts), list(parts.values())) if isinstance(parts, Mapping) else (None, list(parts))
    total = math.fsum(sizes)
    if not sizes or any(not size > 0 for size in sizes) or not total <= 1 + 1e-9:
        raise InputError("bad_option", option="parts", got=parts, expected="fractions above 0, together at most 1")
    bounds = [min(1.0, math.fsum(sizes[:place])) for place in range(len(sizes) + 1)]
    if abs(bounds[-1] - 1) < 1e-9:
        bounds[-1] = 1.0
    made = [stream.take_part(Part(key, low, high, seed)) for low, high in itertools.pairwise(bounds)]
    return dict(zip(names, made, strict=True)) if names is not None else tuple(made)


def hash_rows(columns: Sequence[NDArray[Any]], seed: int) -> Numbers:
    """Give a number from 0 to 2**64 - 1 for each row.

    Equal numbers have the same one in any type: 3, 3.0 and True.
    """
    total = np.full(len(columns[0]), _mix(np.array([seed & (2**64 - 1)], np.uint64))[0])
    for column in columns:
        total = _mix(total ^ _hash_column(column))
    return total


def _hash_column(column: NDArray[Any]) -> Numbers:
    hash_bytes: Callable[[bytes], int] = _hash_bytes
    if column.dtype.kind == "O":
        values = cast("list[str | bytes]", column.tolist())
        return np.array([hash_bytes(v.encode() if isinstance(v, str) else v) for v in values], np.uint64).reshape(-1)
    if column.ndim > 1:
        rows = np.ascontiguousarray(column, np.float64).reshape(len(column), -1)
        return np.array([hash_bytes(row.tobytes()) for row in rows + 0.0], np.uint64).reshape(-1)
    if column.dtype.kind == "f":
        whole = np.clip(np.trunc(column), -(2.0**62), 2.0**62).astype(np.int64)
        # 0.0 is added, for the negative zero.
        bits = (column.astype(np.float64) + 0.0).view(np.uint64)
        return np.where(whole == column, _mix(whole.view(np.uint64)), _mix(bits ^ np.uint64(0x9E3779B97F4A7C15)))
    return _mix(column.astype(np.uint64 if column.dtype.kind == "u" else np.int64).view(np.uint64))


def _hash_bytes(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _mix(values: Numbers) -> Numbers:
    """Spread the bits of numbers.

    Source: S. Vigna, splitmix64.
    """
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
