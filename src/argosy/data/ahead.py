"""Work that threads do ahead of whoever needs it: bounded, in order, and ended with the iteration."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["map_ahead", "run_ahead"]

T = TypeVar("T")


class _Result(Generic[T]):
    """What a task gave, or what it raised."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None

    def run(self, task: Callable[[], T]) -> None:
        try:
            self.value = task()
        except BaseException as error:  # whoever waits for the value raises it
            self.error = error
        self.done.set()

    def get(self) -> T:
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value  # pyright: ignore[reportReturnType]


def map_ahead(tasks: Iterable[Callable[[], T]], num_threads: int, ahead: int) -> Generator[T]:
    """Run tasks in threads, and give what they give, in their order.

    Args:
        tasks: are taken in their order, so that one may wait for those before it.
        num_threads: that run tasks; they end with the iteration.
        ahead: tasks whose results are made, or wait to be taken, at most.
    """
    waiting: collections.deque[tuple[Callable[[], T], _Result[T]]] = collections.deque()
    given: collections.deque[_Result[T]] = collections.deque()
    changed, is_over = threading.Condition(), False

    def work() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or is_over)
                if is_over:
                    return
                task, result = waiting.popleft()
            result.run(task)

    threads = [threading.Thread(target=work, name="argosy-data-read", daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        left = iter(tasks)
        while True:
            while len(given) < ahead and (task := next(left, None)) is not None:
                given.append(_Result[T]())
                with changed:
                    waiting.append((task, given[-1]))
                    changed.notify()
            if not given:
                return
            yield given.popleft().get()
    finally:
        with changed:
            is_over = True
            waiting.clear()
            changed.notify_all()
        for thread in threads:
            thread.join()


def run_ahead(items: Iterator[T], ahead: int) -> Generator[T]:
    """Iterate in a thread, some items ahead.

    Args:
        items: a generator is closed in the thread, when this one is closed or at its end.
        ahead: items that wait to be taken, at most.
    """
    ready: collections.deque[_Result[T]] = collections.deque()
    changed, is_over, is_done = threading.Condition(), False, False

    def work() -> None:
        nonlocal is_done
        try:
            while not is_over:
                result = _Result[T]()
                result.run(lambda: next(items))
                with changed:
                    ready.append(result)
                    changed.notify_all()
                    if result.error is not None:
                        return
                    changed.wait_for(lambda: len(ready) < ahead or is_over)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    close()
            with changed:
                is_done = True
                changed.notify_all()

    thread = threading.Thread(target=work, name="argosy-data-order", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready or is_done)
                if not ready:
                    return
                result = ready.popleft()
                changed.notify_all()
            try:
                item = result.get()
            except StopIteration:
                return
            yield item
    finally:
        with changed:
            is_over = True
            changed.notify_all()
        thread.join()
