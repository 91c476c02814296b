"""Join waiting requests into batches, and give each the rows that are its own.

No timer: an idle replica gets what waits at once; while all replicas work, requests gather. A batch is as large as the load
made it, but no larger than pays by the measured times, and than the deadlines in it allow. Rows are counted, not requests.
Rows of one shape are joined only when warm-up showed that a joined row answers as it does alone; rows of different
lengths, padded, only when it showed that the padding moves no answer.

A request that a replica could not be given, for lack of descriptors or memory, is sent to another one before it is refused; one
that has run already, only if it may run twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import CODES
from argosy.errors import ArgosyError, DeadlineError, FaultError, InputError, ModelError, PoisonError
from argosy.serve.dispatch.call import Batch, Call, Clock, Lane, OutputsError, Replica
from argosy.serve.dispatch.lines import PLAIN, Lines
from argosy.serve.dispatch.plan import QUICK_S
from argosy.serve.dispatch.streams import StreamQueue
from argosy.serve.wire.counters import ALONE, BYTES, DEADLINE, IDLE, SHAPE, SINGLE, Counters
from argosy.serve.wire.frames import FORM_COUNTED, FORM_TENSORS, Tensor
from argosy.serve.wire.table import LaneEntry, TableEntry

__all__ = ["Batcher"]

MAX_BATCH_BYTES: Final = 64 << 20
HOME_S: Final = 0.01
"""Where a full batch takes less than QUICK_S, each front keeps to a replica of its own, until a full batch waits or the replica
takes HOME_S: two half batches cost more than a whole one."""
CROWD: Final = 8
"""Requests of a batch from which on the next turns of the loop bring more, as many clients ask again when they are answered."""
GATHER_TURNS: Final = 8
NEAR_S: Final = 0.1
"""A deadline that is nearer than this, and than two batches, may be refused where a batch is formed."""
PRIORITY_SHARE: Final = 0.25
"""Of a deployment's timeout: a request that waits so much longer goes before one that is a step more urgent."""
_RATE_SMOOTHING: Final = 0.2
_INT64: Final = CODES[np.dtype("<i8")]


