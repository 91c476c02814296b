"""Batches that one worker reads for all: of loaders and streams, which are read once, in their own order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from argosy.errors import InputError
from argosy.frameworks.base import Batch
from argosy.frameworks.trees import count_rows, take_rows
from argosy.group.exchange import Follower, Leader
from argosy.train.source import WHOLE, Part, Source, Spare, find_share

__all__ = ["FedSource", "Feeder"]


class Feeder:
    """What the leader reads: gives the others their shares, and itself its own.

    Args:
        source: of whole batches.
        leader: who knows the others.
        is_raw: batches are a user's own, for a step of the user's.
    """

    def __init__(self, source: Source, leader: Leader, *, is_raw: bool) -> None:
        self._source = source
        self._leader = leader
        self._is_raw = is_raw
        self.num_batches = source.num_batches
        self.locate = getattr(source, "locate", None)
        self.describe = source.describe

    def iterate(self, epoch: int, start: int, part: Part = WHOLE) -> Iterator[Batch]:
        """See `Source`."""
        size = self._leader.size
        for batch in self._source.iterate(epoch, start):
            shares = [self._cut(batch, (rank, size)) for rank in range(size)]
            self._leader.feed(shares)
            yield shares[0]
        self._leader.feed([None] * size)

    def _cut(self, batch: Batch, part: Part) -> Batch:
        try:
            num_rows = count_rows(batch.inputs)
        except (InputError, TypeError, ValueError) as error:
            detail = "a batch holds no arrays with rows, so that it cannot be shared among workers"
            raise InputError("bad_data", detail=detail) from error
        rows = find_share(num_rows, part)
        is_spare = rows.start == rows.stop
        if is_spare:
            rows = slice(0, 1)
        cut = Batch(take_rows(batch.inputs, rows)) if self._is_raw else batch.take(rows)
        return Spare(*cut) if is_spare else cut


class FedSource:
    """What the others have of it."""

    num_batches: int | None = None

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def iterate(self, epoch: int, start: int, part: Part = WHOLE) -> Iterator[Batch]:
        """See `Source`."""
        while (batch := self._follower.fetch()) is not None:
            yield batch

    def describe(self) -> dict[str, Any]:
        """Nothing: the leader does."""
        return {}
