"""Requests that run together: what batcher and link know of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.serve.wire.frames import FORM_TENSORS

if TYPE_CHECKING:
    from argosy.serve.dispatch.batcher import Batcher
    from argosy.serve.dispatch.call import Call

__all__ = ["Batch"]


class Batch:
    """Requests that run together.

    Args:
        lane: whose they are.
        calls: at least one, all of one form.
        num_rows: of all.
        closed: why it has no more; a place in `metrics.CLOSED`.

    Attributes:
        form: of all of them.
        length: of the longest along the ragged axis (of text, in bytes); 0 where the signature is not ragged.
        is_padded: they have different lengths, and each is padded to the longest.
        real_length: of all its rows together, as they came.
        sequence: the link's number of it.
        sent_s: `time.monotonic()` when it went to the worker.
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

    def __init__(self, lane: Batcher, calls: list[Call], num_rows: int, closed: int) -> None:
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
