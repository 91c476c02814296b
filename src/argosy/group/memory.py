"""Memory that the workers of one host share: what each of them gives, and the mean of it, which all of them make together."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Layout", "Region", "make_file"]

Array = NDArray[Any]

_ALIGNED: Final = 64
"""Bytes, of a cache line: two workers never write to the same one."""
_CHUNK: Final = 1 << 16
"""Numbers that are added at once: with those of all workers they stay in a core's own cache."""


class Layout(NamedTuple):
    """Arrays one after the other, those of one type together; the same in all workers."""

    places: tuple[tuple[str, tuple[int, ...]], ...]
    """Type and shape of each."""

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> Layout:
        """Give that of some arrays."""
        return cls(tuple((array.dtype.str, array.shape) for array in arrays))

    def count_numbers(self) -> dict[str, int]:
        """Give how many numbers there are of each type, in the order in which they lie."""
        counts: dict[str, int] = {}
        for dtype, shape in self.places:
            counts[dtype] = counts.get(dtype, 0) + int(np.prod(shape, dtype=np.int64))
        return counts

    def measure(self) -> int:
        """Give the bytes that they take."""
        return sum(_pad(count * np.dtype(dtype).itemsize) for dtype, count in self.count_numbers().items())


class Region:
    """One layout in memory: a slot for each worker, and one for the mean."""

    def __init__(self, path: Path, layout: Layout, rank: int, size: int) -> None:
        """Map what `make_file` made.

        Args:
            path: of the file.
            layout: of the arrays.
            rank: of this worker.
            size: number of workers.
        """
        num_bytes = layout.measure()
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), max(num_bytes * (size + 1), mmap.PAGESIZE))
        self._rank, self._size = rank, size
        slots = [self._lay(layout, slot * num_bytes) for slot in range(size + 1)]
        self._slots = [list(slot.values()) for slot in slots[:-1]]
        self._mean = list(slots[-1].values())
        self._own, self._made = _cut(layout, slots[rank]), _cut(layout, slots[-1])

    def _lay(self, layout: Layout, start: int) -> dict[str, Array]:
        flat: dict[str, Array] = {}
        for dtype, count in layout.count_numbers().items():
            flat[dtype] = np.ndarray((count,), dtype, self._map, start)
            start += _pad(flat[dtype].nbytes)
        return flat

    def write(self, arrays: Sequence[Array]) -> None:
        """Give this worker's arrays."""
        for slot, array in zip(self._own, arrays, strict=True):
            np.copyto(slot, array)

    def reduce(self, shares: Sequence[float]) -> None:
        """Make this worker's part of the mean: what all gave, each multiplied by its share, added in the order of their ranks.

        What has no share is not looked at.
        """
        given = [(slot, share) for slot, share in zip(self._slots, shares, strict=True) if share]
        for place, mean in enumerate(self._mean):
            low, high = len(mean) * self._rank // self._size, len(mean) * (self._rank + 1) // self._size
            product = np.empty(min(_CHUNK, high - low), mean.dtype)
            for start in range(low, high, _CHUNK):
                rows = slice(start, min(start + _CHUNK, high))
                target, part = mean[rows], product[: rows.stop - start]
                (first, share), *others = given
                np.multiply(first[place][rows], mean.dtype.type(share), out=target)
                for slot, share in others:
                    np.multiply(slot[place][rows], mean.dtype.type(share), out=part)
                    target += part

    def read(self, arrays: Sequence[Array]) -> None:
        """Write the mean over some arrays."""
        for array, made in zip(arrays, self._made, strict=True):
            np.copyto(array, made)


def make_file(folder: Path, name: str, layout: Layout, size: int) -> Path:
    """Make what workers map; its memory is there, so that nobody who writes to it later finds none.

    Raises:
        OSError: there is no room.
    """
    path = folder / name
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, max(layout.measure() * (size + 1), mmap.PAGESIZE))
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(handle)
    return path


def _cut(layout: Layout, flat: dict[str, Array]) -> list[Array]:
    """Give the arrays of one slot."""
    arrays: list[Array] = []
    starts = dict.fromkeys(flat, 0)
    for dtype, shape in layout.places:
        start = starts[dtype]
        starts[dtype] = stop = start + int(np.prod(shape, dtype=np.int64))
        arrays.append(flat[dtype][start:stop].reshape(shape))
    return arrays


def _pad(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED) * _ALIGNED
