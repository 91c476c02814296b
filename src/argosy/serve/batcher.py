"""Join waiting requests into batches, and give each the rows that are its own.

No timer: an idle replica gets what waits at once; while all replicas work, requests gather, and the next
batch is as large as the load made it. Rows are counted, not requests. Only requests whose rows have equal
shapes are joined, and only when warm-up showed that a joined row answers as it does alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from argosy.errors import ArgosyError, DeadlineError, FaultError, ModelError, PoisonError
from argosy.serve.frames import DTYPES, LinkError, Tensor
from argosy.signature import Signature

if TYPE_CHECKING:
    from argosy.serve.call import Call
    from argosy.serve.link import Link
    from argosy.serve.metrics import Series

__all__ = ["Batch", "Batcher"]

MAX_BATCH_BYTES: Final = 64 << 20
_RATE_SMOOTHING: Final = 0.2

ShapeKey = tuple[tuple[int, ...], ...]


class Batch:
    """Requests that run together."""

    __slots__ = ("calls", "lane", "num_rows", "sent_s", "sequence")

    def __init__(self, lane: Batcher, calls: list[Call], num_rows: int) -> None:
        self.lane = lane
        self.calls = calls
        self.num_rows = num_rows
        self.sequence = 0
        self.sent_s = 0.0


class Batcher:
    """The queue of one version, and the replicas that empty it.

    Args:
        loop: the front's event loop.
        signature: of the version.
        name: of the deployment, the {m} of a URL.
        version: its number.
        series: where the version's counters live.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, signature: Signature, name: str, version: str, series: Series) -> None:
        self.name = name
        self.version = version
        self.series = series
        self.signature = signature
        self.links: list[Link] = []
        self.max_batch_rows = 1
        self.can_join = False
        self.is_repeatable = False
        self.queued_rows = 0
        self.queued_bytes = 0
        self.num_open = 0
        self.rows_per_s = 0.0
        self._loop = loop
        self._is_armed = False
        self._is_ragged = any(-1 in spec.shape[1:] for spec in signature.inputs)
        # One queue per shape of row; a fixed signature has a single one.
        self._queues: dict[ShapeKey, deque[Call]] = {}
        self._resends: deque[Batch] = deque()
        self._output_codes = [DTYPES.index(spec.dtype) for spec in signature.outputs]

    # in

    def put(self, call: Call) -> None:
        """Queue a request; it starts in this turn of the loop if a replica is idle."""
        key = tuple([array.shape[1:] for array in call.inputs]) if self._is_ragged else ()
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(call)
        self.queued_rows += call.num_rows
        self.queued_bytes += call.size_bytes
        self.num_open += 1
        if not self._is_armed:
            # Let this turn of the loop gather what has arrived on other connections.
            self._is_armed = True
            self._loop.call_soon(self.flush)

    def take_queued(self) -> list[Call]:
        """Remove and return every request that has not been sent, oldest first."""
        calls = [call for queue in self._queues.values() for call in queue]
        calls += [call for batch in self._resends for call in batch.calls]
        self._queues.clear()
        self._resends.clear()
        self.queued_rows = self.queued_bytes = 0
        self.num_open -= len(calls)
        return sorted((call for call in calls if not call.is_done), key=lambda call: call.started_s)

    # out

    def flush(self) -> None:
        """Send batches while replicas can take them."""
        self._is_armed = False
        while self.queued_rows or self._resends:
            link = self._pick_link()
            if link is None:
                return
            batch = self._resends.popleft() if self._resends else self._take_batch()
            if batch is not None:
                self.series.add_batch(batch.num_rows, len(batch.calls))
                link.send(batch)

    def _pick_link(self) -> Link | None:
        """An idle replica; or, when a full batch waits, one that can hold it ready."""
        best: Link | None = None
        for link in self.links:
            if link.can_send and (best is None or link.num_in_flight < best.num_in_flight):
                best = link
        if best is not None and best.num_in_flight:
            limit = self.max_batch_rows if self.can_join else 1
            if self._resends or self.queued_rows < limit:
                return None
        return best

    def _oldest_queue(self) -> tuple[ShapeKey, deque[Call]]:
        if len(self._queues) == 1:
            return next(iter(self._queues.items()))
        return min(self._queues.items(), key=lambda item: item[1][0].started_s)

    def _take_batch(self) -> Batch | None:
        """Take the oldest request, and those that can join it."""
        key, queue = self._oldest_queue()
        calls: list[Call] = []
        rows = num_bytes = 0
        now = time.monotonic()
        while queue:
            call = queue[0]
            if calls and (
                not self.can_join or rows + call.num_rows > self.max_batch_rows or num_bytes + call.size_bytes > MAX_BATCH_BYTES
            ):
                break
            queue.popleft()
            self.queued_rows -= call.num_rows
            self.queued_bytes -= call.size_bytes
            if call.is_done:
                self._close(call)
            elif call.deadline_s < now:
                self._expire(call)
            else:
                calls.append(call)
                rows += call.num_rows
                num_bytes += call.size_bytes
        if not queue and self._is_ragged:
            del self._queues[key]
        return Batch(self, calls, rows) if calls else None

    # back

    def check_outputs(self, batch: Batch, tensors: list[Tensor]) -> None:
        """Check that a reply holds exactly the rows that were sent.

        Raises:
            LinkError: a tensor is missing, or has another datatype or number of rows.
        """
        specs = self.signature.outputs
        if [tensor.code for tensor in tensors] != self._output_codes:
            raise LinkError("reply has other outputs than the signature")
        is_batched = self.signature.is_batched
        for tensor, spec in zip(tensors, specs, strict=True):
            if not spec.accepts(tensor.shape) or (is_batched and tensor.shape[0] != batch.num_rows):
                raise LinkError("reply has other rows than were sent")

    def take_answers(self, batch: Batch, outputs: list[NDArray[Any]], service_s: float) -> None:
        """Give each request its rows."""
        if service_s > 0:
            rate = batch.num_rows / service_s
            self.rows_per_s += _RATE_SMOOTHING * (rate - self.rows_per_s) if self.rows_per_s else rate
        self.series.add_service(service_s)
        now = time.monotonic()
        calls = batch.calls
        if len(calls) == 1:
            self._answer(calls[0], outputs, now)
        else:
            start = 0
            for call in calls:
                end = start + call.num_rows
                self._answer(call, [output[start:end] for output in outputs], now)
                start = end

    def _answer(self, call: Call, outputs: list[NDArray[Any]], now: float) -> None:
        self.num_open -= 1
        if not call.is_done:
            call.is_done = True
            self.series.add_answer(now - call.started_s)
            call.answer(outputs)

    def take_failure(self, batch: Batch, detail: str) -> None:
        """The model raised an error: halve the batch until the request at fault stands alone."""
        calls = [call for call in batch.calls if not self._close_if_done(call)]
        if len(calls) == 1:
            self._fail(calls[0], ModelError("model_failed", model=self.name, version=self.version, detail=detail))
        elif calls:
            middle = len(calls) // 2
            for half in (calls[:middle], calls[middle:]):
                self._resends.append(Batch(self, half, sum(call.num_rows for call in half)))
        self.flush()

    def take_loss(self, batches: list[Batch], worker: str, how: str) -> None:
        """A worker died: send each request of its running batch again, alone, once."""
        for index, batch in enumerate(batches):
            for call in batch.calls:
                if self._close_if_done(call):
                    continue
                # A worker runs one batch at a time: only the oldest can have killed it.
                if index > 0:
                    self._resend(call)
                elif not self.is_repeatable:
                    self._fail(call, FaultError("not_repeatable", model=self.name, version=self.version, worker=worker))
                elif call.attempts:
                    self._fail(call, PoisonError("poison", model=self.name, version=self.version, worker=worker, detail=how))
                else:
                    call.attempts = 1
                    self._resend(call)
        self.flush()

    def _resend(self, call: Call) -> None:
        self._resends.append(Batch(self, [call], call.num_rows))

    def expire(self, now: float) -> None:
        """Fail requests whose deadline has passed, wherever they are, and drop queued ones whose client left."""
        if self.queued_rows:
            for key, queue in list(self._queues.items()):
                self._queues[key] = deque(call for call in queue if not self._drop_late(call, now, is_queued=True))
                if not self._queues[key]:
                    del self._queues[key]
        for _ in range(len(self._resends)):
            calls = [call for call in self._resends.popleft().calls if not self._drop_late(call, now)]
            if calls:
                self._resends.append(Batch(self, calls, sum(call.num_rows for call in calls)))
        for link in self.links:
            for batch in link.batches_in_flight:
                for call in batch.calls:
                    if not call.is_done and call.deadline_s < now:
                        # It stays open until the worker has answered; its client does not wait for that.
                        self._refuse_late(call)

    def _drop_late(self, call: Call, now: float, *, is_queued: bool = False) -> bool:
        if not call.is_done and call.deadline_s >= now:
            return False
        if is_queued:
            self.queued_rows -= call.num_rows
            self.queued_bytes -= call.size_bytes
        if call.is_done:
            self._close(call)
        else:
            self._expire(call)
        return True

    def _expire(self, call: Call) -> None:
        self._close(call)
        self._refuse_late(call)

    def _refuse_late(self, call: Call) -> None:
        self._refuse(call, DeadlineError("deadline_passed", timeout_s=call.deadline_s - call.started_s))

    def _fail(self, call: Call, error: ArgosyError) -> None:
        self._close(call)
        self._refuse(call, error)

    def _refuse(self, call: Call, error: ArgosyError) -> None:
        call.is_done = True
        self.series.add_failure(error.status)
        call.fail(error)

    def _close_if_done(self, call: Call) -> bool:
        if call.is_done:
            self._close(call)
        return call.is_done

    def _close(self, call: Call) -> None:
        self.num_open -= 1
