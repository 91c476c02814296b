"""The control process's end of the link with one front: tables go out, questions come back answered, errands come in."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final, TypeVar

import msgspec

from argosy.deploy.table_log import TableLog
from argosy.errors import MessageError
from argosy.serve.wire.channel import write_message
from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import MAX_ERRANDS, Answer, Ask, PutTable, TableTaken

__all__ = ["SILENT_S", "FrontLink"]

SILENT_S: Final = 5.0
"""A front that leaves a question open for so long is silent. None of its callbacks takes more than 5 ms of processor time."""

A = TypeVar("A", bound=Answer)


class FrontLink:
    """One front, as long as it lives.

    It has one table to take at a time: one that is slow does not find a hundred, but the sum of all that changed meanwhile.

    Args:
        name: of the front.
        pid: of its process.
        writer: to it.
    """

    def __init__(self, name: str, pid: int, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.pid = pid
        self.writer = writer
        self._loop = asyncio.get_running_loop()
        self._log: TableLog | None = None
        self._epoch = 0
        """Of the table that it serves by, as it has said; 0 for one that the log knows nothing of."""
        self._told = 0
        """Epoch of the table that it has not taken yet; 0 for none."""
        self._next_id = 0
        # By number, the oldest first.
        self._open: dict[int, tuple[float, type[Answer], asyncio.Future[Any]]] = {}
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        self._num_errands = 0
        self._is_closed = False

    @property
    def patience_s(self) -> float:
        """How much longer it may take to answer before it is silent; 0 when it is."""
        if not self._open:
            return SILENT_S
        asked_s, _, _ = next(iter(self._open.values()))
        return max(0.0, asked_s + SILENT_S - self._loop.time())

    def ask(self, ask: Ask, kind: type[A]) -> asyncio.Future[A]:
        """Send a question; the future is its answer, of this kind, or a ConnectionError if the front dies.

        Raises:
            MessageError: `message_too_large`.
        """
        future: asyncio.Future[A] = self._loop.create_future()
        if self._is_closed:
            future.set_exception(ConnectionError(f"{self.name} is gone"))
            return future
        self._next_id += 1
        write_message(self.writer, type(ask)(**{**vars(ask), "id": self._next_id}))
        self._open[self._next_id] = (self._loop.time(), kind, future)
        return future

    def take_answer(self, answer: Answer) -> None:
        """Take what it answers.

        Raises:
            MessageError: `bad_message`, it is no answer to that question.
        """
        _, kind, future = self._open.pop(answer.id, (0.0, type(answer), None))
        if kind is not type(answer):
            refuse(f"{kind.__name__} was to come, not {type(answer).__name__}")
        if future is not None and not future.done():
            future.set_result(answer)

    def begin_errand(self) -> None:
        """It asks for a load or an unload.

        Raises:
            MessageError: `bad_message`, it asks for more at once than it may.
        """
        if self._num_errands >= MAX_ERRANDS:
            refuse(f"more than {MAX_ERRANDS} loads and unloads wait")
        self._num_errands += 1

    def end_errand(self) -> None:
        """It is told how that went."""
        self._num_errands -= 1

    def tell(self, log: TableLog) -> None:
        """Have it serve by a log from now on."""
        self._log = log
        if self._is_closed or self._told or self._epoch == log.epoch:
            return
        change = log.get_change(self._epoch)
        try:
            asked = self.ask(PutTable(msgspec.to_builtins(change)), TableTaken)
        except MessageError as error:
            # It serves by the table that it has, and is silent for whoever waits for a later one.
            print(f"{self.name} gets no table: {error.message}", file=sys.stderr, flush=True)
            return
        self._told = change.epoch
        asked.add_done_callback(self._take_epoch)

    def _take_epoch(self, answer: asyncio.Future[TableTaken]) -> None:
        if self._is_closed or self._log is None:
            return
        told, self._told = self._told, 0
        # Where it says another epoch, it did not have what this was a change of, and needs the whole table.
        self._epoch = told if answer.result().epoch == told else 0
        for epoch, waiting in self._awaited:
            if epoch <= self._epoch and not waiting.done():
                waiting.set_result(None)
        self._awaited = [(epoch, waiting) for epoch, waiting in self._awaited if not waiting.done()]
        self.tell(self._log)

    async def reach(self, epoch: int) -> None:
        """Wait until it serves by the table of this epoch or a later one.

        Raises:
            ConnectionError: it died.
        """
        if self._is_closed:
            raise ConnectionError(f"{self.name} is gone")
        if self._epoch >= epoch:
            return
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._awaited.append((epoch, waiting))
        await waiting

    def close(self) -> None:
        """The front is gone: nothing is answered any more."""
        self._is_closed = True
        for future in [*(future for _, _, future in self._open.values()), *(waiting for _, waiting in self._awaited)]:
            if not future.done():
                future.set_exception(ConnectionError(f"{self.name} is gone"))
                future.exception()  # whoever waits is told; nobody need
        self._open.clear()
        self._awaited.clear()
        self.writer.close()
