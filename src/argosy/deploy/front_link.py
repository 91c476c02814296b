"""The control process's end of the link with one front: tables go out, questions come back answered, errands come in."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from argosy.deploy.table_log import TableLog
from argosy.serve.wire.channel import write_message

__all__ = ["FrontLink"]

SILENT_S: Final = 5.0
"""A front that leaves a question open for so long is silent. None of its callbacks takes more than 5 ms of processor time."""

Message = dict[str, Any]


class FrontLink:
    """One front, as long as it lives.

    It has one table to take at a time: one that is slow does not find a hundred, but the sum of all that changed meanwhile.

    Args:
        name: of the front.
        writer: to it.
    """

    def __init__(self, name: str, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.writer = writer
        self._loop = asyncio.get_running_loop()
        self._log: TableLog | None = None
        self._epoch = 0
        """Of the table that it serves by, as it has said; 0 for one that the log knows nothing of."""
        self._told = 0
        """Epoch of the table that it has not taken yet; 0 for none."""
        self._next_id = 0
        # By number, the oldest first.
        self._open: dict[int, tuple[float, asyncio.Future[Message]]] = {}
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        self._is_closed = False

    @property
    def patience_s(self) -> float:
        """How much longer it may take to answer before it is silent; 0 when it is."""
        if not self._open:
            return SILENT_S
        asked_s, _ = next(iter(self._open.values()))
        return max(0.0, asked_s + SILENT_S - self._loop.time())

    def ask(self, message: Message) -> asyncio.Future[Message]:
        """Send a question; the future is its answer, or a ConnectionError if the front dies."""
        future: asyncio.Future[Message] = self._loop.create_future()
        if self._is_closed:
            future.set_exception(ConnectionError(f"{self.name} is gone"))
            return future
        self._next_id += 1
        self._open[self._next_id] = (self._loop.time(), future)
        write_message(self.writer, {**message, "id": self._next_id})
        return future

    def take_answer(self, message: Message) -> None:
        """Take what it answers."""
        _, future = self._open.pop(message["id"], (0.0, None))
        if future is not None and not future.done():
            future.set_result(message)

    def tell(self, log: TableLog) -> None:
        """Have it serve by a log from now on."""
        self._log = log
        if self._is_closed or self._told or self._epoch == log.epoch:
            return
        change = log.get_change(self._epoch)
        self._told = change.epoch
        self.ask({"op": "table", "table": msgspec.to_builtins(change)}).add_done_callback(self._take_epoch)

    def _take_epoch(self, answer: asyncio.Future[Message]) -> None:
        if self._is_closed or self._log is None:
            return
        told, self._told = self._told, 0
        # Where it says another epoch, it did not have what this was a change of, and needs the whole table.
        self._epoch = told if answer.result()["epoch"] == told else 0
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
        for future in [*(future for _, future in self._open.values()), *(waiting for _, waiting in self._awaited)]:
            if not future.done():
                future.set_exception(ConnectionError(f"{self.name} is gone"))
                future.exception()  # whoever waits is told; nobody need
        self._open.clear()
        self._awaited.clear()
        self.writer.close()
