"""The workers of a run on this host: plain processes, started, replaced when they die, and ended with the run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from argosy.errors import FaultError, StoreError
from argosy.group.exchange import Leader
from argosy.group.wire import Process
from argosy.store.temporary import explain_write, find_private_folder, remove_dead, temp_folder
from argosy.train.tuner import Tuner

__all__ = ["Crew", "count_cores"]

_LOG = logging.getLogger(__name__)

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - in a folder of the user's own
_MEMBER: Final = "argosy.train.member"
_MOST_LOST: Final = 3
"""Workers that are lost without a new step between them: it is no accident."""


def count_cores() -> int:
    """Give how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Crew(Leader):
    """A context: the leader of a run's workers.

    Args:
        num_workers: with this process.
        pack: writes the run to a file for the others.
        num_threads: that each worker's libraries may use; with a tuner None, if workers are to share the cores.
        tuner: says how many workers there are to be; then a worker that dies is not waited for.
    """

    def __init__(
        self, num_workers: int, pack: Callable[[Path], None], num_threads: int | None, tuner: Tuner | None = None
    ) -> None:
        super().__init__()
        self._num_workers = num_workers
        self._pack = pack
        self._num_threads = num_threads
        self.tuner = tuner
        self._home: Path | None = None
        self._stack = contextlib.ExitStack()
        self._alive: list[Process] = []
        self._coming: list[Process] = []
        """Those that start while the others go on."""
        self._num_started = 0
        self._num_lost = 0
        self._furthest = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in (*self._alive, *self._coming):
            worker.end()
        self.close()
        self._stack.close()

    def begin(self, start: Any) -> Any:
        """See `Group.begin`; starts what workers are missing, and ends those that are too many."""
        self.is_changing = False
        self._bury()
        while len(self._alive) > self._num_workers - 1:
            self._alive.pop().end()
        self._admit()
        if self.tuner is None:
            self._start(self._num_workers - 1 - len(self._alive))
            self._admit(is_awaited=True)
        if self.lost:
            return self.begin(start)
        self.form(self._alive, start, self._share_cores(len(self._alive) + 1) if self._num_threads is None else None)
        if self.tuner is not None:
            self.tuner.begin(self.size)
        return start

    @staticmethod
    def _share_cores(num_workers: int) -> int:
        return max(count_cores() // num_workers, 1)

    def end_step(self, number: int) -> None:
        """Know that a step was taken; only one that was never taken before says that the run goes on."""
        if number > self._furthest:
            self._furthest, self._num_lost = number, 0
        if self.tuner is None:
            return
        self._num_workers = self.tuner.end_step()
        if not self._coming:
            self._start(self._num_workers - 1 - len(self._alive))
        has_come = bool(self._coming) and all(worker.wire.poll(0.0) for worker in self._coming)
        self.is_changing = has_come or len(self._alive) > self._num_workers - 1

    def _start(self, count: int) -> None:
        """Start some more."""
        home = self._home = self._home or self._write_run()
        for _ in range(count):
            self._num_started += 1
            num_threads = self._num_threads or self._share_cores(self._num_workers)
            worker = Process(_MEMBER, [str(home / "run")], home / f"{self._num_started}.log", num_threads)
            worker.wire.send(sys.path)
            self._coming.append(worker)

    def _admit(self, *, is_awaited: bool = False) -> None:
        """Take in those that are ready; or all, when they are."""
        for worker in list(self._coming):
            if is_awaited or worker.wire.poll(0.0):
                self._coming.remove(worker)
                self._alive.append(worker)
                try:
                    self.hear_ready(worker)
                except (EOFError, OSError):
                    self.lost.append(worker)

    def _bury(self) -> None:
        """Take leave of those that are lost."""
        for worker in [one for one in self._alive if one in self.lost]:
            detail = worker.describe_end()
            number = self._alive.index(worker) + 2  # The first is this process.
            self._alive.remove(worker)
            worker.end()
            self._num_lost += 1
            size = self._num_workers
            _LOG.warning("worker %d of %d is gone: %s; another one takes its place", number, size, detail)
            if self._num_lost >= _MOST_LOST:
                raise FaultError("worker_lost", worker=number, size=size, detail=detail)
        self.lost = []

    def find_room(self) -> Path:
        """Give a folder on a disk: what all workers share may be larger than the memory that files may take."""
        return self._stack.enter_context(temp_folder(find_private_folder()))

    def _write_run(self) -> Path:
        """Write the run to where there is room for it: in memory, or else on a disk."""
        for parent in (_MEMORY, None):
            try:
                place = find_private_folder(parent)
                remove_dead(place)
                with contextlib.ExitStack() as stack:
                    home = stack.enter_context(temp_folder(place))
                    self._pack(home / "run")
                    self._stack = stack.pop_all()
            except (StoreError, OSError) as error:
                if parent is None:
                    raise error if isinstance(error, StoreError) else explain_write("a training run", error) from error
            else:
                self.folder = str(home)
                return home
        raise AssertionError
