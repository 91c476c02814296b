"""Gradients on their way to the other workers of a run, for every framework: as arrays, with running statistics beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Exchange", "average_arrays"]

Array = NDArray[Any]

_KNOWN: Final = (np.dtype(np.float32), np.dtype(np.float64))


class Exchange(Protocol):
    """Where the workers of a run meet in each step; see `group.exchange.Group`."""

    @property
    def rank(self) -> int:
        """Of this worker, counted from 0."""
        ...

    def average(
        self, loss: float, gradients: Sequence[Array], has: Sequence[bool], beside: Sequence[Array] = ()
    ) -> Sequence[bool]:
        """Turn this worker's gradients into the mean over the rows of all workers, in place.

        Where that cannot be, they become NaN, so that no weight is moved.
        """
        ...


def average_arrays(
    exchange: Exchange, loss: float, gradients: Sequence[Array | None], weights: Sequence[Any], beside: Sequence[Array] = ()
) -> tuple[list[Array | None], list[Array]]:
    """Give the mean of gradients over the rows of all workers, and what is averaged with them.

    Args:
        exchange: where workers meet.
        loss: mean over this worker's rows; not finite, nobody moves.
        gradients: of these; None where the loss does not depend on a weight.
        weights: whose gradients these are; their shapes count.
        beside: running statistics.

    Returns:
        New arrays of the types of those given; None where no worker has a gradient.
    """
    given = [np.zeros(w.shape, np.float32) if g is None else g for g, w in zip(gradients, weights, strict=True)]
    sent = [np.array(array, array.dtype if array.dtype in _KNOWN else np.float32) for array in (*given, *beside)]
    count = len(given)
    found = exchange.average(loss, sent[:count], [gradient is not None for gradient in gradients], sent[count:])
    back = [array.astype(own.dtype, copy=False) for array, own in zip(sent, (*given, *beside), strict=True)]
    return [array if is_there else None for array, is_there in zip(back[:count], found, strict=True)], back[count:]
