"""Labels: each entry of each axis of each tensor has one, and entries with one label can be removed only together.

An axis whose entries may not be removed, or of which nothing is known, is *fixed*: it has no labels, and what must go together
with it stays, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axes", "Labels"]

Ids = NDArray[np.int64]
Axes = tuple["Ids | None", ...]
"""Of a tensor: the labels of each axis' entries; None for a fixed one."""


class Labels:
    """A union of labels into classes."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pinned: set[int] = set()

    def make(self, count: int) -> Ids:
        """Give so many new labels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, label: int) -> int:
        """Give the label that stands for all that go together with this one."""
        root = label
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[label] != root:
            self._parents[label], label = root, self._parents[label]
        return root

    def find_all(self, ids: Ids) -> Ids:
        """Give for each label the one that stands for its class."""
        return np.array([self.find(label) for label in ids.tolist()], np.int64)

    def is_pinned(self, label: int) -> bool:
        """Say whether it must stay."""
        return self.find(label) in self._pinned

    def pin(self, *axes: Ids | None) -> None:
        """Have labels stay."""
        for ids in axes:
            if ids is not None:
                self._pinned |= {self.find(label) for label in ids.tolist()}

    def pin_tensor(self, *tensors: Axes) -> None:
        """Have all labels of tensors stay."""
        for axes in tensors:
            self.pin(*axes)

    def join(self, first: Ids | None, second: Ids | None) -> Ids | None:
        """Have the entries of two axes go together, each with its like; a fixed one fixes the other."""
        if first is None or second is None or len(first) != len(second):
            self.pin(first, second)
            return None
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._unite(one, other)
        return first

    def join_row(self, ids: NDArray[np.int64]) -> Ids:
        """Have each row of a table of labels go together; gives one label a row."""
        for row in ids.tolist():
            for other in row[1:]:
                self._unite(row[0], other)
        return np.ascontiguousarray(ids[:, 0])

    def _unite(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        self._parents[other] = one
        if other in self._pinned:
            self._pinned.add(one)


def fix(rank: int) -> Axes:
    """Axes that are all fixed."""
    return (None,) * rank


def broadcast(labels: Labels, tensors: Sequence[tuple[Axes, tuple[int, ...]]], shape: tuple[int, ...]) -> Axes:
    """Have tensors that are combined number by number go together.

    Args:
        labels: of all.
        tensors: the axes of each, and its shape.
        shape: of the result.
    """
    found: list[Any] = []
    for place in range(1, len(shape) + 1):
        # An axis of length 1 is repeated, and says nothing, unless the result's is such a one, too.
        here = [axes[-place] for axes, own in tensors if place <= len(own) and own[-place] == shape[-place]]
        joined = here[0] if here else None
        for other in here[1:]:
            joined = labels.join(joined, other)
        found.append(joined)
    return tuple(reversed(found))
