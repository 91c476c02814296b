"""An inference request that came over HTTP: what its answer looks like, and which connection it goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from argosy.errors import ArgosyError
from argosy.serve.dispatch.call import Call
from argosy.serve.v2.json_body import Request, encode_binary, encode_json, encode_row, encode_rows

if TYPE_CHECKING:
    from argosy.serve.dispatch.batch import Batch
    from argosy.serve.dispatch.router import Lane
    from argosy.serve.http.connection import HttpConnection

__all__ = ["HttpCall"]


class HttpCall(Call):
    """An inference request that came over HTTP."""

    __slots__ = ("_connection", "_request")

    def __init__(
        self, connection: HttpConnection, lane: Lane, inputs: list[NDArray[Any]], request: Request, size_bytes: int, now: float
    ) -> None:
        # Written out: a call of the base class costs a fifth of a microsecond on every request.
        self.lane = lane
        self.inputs = inputs
        self.num_rows = request.num_rows
        self.size_bytes = size_bytes
        self.started_s = now
        timeout_s = request.timeout_s
        self.deadline_s = now + (lane.timeout_s if timeout_s is None else timeout_s)
        self.form = request.form
        self.priority = request.priority
        self.attempts = 0
        self.is_done = False
        self._connection = connection
        self._request = request

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the answer as JSON, or as JSON and binary tensors."""
        connection = self._connection
        request = self._request
        wanted = request.wanted
        try:
            if wanted is None or not any(want.is_binary for want in wanted):
                connection.send_json(encode_json(self.lane, outputs, request.id, wanted))
            else:
                head, tail = encode_binary(self.lane, outputs, request.id, wanted)
                connection.send_binary(head, tail)
        except ArgosyError as error:
            connection.send_error(error)
        except Exception as error:  # the batcher must not suffer from one answer
            connection.report(error)

    def answer_part(self, batch: Batch, outputs: list[NDArray[Any]], start: int, end: int) -> None:
        """Send the answer; JSON of single rows is written for the whole batch at once, in half the time."""
        request = self._request
        if end - start == 1 and len(outputs) == 1 and request.wanted is None and not request.id:
            try:
                if batch.texts is None:
                    batch.texts = encode_rows(outputs[0])
                if batch.texts:
                    self._connection.send_json(encode_row(self.lane, outputs[0], batch.texts[start]))
                    return
            except Exception as error:  # the batcher must not suffer from one answer
                self._connection.report(error)
                return
        self.answer([output[start:end] for output in outputs])

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self._connection.send_error(error)
