"""A request on its way through a front, the lane that answers it, and the batch that it runs in.

A protocol makes a `Call` and is told its answer exactly once. `Lane` is what everybody knows of the version that answers;
`argosy.serve.dispatch.batcher` is the one that joins calls to batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from argosy.errors import ArgosyError, UnavailableError
from argosy.serve.dispatch.plan import Plan
from argosy.serve.wire.counters import Series
from argosy.serve.wire.frames import FORM_TENSORS, Tensor
from argosy.signature import Signature

__all__ = ["Batch", "Call", "Clock", "Lane", "OutputsError", "Replica"]

Clock = Callable[[], float]
"""Seconds that only grow: `time.monotonic` in a front, whatever a test or a simulation wants elsewhere."""


class OutputsError(Exception):
    """A reply is well-formed, and not what its batch asked for: the model's doing, which concerns this batch alone."""


class Replica(Protocol):
    """What takes batches: a link to a worker of this machine, for one."""

    worker: str
    num_in_flight: int
    num_slots: int
    """Batches that it takes at a time; 0 until it has said so."""
    is_late: bool
    """It has worked on a batch for so long that it may hang."""

    @property
    def can_send(self) -> bool:
        """True when it takes another batch now."""
        ...

    @property
    def batches_in_flight(self) -> list[Batch]:
        """What it holds."""
        ...

    @property
    def oldest_sent_s(self) -> float:
        """When the oldest batch in flight was sent; infinite where there is none."""
        ...

    def send(self, batch: Batch) -> None:
        """Hand a batch over. The batch's lane is told how it went, later."""
        ...


class Lane:
    """One version of one deployment, as everybody in a front knows it.

    Args:
        signature: of the version.
        name: of the deployment, the {m} of a URL.
        model: that it is a version of.
        version: its number.
        series: where the version's counters live.

    Attributes:
        links: the replicas that answer.
        output_index: place of each output in the signature, by name.
        free_axis: input and axis whose length a request chooses, the first of those.
        pads: of each input the ragged axis and what fills it up.
        queued_rows: that wait.
        queued_bytes: of the requests that wait.
        num_open: requests that are not answered.
        free_rows: while no more wait, nothing but a deadline nearer than `free_s` can keep a request from being taken.
        rows_per_s: of one replica, lately.
        versions: of the deployment, those that take requests.
        repeats: what reads bodies that clients repeat; made by the protocol whose bodies they are.
        is_down: no replica is to be expected soon where there is none now: a request is refused, and does not wait.
        lack: what there is no room for, where replicas cannot be had for that.
        cache: whatever else a protocol prepares once per lane.
    """

    def __init__(self, signature: Signature, name: str, model: str, version: str, series: Series) -> None:
        self.signature = signature
        self.name = name
        self.model = model
        self.version = version
        self.series = series
        self.links: list[Replica] = []
        self.plan = Plan()
        self.output_index = {spec.name: index for index, spec in enumerate(signature.outputs)}
        axes = [(index, axis) for index, own in enumerate(signature.free_axes.values()) for axis in own]
        self.free_axis = axes[0] if axes else None
        self.pads: list[tuple[int, float] | None] = [None] * len(signature.inputs)
        self.max_batch_rows = 1
        self.can_join = self.is_down = False
        self.is_repeatable = False
        self.join_refusal = self.joining = self.pad_refusal = self.lack = ""
        self.timeout_s = 0.0
        self.max_queue_rows = self.max_queue_bytes = 0
        self.platform = ""
        self.created_s = 0
        self.versions: list[str] = []
        self.queued_rows: int = 0
        self.queued_bytes: int = 0
        self.num_open: int = 0
        self.free_rows, self.free_s = 0, float("inf")
        self.rows_per_s: float = 0.0
        self.repeats: Any = None
        self.cache: dict[str, Any] = {}

    @property
    def is_ready(self) -> bool:
        """True when a warm replica answers: one that may hang does not."""
        return any(not link.is_late for link in self.links)

    def refuse(self) -> UnavailableError:
        """The error for a request that no replica is to be expected for."""
        if self.lack:
            return UnavailableError("no_room", model=self.name, version=self.version, detail=self.lack, retry_after_s=1.0)
        return UnavailableError("no_replica", model=self.name, retry_after_s=1.0)

    def put(self, call: Call) -> None:
        """Queue a request."""
        raise NotImplementedError

    def count_before(self, priority: int) -> int:
        """Rows that wait and are at least as urgent."""
        raise NotImplementedError

    def take_queued(self) -> list[Call]:
        """Remove and return every request that has not been sent, oldest first."""
        raise NotImplementedError

    def proceed(self) -> None:
        """Send what waits, for a replica has room."""
        raise NotImplementedError

    def check_outputs(self, batch: Batch, tensors: list[Tensor]) -> None:
        """Check that a reply holds exactly the rows that were sent.

        Raises:
            OutputsError: it does not.
        """
        raise NotImplementedError

    def take_answers(self, batch: Batch, outputs: list[NDArray[Any]], service_s: float) -> None:
        """Give each request of a batch its rows."""
        raise NotImplementedError

    def take_failure(self, batch: Batch, detail: str, *, is_input_fault: bool = False) -> None:
        """The model raised an error on a batch."""
        raise NotImplementedError

    def take_refusal(self, batch: Batch, error: ArgosyError, worker: str, *, has_run: bool) -> None:
        """A worker could not be given a batch, or its answer not be taken, for lack of room: nobody is at fault."""
        raise NotImplementedError

    def take_loss(self, batches: list[Batch], worker: str, how: str, unread: Batch | None = None) -> None:
        """A worker died with these batches, the oldest first; one of them it may not have looked at."""
        raise NotImplementedError


