"""A lane on an event loop, a clock and replicas that are made up: nothing waits, and time passes when a test lets it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from argosy.errors import ArgosyError
from argosy.serve.dispatch.batcher import Batcher
from argosy.serve.dispatch.call import Batch, Call
from argosy.serve.wire.counters import MEMORY_BYTES, Counters
from argosy.serve.wire.padding import fill_padded
from argosy.serve.wire.table import LaneEntry, TableEntry
from argosy.signature import Signature, TensorSpec


class Clock:
    """Time that stands still until a test lets it pass."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Loop:
    """An event loop without events."""

    def __init__(self) -> None:
        self._due: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        self._due.append((function, args))

    def spin(self) -> None:
        """Turn until nothing is left to do."""
        while self._due:
            turn, self._due = self._due, deque()
            for function, args in turn:
                function(*args)


class Asked(Call):
    """A request that remembers what it was told."""

    def __init__(
        self, front: Any, array: np.ndarray, *, form: int = 0, priority: int = 0, waited_s: float = 0.0, timeout_s: float = 1e9
    ) -> None:
        started_s = front.clock() - waited_s
        super().__init__(front.lane, [array], len(array), array.nbytes, started_s, started_s + timeout_s)
        self.form, self.priority = form, priority
        self.answers: list[list[np.ndarray]] = []
        self.errors: list[ArgosyError] = []

    def answer(self, outputs: list[np.ndarray]) -> None:
        self.answers.append([output.copy() for output in outputs])

    def fail(self, error: ArgosyError) -> None:
        self.errors.append(error)


def make_counters() -> Counters:
    fd = os.memfd_create("counters", os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY_BYTES)
    return Counters(fd, 0)


def make_entry(signature: Signature | None = None, **fields: Any) -> TableEntry:
    """What a table says of a deployment `m` of one version: batches of up to 8 rows, by the workers `w0` to `w3`."""
    x, y = (TensorSpec(name, "FP32", (-1, 4)) for name in "xy")
    names = tuple(f"w{number}" for number in range(4))
    lane = LaneEntry("1", 1.0, False, 0, signature or Signature((x,), (y,)), "onnx", names, 8, True, True, 30.0, 1000, 1 << 20)
    return TableEntry("m", "m", (msgspec.structs.replace(lane, **fields),))


class Front:
    """The lane of one deployment; its replicas are the test's."""

    def __init__(self, signature: Signature | None = None, *, num_fronts: int = 1, **fields: Any) -> None:
        self.loop, self.clock, self.counters = Loop(), Clock(), make_counters()
        entry = make_entry(signature, **fields)
        loop: Any = self.loop
        self.lane = Batcher(loop, entry, entry.lanes[0], self.counters, num_fronts, self.clock)
        self.lane.update(entry, entry.lanes[0])

    def put(self, *asked: Asked) -> None:
        """Queue requests in one turn of the loop."""
        for call in asked:
            self.lane.put(call)
        self.loop.spin()

    def add(self, worker: str, num_slots: int = 2) -> Replica:
        """Give the lane one more replica."""
        replica = Replica(self, worker, num_slots)
        self.lane.links.append(replica)
        self.lane.flush()
        return replica

    def count_closed(self) -> dict[str, int]:
        """Why batches were closed."""
        return {reason: count for reason, count in self.counters.summarize(0)["closed"].items() if count}


class Replica:
    """Takes batches, and answers them when a test says so."""

    def __init__(self, front: Front, worker: str, num_slots: int) -> None:
        self.front, self.worker, self.num_slots = front, worker, num_slots
        self.batches_in_flight: list[Batch] = []
        self.is_late = False
        self._untaken: deque[Batch] = deque()

    @property
    def num_in_flight(self) -> int:
        return len(self.batches_in_flight)

    @property
    def can_send(self) -> bool:
        return self.num_in_flight < self.num_slots

    @property
    def oldest_sent_s(self) -> float:
        return min([batch.sent_s for batch in self.batches_in_flight], default=float("inf"))

    def send(self, batch: Batch) -> None:
        batch.sent_s = self.front.clock()
        self.batches_in_flight.append(batch)
        self._untaken.append(batch)

    def take(self) -> Batch:
        """The oldest batch that no test has taken."""
        return self._untaken.popleft()

    def answer(self, batch: Batch, *outputs: np.ndarray, service_s: float = 1e-6) -> None:
        """Answer a batch that took so long."""
        self.front.clock.now_s += service_s
        self.batches_in_flight.remove(batch)
        batch.lane.take_answers(batch, list(outputs), service_s)
        batch.lane.proceed()
        self.front.loop.spin()

    def answer_all(self, service_s: float = 1e-6) -> list[np.ndarray]:
        """Answer y = 2 x until nothing is open; the rows of the batches in their order."""
        found: list[np.ndarray] = []
        while self.front.lane.num_open:
            batch = self.take()
            found.append(join_rows(batch))
            self.answer(batch, found[-1] * 2, service_s=service_s)
        return found


def join_rows(batch: Batch) -> np.ndarray:
    """A batch's rows side by side, the shorter ones padded."""
    parts = [call.inputs[0] for call in batch.calls]
    if not batch.is_padded:
        return np.concatenate(parts)
    axis, pad = batch.lane.pads[0] or (1, 0.0)
    shape = [batch.num_rows, *parts[0].shape[1:]]
    shape[axis] = batch.length
    joined = np.empty(shape, parts[0].dtype)
    fill_padded(joined, parts, axis, pad)
    return joined