class Batcher(Lane):
    """The queue of one version, and the replicas that empty it.

    Args:
        loop: the front's event loop.
        entry: what the table says of the deployment.
        lane: and of the version.
        counters: of the node.
        num_fronts: of the node.
        clock: tells what has waited for how long.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        entry: TableEntry,
        lane: LaneEntry,
        counters: Counters,
        num_fronts: int = 1,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(lane.signature, entry.name, entry.model, lane.version, counters.series(lane.series))
        self.num_fronts = num_fronts
        self.place = counters.front or 0
        """Of this front among those of the node."""
        self.workers: tuple[str, ...] = ()
        """That the table gives it, in one order in all fronts, so that each front finds another of its own."""
        self.is_given_up = False
        """The table says that no replica is to be expected."""
        self.streams = StreamQueue(self)
        """Raw requests that wait."""
        self.lines = Lines(lane.signature)
        self._plain = self.lines.get(PLAIN)
        self._resends: deque[Batch] = deque()
        self._loop = loop
        self._now = clock
        self._is_armed = False
        self._was_single = False
        """The last batch had one request."""
        self._is_crowded = False
        """The last batch had many requests, and other fronts want the cores that small batches would take."""
        self._turns_left = self._gathered_rows = 0
        self._output_codes = [CODES[spec.dtype] for spec in lane.signature.outputs]
        self._cuts: list[int] = [0] * len(lane.signature.outputs)
        if (ragged := lane.signature.ragged) is not None:
            self._cuts = [ragged.outputs.get(spec.name, 0) for spec in lane.signature.outputs]
            found = [ragged.inputs.get(spec.name) for spec in lane.signature.inputs]
            self.pads = [(item.axis, item.pad) if item is not None else None for item in found]

    def update(self, entry: TableEntry, lane: LaneEntry) -> None:
        """Take what a new table says of this lane."""
        self.workers = tuple(sorted(lane.workers))
        self.max_batch_rows = lane.max_batch_rows
        self.can_join = lane.can_join and self.signature.is_batched
        self.is_repeatable = lane.is_repeatable
        self.lines.can_pad = lane.can_pad
        self.lines.level_s = PRIORITY_SHARE * lane.timeout_s
        self.plan.configure(lane.service, lane.max_batch_rows, can_join=self.can_join)
        self.join_refusal, self.joining, self.pad_refusal = lane.join_refusal, lane.joining, lane.pad_refusal
        self.timeout_s = lane.timeout_s
        self.max_queue_rows = lane.max_queue_rows
        self.max_queue_bytes = lane.max_queue_bytes
        self.is_given_up = lane.is_down
        self.set_down(lane.is_down)
        self.streams.max_streams = lane.max_streams
        self.platform = lane.platform
        self.created_s = lane.created_s
        self.versions = [other.version for other in entry.lanes if not other.is_draining]

    def set_down(self, is_down: bool) -> None:
        """Say whether a replica is to be expected while there is none."""
        self.is_down = is_down
        # Without a free row each request is looked at more closely.
        self.free_rows = 0 if is_down else min(self.max_batch_rows, self.max_queue_rows // self.num_fronts)

    # in

    def put(self, call: Call) -> None:
        """Queue a request; it starts in this turn of the loop if a replica is idle."""
        if self._plain is None or call.form or call.priority:
            self.lines.put(call)
        else:
            self._plain.append(call)
        self.queued_rows += call.num_rows
        self.queued_bytes += call.size_bytes
        self.num_open += 1
        if self._is_armed:
            return
        if self.num_open == 1 and self._was_single and call.deadline_s - call.started_s > NEAR_S + 2 * self.plan.limit_s:
            # One client asks at a time, and it gains by every turn that is left out. Nothing here fails the request at once,
            # which its protocol would not expect before it has kept it.
            self.flush()
        else:
            self._arm()

    def count_before(self, priority: int) -> int:
        """Rows that wait and are at least as urgent."""
        return self.lines.count_before(priority)

    def take_queued(self) -> list[Call]:
        """Remove and return every request that has not been sent, oldest first."""
        calls = self.lines.take_all()
        calls += [call for batch in self._resends for call in batch.calls]
        self._resends.clear()
        self.queued_rows = self.queued_bytes = 0
        self.num_open -= len(calls)
        return sorted((call for call in calls if not call.is_done), key=lambda call: call.started_s)

    # out

    def proceed(self) -> None:
        """Send what waits, for a replica has room; where many ask and fronts share the cores, with what comes in these turns."""
        if self._is_crowded and self.queued_rows < self.plan.limit and not self._resends:
            if self.queued_rows and not self._is_armed:
                self._arm()
        else:
            self.flush()

    def _arm(self) -> None:
        """Let this turn of the loop gather what has arrived on other connections."""
        self._is_armed = True
        self._turns_left = GATHER_TURNS if self._is_crowded else 0
        self._gathered_rows = 0
        self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        """Send what waits, unless the turn brought more and the next one may, too."""
        if self._turns_left and self._gathered_rows < self.queued_rows < self.plan.limit:
            self._turns_left -= 1
            self._gathered_rows = self.queued_rows
            self._loop.call_soon(self._gather)
        else:
            self.flush()

    def flush(self) -> None:
        """Send batches while replicas can take them."""
        self._is_armed = False
        if self.plan.largest_s >= QUICK_S and (num_slots := sum([link.num_slots for link in self.links])):
            running = sum([batch.num_rows for link in self.links for batch in link.batches_in_flight])
            self.plan.share_out(self.queued_rows + running, num_slots)
        while (self.queued_rows or self._resends) and (link := self._pick_link()) is not None:
            if self._resends:
                batch = self._resends.popleft()
                if batch.closed == DEADLINE:
                    batch = self._split(batch.calls, link, self._now(), IDLE)
            else:
                batch = self._take_batch(link)
            if batch is not None:
                num_calls = len(batch.calls)
                self._was_single = num_calls == 1
                self._is_crowded = self.num_fronts > 1 and num_calls >= CROWD
                link.send(batch)
                self.series.add_batch(batch.num_rows, num_calls, batch.closed)
                if batch.length:
                    self.series.add_padding(batch.real_length, batch.length * batch.num_rows)
        if self.num_fronts > 1:
            self.series.set_queued(self.queued_rows)

    def _pick_link(self) -> Replica | None:
        """An idle replica; or, when a full batch waits, one that can hold it ready."""
        if self._resends and (worker := self._resends[0].calls[0].refused_by):
            others = [link for link in self.links if link.worker != worker] or self.links
            return min((link for link in others if link.can_send), key=lambda link: link.num_in_flight, default=None)
        if len(self.links) > 1 and self.plan.limit_s < QUICK_S and self.queued_rows < self.plan.limit and not self._resends:
            home = self.links[self.place % len(self.links)]
            if not home.num_in_flight:
                if home.can_send:
                    return home
            elif self._now() - home.oldest_sent_s < HOME_S:
                return None
        best: Replica | None = None
        for link in self.links:
            if link.can_send and (best is None or link.num_in_flight < best.num_in_flight):
                best = link
        if best is not None and best.num_in_flight and (self._resends or self.queued_rows < self.plan.limit):
            return None
        return best

    def _count_idle(self) -> int:
        return sum([link.can_send and not link.num_in_flight for link in self.links])

    def _take_batch(self, link: Replica) -> Batch | None:
        """Take the oldest request, and those that can join it."""
        queue, now = self._plain, self._now()
        if queue is None or len(self.lines) > 1:
            return self._take_mixed(link, now)
        plan = self.plan
        limit, cause = plan.limit, plan.cause
        if limit < plan.max_rows or len(self.links) > 1:
            times, num_idle = plan.times(FORM_TENSORS), self._count_idle()
            limit, cause = plan.adjust(times, limit, cause, length=0, num_idle=num_idle, waiting=self.queued_rows)
        horizon = now + plan.limit_s * (1 + link.num_in_flight)
        calls: list[Call] = []
        rows = num_bytes = 0
        closed, is_tight = IDLE, False
        while queue:
            call = queue[0]
            if calls and (rows + call.num_rows > limit or num_bytes + call.size_bytes > MAX_BATCH_BYTES):
                closed = cause if rows + call.num_rows > limit else BYTES
                break
            queue.popleft()
            self.queued_rows -= call.num_rows
            self.queued_bytes -= call.size_bytes
            if call.is_done:
                self._close(call)
                continue
            if call.deadline_s < horizon:
                is_tight = True
            calls.append(call)
            rows += call.num_rows
            num_bytes += call.size_bytes
        if is_tight:
            return self._split(calls, link, now, closed)
        return Batch(self, calls, rows, closed) if calls else None

    def _take_mixed(self, link: Replica, now: float) -> Batch | None:
        """As `_take_batch`, where requests differ in priority, form, shape or length."""
        lines = self.lines
        head = lines.find_oldest()
        plan = self.plan
        times = plan.times(head.form)
        limit, cause = plan.pick_rows(times, head.length) if lines.can_join(head.form) else (1, SINGLE)
        num_idle = self._count_idle()
        limit, cause = plan.adjust(times, limit, cause, length=head.length, num_idle=num_idle, waiting=self.queued_rows)
        choice = lines.choose(head, limit, times.slack, MAX_BATCH_BYTES)
        for call in choice.calls:
            self.queued_rows -= call.num_rows
            self.queued_bytes -= call.size_bytes
        rest = SHAPE if self.queued_rows else IDLE
        closed = {"rows": cause, "bytes": BYTES, "": rest}[choice.cause]
        horizon = now + times.estimate(choice.num_rows, choice.length) * (1 + link.num_in_flight)
        if any(call.is_done or call.deadline_s < horizon for call in choice.calls):
            return self._split(choice.calls, link, now, closed)
        return self._form_batch(choice.calls, closed)

    def _form_batch(self, calls: list[Call], closed: int) -> Batch:
        batch = Batch(self, calls, sum([call.num_rows for call in calls]), closed)
        if self._plain is None or calls[0].form:
            lengths = [self.lines.find_length(call) for call in calls]
            batch.form = calls[0].form
            batch.length = max(lengths)
            # Text is made tensors in the worker, which pads them.
            batch.is_padded = not batch.form and min(lengths) < batch.length
            batch.real_length = sum([length * call.num_rows for length, call in zip(lengths, calls, strict=True)])
        return batch

    def _split(self, calls: list[Call], link: Replica, now: float, closed: int) -> Batch | None:
        """Make a batch of those requests that it can answer in time, the most pressing first; the rest follows at once."""
        calls = [call for call in calls if not self._refuse_hopeless(call, now)]
        if not calls:
            return None
        calls.sort(key=lambda call: call.deadline_s)
        times = self.plan.times(calls[0].form)
        length = max([self.lines.find_length(call) for call in calls])
        busy_s = sum([times.estimate(batch.num_rows, batch.length) for batch in link.batches_in_flight])
        most = times.fit_rows(calls[0].deadline_s - now - busy_s, sum([call.num_rows for call in calls]), length)
        rows, count = calls[0].num_rows, 1
        while count < len(calls) and rows + calls[count].num_rows <= most:
            rows += calls[count].num_rows
            count += 1
        if count == len(calls):
            return self._form_batch(calls, closed)
        self._resends.append(self._form_batch(calls[count:], DEADLINE))
        return self._form_batch(calls[:count], DEADLINE)

    def _refuse_hopeless(self, call: Call, now: float) -> bool:
        """Refuse a request that cannot be answered in time any more; true when it is out of the way."""
        if self._drop_late(call, now):
            return True
        times = self.plan.times(call.form)
        least_s = times.least_s
        if call.deadline_s - now >= least_s:
            return False
        times.doubt()
        timeout_s = call.deadline_s - call.started_s
        self._fail(call, DeadlineError("deadline_short", timeout_s=timeout_s, left_s=call.deadline_s - now, service_s=least_s))
        return True

    # back

    def check_outputs(self, batch: Batch, tensors: list[Tensor]) -> None:
        """Check that a reply holds exactly the rows that were sent.

        Raises:
            OutputsError: a tensor is missing, or has another datatype, number of rows or ragged length.
        """
        codes = [tensor.code for tensor in tensors]
        if batch.form == FORM_COUNTED:
            if codes[-1:] != [_INT64] or tensors[-1].shape != (batch.num_rows,):
                raise OutputsError("its answer does not count the tokens of each row")
            del codes[-1]
        if codes != self._output_codes:
            raise OutputsError("its outputs have other types, or are not those of the signature")
        is_batched = self.signature.is_batched
        for tensor, spec, cut in zip(tensors, self.signature.outputs, self._cuts, strict=False):
            if not spec.accepts(tensor.shape) or (is_batched and tensor.shape[0] != batch.num_rows):
                raise OutputsError("its outputs have other rows or dimensions than they should")
            if cut and batch.is_padded and tensor.shape[cut] != batch.length:
                raise OutputsError("its outputs have another length than its inputs")

    def take_answers(self, batch: Batch, outputs: list[NDArray[Any]], service_s: float) -> None:
        """Give each request its rows."""
        now = self._now()
        calls = batch.calls
        latencies_s: list[float] = []
        self.num_open -= len(calls)
        start = 0
        for call in calls:
            end = start + call.num_rows
            if not call.is_done:
                call.is_done = True
                latencies_s.append(now - call.started_s)
                if len(calls) == 1:
                    call.answer(outputs)
                elif batch.is_padded:
                    call.answer(self._cut(call, [output[start:end] for output in outputs]))
                else:
                    call.answer_part(batch, outputs, start, end)
            start = end
        # The clients have their answers: what is counted and learnt comes after.
        self.series.add_answers(latencies_s, batch.num_rows, now - batch.sent_s, service_s)
        if service_s > 0:
            self._learn(batch, service_s)

    def _learn(self, batch: Batch, service_s: float) -> None:
        rate = batch.num_rows / service_s
        self.rows_per_s += _RATE_SMOOTHING * (rate - self.rows_per_s) if self.rows_per_s else rate
        self.plan.learn(batch.form, batch.num_rows, batch.length, service_s)
        self.free_s = self.free_rows / self.rows_per_s + self.plan.times(FORM_TENSORS).least_s

    def _cut(self, call: Call, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Cut the ragged outputs of a padded request to its own length."""
        length = self.lines.find_length(call)
        return [
            output[(slice(None),) * axis + (slice(length),)] if axis else output
            for output, axis in zip(outputs, self._cuts, strict=True)
        ]

    def take_failure(self, batch: Batch, detail: str, *, is_input_fault: bool = False) -> None:
        """The model raised an error: halve the batch until the request at fault stands alone.

        Args:
            batch: what failed.
            detail: what was raised.
            is_input_fault: a row holds what cannot be computed with: the client is at fault, not the model.
        """
        calls = [call for call in batch.calls if not self._close_if_done(call)]
        if len(calls) == 1:
            kind, key = (InputError, "bad_row") if is_input_fault else (ModelError, "model_failed")
            self._fail(calls[0], kind(key, model=self.name, version=self.version, detail=detail))
        elif calls:
            middle = len(calls) // 2
            for half in (calls[:middle], calls[middle:]):
                self._resends.append(self._form_batch(half, ALONE))
        self.flush()

    def take_refusal(self, batch: Batch, error: ArgosyError, worker: str, *, has_run: bool) -> None:
        """A batch found no room: send it to another replica, once, unless it has run and may not run twice.

        Args:
            batch: what could not be handed over, or whose answer could not be taken.
            error: that says why, for who cannot be answered.
            worker: whose batch it was.
            has_run: the worker has run it.
        """
        calls = [call for call in batch.calls if not self._close_if_done(call)]
        can_repeat = self.is_repeatable or not has_run
        if calls and can_repeat and not calls[0].refused_by and any(link.worker != worker for link in self.links):
            for call in calls:
                call.refused_by = worker
            self._resends.append(self._form_batch(calls, batch.closed))
        else:
            for call in calls:
                self._fail(call, error)
        self.flush()

    def take_loss(self, batches: list[Batch], worker: str, how: str, unread: Batch | None = None) -> None:
        """A worker died: send each request of its running batch again, alone, once.

        Args:
            batches: what it held, the oldest first.
            worker: that died.
            how: it died.
            unread: a batch that it had not looked at, as a process that was killed a moment ago does not: it is no suspect.
        """
        for index, batch in enumerate(batches):
            for call in batch.calls:
                if self._close_if_done(call):
                    continue
                # A worker runs one batch at a time: only the oldest can have killed it, and only if it was read.
                if index > 0 or batch is unread:
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
        self._resends.append(self._form_batch([call], ALONE))

    def expire(self, now: float) -> None:
        """Fail requests whose deadline has passed, wherever they are, and drop queued ones whose client left."""
        self.streams.expire(now)
        if self.queued_rows:
            self.lines.filter(lambda call: self._drop_late(call, now, is_queued=True))
        for _ in range(len(self._resends)):
            batch = self._resends.popleft()
            calls = [call for call in batch.calls if not self._drop_late(call, now)]
            if calls:
                self._resends.append(self._form_batch(calls, batch.closed))
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
