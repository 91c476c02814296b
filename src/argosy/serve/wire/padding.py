"""Rows of different lengths in one tensor: how fronts and workers fill them up. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

__all__ = ["fill_padded"]


def fill_padded(target: NDArray[Any], parts: Sequence[NDArray[Any]], axis: int, pad: float) -> None:
    """Write arrays side by side along the first axis, each filled up along another.

    Args:
        target: as long along `axis` as the longest part, and with the rows of all.
        parts: equal in the other axes.
        axis: the ragged one.
        pad: what fills a shorter part up.
    """
    before = (slice(None),) * axis
    start = 0
    for part in parts:
        end, length = start + len(part), part.shape[axis]
        block = target[start:end]
        block[(*before, slice(length))] = part
        if length < target.shape[axis]:
            block[(*before, slice(length, None))] = pad
        start = end