class Call:
    """What admission, batcher and link know of a request. Protocols derive from it.

    Attributes:
        lane: the version that answers it; changes when a held request is routed again.
        inputs: one array per input of the signature, in its order. The first axis is rows where the
            signature is batched.
        form: FORM_TENSORS; FORM_RAW where the inputs are those that the worker preprocesses (`Signature.raw_inputs`);
            FORM_COUNTED where the answer then ends with one more output, the tokens of each row, INT64.
        num_rows: rows, 1 where the signature is not batched.
        size_bytes: size of the request as received, for the bound on bytes in the queue.
        deadline_s: moment after which nobody waits for the answer.
        started_s: moment when the request was complete.
        priority: 1 is taken first, then 2 and so on; 0 is the default's.
        attempts: how many workers died while they ran it.
        refused_by: the worker that it could not be given to, or whose answer could not be taken, for lack of room.
        is_done: answered, failed, or its client went away.
    """

    __slots__ = (
        "attempts",
        "deadline_s",
        "form",
        "inputs",
        "is_done",
        "lane",
        "num_rows",
        "priority",
        "refused_by",
        "size_bytes",
        "started_s",
    )

    def __init__(
        self,
        lane: Lane,
        inputs: list[NDArray[Any]],
        num_rows: int,
        size_bytes: int,
        started_s: float,
        deadline_s: float,
        form: int = FORM_TENSORS,
        priority: int = 0,
    ) -> None:
        self.lane = lane
        self.inputs = inputs
        self.num_rows = num_rows
        self.size_bytes = size_bytes
        self.started_s = started_s
        self.deadline_s = deadline_s
        self.form = form
        self.priority = priority
        self.attempts = 0
        self.refused_by = ""
        self.is_done = False

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the rows of this request, one array per output of the signature, in its order.

        The arrays are views that are reused as soon as this returns: whatever is kept must be copied.
        It never raises: what cannot be encoded is answered as an error.
        """
        raise NotImplementedError

    def answer_part(self, batch: Batch, outputs: list[NDArray[Any]], start: int, end: int) -> None:
        """Send the rows `start` to `end` of a batch's outputs, as `answer`; `batch` may keep what its requests share."""
        self.answer([output[start:end] for output in outputs])

    def fail(self, error: ArgosyError) -> None:
        """Send an error. It never raises."""
        raise NotImplementedError


class Batch:
    """Requests that run together.

    Args:
        lane: whose they are.
        calls: at least one, all of one form.
        num_rows: of all.
        closed: why it has no more; a place in `counters.CLOSED`.

    Attributes:
        form: of all of them.
        length: of the longest along the ragged axis (of text, in bytes); 0 where the signature is not ragged.
        is_padded: they have different lengths, and each is padded to the longest.
        real_length: of all its rows together, as they came.
        sequence: the link's number of it.
        sent_s: moment when it went to the worker.
        texts: the rows of its only output as JSON, once a request has asked for them.
    """

    __slots__ = (
        "calls",
        "closed",
        "form",
        "is_padded",
        "lane",
        "length",
        "num_rows",
        "real_length",
        "sent_s",
        "sequence",
        "texts",
    )

    def __init__(self, lane: Lane, calls: list[Call], num_rows: int, closed: int) -> None:
        self.lane = lane
        self.calls = calls
        self.num_rows = num_rows
        self.closed = closed
        self.form = FORM_TENSORS
        self.length = self.real_length = 0
        self.is_padded = False
        self.sequence = 0
        self.sent_s = 0.0
        self.texts: list[bytes] | None = None
