"""One inference request on its way through a front: made by a protocol, answered exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from argosy.errors import ArgosyError
from argosy.serve.wire.frames import FORM_TENSORS

if TYPE_CHECKING:
    from argosy.serve.dispatch.batch import Batch
    from argosy.serve.dispatch.router import Lane

__all__ = ["Call"]


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
        deadline_s: `time.monotonic()` after which nobody waits for the answer.
        started_s: `time.monotonic()` when the request was complete.
        priority: 1 is taken first, then 2 and so on; 0 is the default's.
        attempts: how many workers died while they ran it.
        is_done: answered, failed, or its client went away.
    """

    __slots__ = ("attempts", "deadline_s", "form", "inputs", "is_done", "lane", "num_rows", "priority", "size_bytes", "started_s")

    def __init__(
        self, lane: Lane, inputs: list[NDArray[Any]], num_rows: int, size_bytes: int, started_s: float, deadline_s: float
    ) -> None:
        self.lane = lane
        self.inputs = inputs
        self.num_rows = num_rows
        self.size_bytes = size_bytes
        self.started_s = started_s
        self.deadline_s = deadline_s
        self.form = FORM_TENSORS
        self.priority = 0
        self.attempts = 0
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
