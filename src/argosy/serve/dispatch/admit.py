"""Take a request in, or refuse it at once: rows, queue bounds, deadline.

A request that cannot meet its deadline is refused now rather than served late.
"""

from __future__ import annotations

from collections.abc import Callable

from argosy.errors import DeadlineError, InputError, OverloadedError, UnavailableError
from argosy.serve.dispatch.call import Call, Lane
from argosy.serve.dispatch.intake import MAX_INTAKE_BYTES, Intake
from argosy.serve.dispatch.streams import RawCall
from argosy.serve.wire.counters import Counters

__all__ = ["Admit"]


class Admit:
    """The gate of a front.

    Args:
        counters: the node's counters, for rows that wait in other fronts.
        max_body_bytes: largest body that a protocol may accept.
        num_fronts: fronts of this node; their queues share one bound.
        max_intake_bytes: of all bodies that are not complete yet.
    """

    def __init__(
        self, counters: Counters, max_body_bytes: int, num_fronts: int, max_intake_bytes: int = MAX_INTAKE_BYTES
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.intake = Intake(max_intake_bytes)
        self.is_draining = False
        self.watch: Callable[[Call], None] | None = None
        """Told of every request but raw ones, also of those that are refused."""
        self._counters = counters
        self._has_others = num_fronts > 1

    def submit(self, call: Call) -> None:
        """Queue a request.

        Raises:
            InputError: it has more rows than may ever wait.
            OverloadedError: the queue is full, or the deadline cannot be met.
            UnavailableError: no replica answers, and none is to be expected soon; or the server is stopping.
            DeadlineError: the deadline has passed already.
        """
        if self.watch is not None:
            self.watch(call)
        lane = call.lane
        if (
            lane.queued_rows + call.num_rows <= lane.free_rows
            and call.deadline_s - call.started_s >= lane.free_s
            and lane.queued_bytes + call.size_bytes <= lane.max_queue_bytes
            and not (call.form or call.priority or self.is_draining)
        ):
            # The most common case: so few wait that none of the bounds is near, whatever waits in other fronts.
            lane.put(call)
            return
        try:
            self._check(call, lane)
        except (InputError, OverloadedError, UnavailableError, DeadlineError) as error:
            lane.series.add_failure(error.status)
            raise
        lane.put(call)

    def submit_raw(self, call: RawCall) -> None:
        """Queue a raw request, which counts as one row.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: as `submit`.
        """
        queue = call.queue
        lane = queue.lane
        if lane.is_down and not lane.links:
            lane.series.add_failure(UnavailableError.status)
            raise lane.refuse()
        waiting = lane.queued_rows + queue.num_waiting
        if self._has_others:
            lane.series.set_queued(waiting + 1)
            waiting += int(self._counters.queued_elsewhere(lane.series.index))
        num_bytes = lane.queued_bytes + queue.waiting_bytes + len(call.body)
        if waiting >= lane.max_queue_rows or (waiting and num_bytes > lane.max_queue_bytes):
            lane.series.add_failure(OverloadedError.status)
            raise OverloadedError(
                "queue_full", model=lane.name, got=waiting, limit=lane.max_queue_rows, retry_s=1.0, retry_after_s=1.0
            )
        if self.is_draining:
            lane.series.add_failure(UnavailableError.status)
            raise UnavailableError("draining", retry_after_s=1.0)
        queue.put(call)

    def _check(self, call: Call, lane: Lane) -> None:
        rows = call.num_rows
        waiting = lane.queued_rows
        if lane.is_down and not lane.links:
            raise lane.refuse()
        if self._has_others:
            lane.series.set_queued(waiting + rows)
            waiting += int(self._counters.queued_elsewhere(lane.series.index))
        if not waiting and rows <= lane.max_batch_rows and call.deadline_s > call.started_s and not self.is_draining:
            return
        if self.is_draining:
            raise UnavailableError("draining", retry_after_s=1.0)
        # What fits a batch is taken while nothing waits, however short the queue may be: refused now, it may pass later.
        if rows > (limit := max(lane.max_queue_rows, lane.max_batch_rows)):
            raise InputError("too_many_rows", got=rows, limit=limit)
        if call.deadline_s <= call.started_s:
            raise DeadlineError("deadline_passed", timeout_s=max(0.0, call.deadline_s - call.started_s))
        rate = lane.rows_per_s * max(1, len(lane.links))
        wait_s = waiting / rate if rate else 0.0
        if waiting + rows > lane.max_queue_rows or lane.queued_bytes + call.size_bytes > lane.max_queue_bytes:
            retry_s = max(0.1, wait_s)
            raise OverloadedError(
                "queue_full", model=lane.name, got=waiting, limit=lane.max_queue_rows, retry_s=retry_s, retry_after_s=retry_s
            )
        if call.priority:
            wait_s = lane.count_before(call.priority) / rate if rate else 0.0
        if lane.links and call.started_s + wait_s + lane.plan.times(call.form).least_s > call.deadline_s:
            timeout_s = call.deadline_s - call.started_s
            raise OverloadedError("deadline_hopeless", timeout_s=timeout_s, got=waiting, retry_s=wait_s, retry_after_s=wait_s)
