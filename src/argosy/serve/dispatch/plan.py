"""How many rows a batch should have, by the times that batches were measured to take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from argosy.serve.dispatch.service import BATCH_S, ServiceTimes
from argosy.serve.wire.counters import FULL, PAYS, SHARED, SINGLE

__all__ = ["QUICK_S", "Measured", "Plan"]

QUICK_S: Final = 0.001
"""Where the largest batch takes less, batches are cheap to wait for, and what each costs beside its rows counts."""
_PERIOD: Final = 64
"""Batches after which the number of rows is chosen anew."""
_TRY_PERIOD: Final = 31
"""One in so many batches that are kept small may be twice as large: what is never run is never measured anew."""
_TEXT_PLACES: Final = 4
"""Bytes of text that make up about one token, until the times of texts are measured."""

Measured = Sequence[tuple[int, int, float]]
"""Rows, length (0 where the signature is not ragged) and seconds of some batches."""


class Plan:
    """The size of one version's batches.

    Attributes:
        max_rows: what the deployment allows.
        can_join: rows may run together at all.
        limit: the most rows of a batch now.
        limit_s: what such a batch takes in the runtime.
        largest_s: what the largest batch that pays takes.
        cause: why a batch has no more rows; a place in `counters.CLOSED`.
    """

    def __init__(self) -> None:
        self.max_rows = 1
        self.can_join = False
        self.limit, self.limit_s, self.cause = 1, 0.0, SINGLE
        self.largest_s = 0.0
        self._range = (1, 1)
        self._share = sys.maxsize
        self._times = ServiceTimes()
        self._raw_times = ServiceTimes()
        self._measured: Measured = ()
        self._last_length = 0
        self._num_answered = self._num_small = 0

    def configure(self, measured: Measured, max_rows: int, *, can_join: bool) -> None:
        """Take what a new table says; `measured` starts anew only if a worker measured anew."""
        self.max_rows = max_rows
        self.can_join = can_join
        if measured != self._measured:
            self._measured = measured
            self._times = ServiceTimes(measured)
            self._raw_times = ServiceTimes(measured, _TEXT_PLACES)
        self._refresh()

    def times(self, form: int) -> ServiceTimes:
        """The times of batches of this form; lengths are in bytes where the worker makes the tensors."""
        return self._raw_times if form else self._times

    def late_s(self, unknown_s: float) -> float:
        """What a batch hangs after, however many rows of those that pay it has; `unknown_s` while nothing is known."""
        return self._times.late_s(self.limit, self._last_length, unknown_s)

    def learn(self, form: int, rows: int, length: int, seconds: float) -> None:
        """Take what a batch took."""
        self.times(form).update(rows, length, seconds)
        if form:
            return
        self._last_length = length
        self._num_answered += 1
        if self._num_answered % _PERIOD == 0:
            self._refresh()

    def _refresh(self) -> None:
        self._range = self._times.pick_range(self.max_rows, self._last_length)
        self.largest_s = self._times.estimate(self._range[1], self._last_length)
        if self.largest_s < QUICK_S:
            self._share = sys.maxsize
        self._set_limit()

    def _set_limit(self) -> None:
        self.limit, self.cause = self._bound(*self._range)
        self.limit_s = self._times.estimate(self.limit, self._last_length)

    def share_out(self, rows: int, num_slots: int) -> None:
        """Divide the load evenly, as far as batches do not become too small to pay.

        Else those that come together stay together: one replica gets few rows and the next one many, again and again.

        Args:
            rows: that wait or run.
            num_slots: batches that the replicas can hold, running or ready.
        """
        share = -(-rows // num_slots)
        if share != self._share:
            self._share = share
            self._set_limit()

    def pick_rows(self, times: ServiceTimes, length: int) -> tuple[int, int]:
        """The most rows that a batch of this length should have, and why no more."""
        return self._bound(*times.pick_range(self.max_rows, length))

    def _bound(self, least: int, most: int) -> tuple[int, int]:
        if not self.can_join:
            return 1, SINGLE
        share = max(least, self._share)
        if share < most:
            return share, SHARED
        return most, FULL if most == self.max_rows else PAYS

    def adjust(self, times: ServiceTimes, limit: int, cause: int, *, length: int, num_idle: int, waiting: int) -> tuple[int, int]:
        """Leave a share to other idle replicas; and now and then let a batch be larger than pays, to see whether that holds.

        Args:
            times: of the batch's form.
            limit: the most rows of the batch.
            cause: why no more.
            length: of its oldest request.
            num_idle: replicas that take a batch and have none.
            waiting: rows that wait.

        Returns:
            Limit and cause.
        """
        if cause in (PAYS, SHARED):
            self._num_small += 1
            if self._num_small % _TRY_PERIOD == 0:
                limit = min(2 * limit, self.max_rows)
        if num_idle > 1:
            most = min(limit, waiting)
            share = -(-waiting // num_idle)
            # Another batch costs something, too: a small model's rows stay together.
            if share < most and times.estimate(most, length) - times.estimate(share, length) > BATCH_S:
                return share, SHARED
        return limit, cause
