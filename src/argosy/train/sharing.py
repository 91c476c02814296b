"""Batches among the workers of a run: each takes its own share of every one, whose rows are the same for any number of workers.

Of arrays, every worker takes its own rows. Loaders and streams are read once, in their own order, by the leader, who gives the
others theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import Batch
from argosy.frameworks.trees import count_rows, take_rows
from argosy.group.exchange import Follower, Group, Leader
from argosy.train.source import ArraySource, Source

__all__ = ["FedSource", "Feeder", "SharedArrays", "Spare", "find_share"]

_LEAST: Final = 2
"""Rows of a share: batch normalisation can make nothing of one."""


class Spare(Batch):
    """Rows for a worker to whom none of a batch falls: it takes part in the step with them, and they count for nothing."""


class SharedArrays:
    """Rows in the memory of every worker.

    Args:
        source: of all rows.
        group: knows which worker this is.
    """

    def __init__(self, source: ArraySource, group: Group) -> None:
        self._source = source
        self._group = group
        self.num_batches = source.num_batches
        self.describe = source.describe

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Source`."""
        rank, size = self._group.rank, self._group.size
        for order in self._source.list_orders(epoch, start):
            rows, is_spare = find_share(len(order), rank, size)
            batch = self._source.take(order[rows])
            yield Spare(*batch) if is_spare else batch


class Feeder:
    """What the leader reads: gives the others their shares, and itself its own.

    Args:
        source: of whole batches.
        leader: who knows the others.
        is_raw: batches are as a loader gives them, for a step of the user's own.
    """

    def __init__(self, source: Source, leader: Leader, *, is_raw: bool) -> None:
        self._source = source
        self._leader = leader
        self._is_raw = is_raw
        self.num_batches = source.num_batches
        self.locate = getattr(source, "locate", None)
        self.describe = source.describe

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Source`."""
        size = self._leader.size
        for batch in self._source.iterate(epoch, start):
            shares = [self._cut(batch, rank, size) for rank in range(size)]
            self._leader.feed(shares)
            yield shares[0]
        self._leader.feed([None] * size)

    def _cut(self, batch: Batch, rank: int, size: int) -> Batch:
        if self._is_raw:
            rows, is_spare = find_share(_count_raw(batch), rank, size)
            cut = Batch(take_rows(batch.inputs, rows))
        else:
            rows, is_spare = find_share(batch.num_rows, rank, size)
            cut = batch.take(rows)
        return Spare(*cut) if is_spare else cut


class FedSource:
    """What the others have of it."""

    num_batches: int | None = None

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Source`."""
        while (batch := self._follower.fetch()) is not None:
            yield batch

    def describe(self) -> dict[str, Any]:
        """Nothing: the leader does."""
        return {}


def find_share(num_rows: int, rank: int, size: int) -> tuple[slice, bool]:
    """Say which rows of a batch a worker takes, as many as any other or one more; and whether they fall to others, too.

    Args:
        num_rows: of the batch.
        rank: of the worker, counted from 0.
        size: number of workers. Where each would have a single row, the last ones have none.
    """
    count = max(min(size, num_rows // _LEAST), 1)
    if rank >= count:
        return slice(0, min(_LEAST, num_rows)), True
    return slice(num_rows * rank // count, num_rows * (rank + 1) // count), False


def _count_raw(batch: Batch) -> int:
    try:
        return count_rows(batch.inputs)
    except (InputError, TypeError, ValueError, AttributeError) as error:
        detail = "a batch is not of arrays with as many rows each, so that it cannot be shared among workers"
        raise InputError("bad_data", detail=detail) from error
