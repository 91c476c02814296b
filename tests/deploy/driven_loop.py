"""An event loop whose time passes only when nothing is left to do: it jumps to the next timer. Threads do their work at once."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

OWNER: ContextVar[object] = ContextVar("OWNER", default=None)
"""Whose a task is; that of the task that makes it, unless something else is said."""


class DrivenLoop(asyncio.SelectorEventLoop):
    """Hours of waiting take milliseconds, and the same program always runs the same way."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.faults: list[Any] = []
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now_s

    def create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **kwargs)
        context = kwargs.get("context")
        self._owners[task] = context[OWNER] if context is not None else OWNER.get()
        return task

    def cancel_tasks_of(self, owner: object) -> None:
        """Cancel all tasks of an owner but the one that runs now."""
        for task in asyncio.all_tasks(self):
            if self._owners.get(task) is owner and task is not asyncio.current_task(self):
                task.cancel()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: DrivenLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._loop.now_s += max(0.0, timeout)
        return []


def run(work: Coroutine[Any, Any, Any], expected: type[BaseException] = asyncio.CancelledError) -> Any:
    """Run a coroutine to its end on such a loop; tasks that it leaves are cancelled.

    Args:
        work: the coroutine.
        expected: what a task may end with that nobody waits for. Anything else fails.
    """
    loop = start_loop(expected)
    try:
        return loop.run_until_complete(work)
    finally:
        end_loop(loop)


def start_loop(expected: type[BaseException] = asyncio.CancelledError) -> DrivenLoop:
    """Make a loop; see `run`."""
    loop = DrivenLoop()

    def note(_: Any, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), expected):
            loop.faults.append(context)

    loop.set_exception_handler(note)
    return loop


def end_loop(loop: DrivenLoop) -> None:
    """Cancel what runs on a loop, and see that no task failed that nobody waited for."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()
    del left
    gc.collect(0)
    assert not loop.faults, loop.faults
