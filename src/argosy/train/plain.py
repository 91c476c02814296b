"""Pairs of tensors in the form of those before, read in a fraction of the time: a small model's step takes hardly longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.base import Batch

__all__ = ["FREE", "Plain"]

Array = NDArray[Any]
FREE: Final = (-math.inf, math.inf)
"""Bounds of targets at which nobody looks: those of a loss that is not ours."""
_maximum: Final = np.maximum.reduce


class Plain:
    """What the elements of a loader are held against that need nothing but to be looked at.

    It takes what the whole way (`LoaderSource.convert`) would give as it is, and leaves all else to that: it refuses nothing.
    """

    def __init__(self, element: Sequence[Any], inputs: Array, targets: Array, bounds: tuple[float, float]) -> None:
        """Take an element, and the arrays that were made of it."""
        self._form = type(element)
        self._kinds: tuple[Any, Any] = (type(element[0]), type(element[1]))
        self._shows = _find_method(element[0]), _find_method(element[1])
        self._inputs = inputs.dtype, inputs.shape[1:]
        self._targets = targets.dtype, targets.shape[1:]
        self._low, self._high = bounds
        self._is_free = bounds == FREE
        # The bits of numbers from 0 up, read as whole ones, have their order; those of negative ones and of NaN are larger: one
        # look at the largest says what else takes two.
        is_plain = self._low == 0 and targets.dtype.kind in "fiu" and targets.dtype.isnative
        self._bits = np.dtype(f"u{targets.dtype.itemsize}") if is_plain and targets.dtype.itemsize <= 8 else None
        self._limit = int(np.array(self._high, targets.dtype).reshape(1).view(self._bits)[0]) if self._bits is not None else 0

    @classmethod
    def learn(cls, element: Any, batch: Batch, bounds: tuple[float, float] | None) -> Plain | None:
        """Give what elements like this one are held against; None where they need more.

        Args:
            element: as the loader gave it.
            batch: as a step takes it.
            bounds: of targets that are taken as they are.
        """
        if bounds is None or batch.weights is not None or type(element) not in (tuple, list) or len(element) != 2:
            return None
        inputs, targets = batch.inputs, batch.targets
        if not (isinstance(inputs, np.ndarray) and isinstance(targets, np.ndarray)):
            return None
        plain = cls(element, cast("Array", inputs), cast("Array", targets), bounds)
        taken = plain.take(element)
        return plain if taken is not None and _is_same(taken, batch) else None

    def take(self, element: Any) -> Batch | None:
        """Give the batch; None where the element has to go the whole way."""
        if type(element) is not self._form or len(element) != 2:
            return None
        x, y = element
        if type(x) is not self._kinds[0] or type(y) is not self._kinds[1]:
            return None
        show_x, show_y = self._shows
        if show_x is not None:
            x = show_x(x)
        if show_y is not None:
            y = show_y(y)
        shape = x.shape
        if x.dtype != self._inputs[0] or shape[1:] != self._inputs[1] or y.dtype != self._targets[0]:
            return None
        if y.shape != shape[:1] + self._targets[1] or not y.size or not self._are_within(y):
            return None
        return Batch(x, y)

    def _are_within(self, y: Array) -> bool:
        if self._is_free:
            return True
        if self._bits is None or not y.flags.c_contiguous:
            return bool(y.min() >= self._low and y.max() <= self._high)  # Comparisons with NaN are false.
        return bool(_maximum(y.view(self._bits), None) <= self._limit)


def _find_method(tensor: Any) -> Callable[[Any], Any] | None:
    """Give what makes an array of a tensor; None of an array."""
    if isinstance(tensor, np.ndarray):
        return None
    kind: Any = cast("object", type(tensor))
    if hasattr(kind, "asnumpy"):
        return kind.asnumpy
    if hasattr(kind, "detach"):
        return lambda given: given.detach().numpy()
    show: Callable[[Any], Any] = kind.numpy if hasattr(kind, "numpy") else np.asarray
    return show


def _is_same(taken: Batch, batch: Batch) -> bool:
    return np.array_equal(taken.inputs, batch.inputs) and np.array_equal(taken.targets, batch.targets)
