"""The workers of a run on this host: plain processes, started, replaced when they die, and ended with the run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from argosy.errors import FaultError, StoreError
from argosy.group.exchange import Leader
from argosy.group.wire import Process
from argosy.store.temporary import explain_write, find_private_folder, remove_dead, temp_folder

__all__ = ["Crew"]

_LOG = logging.getLogger(__name__)

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - in a folder of the user's own
_MEMBER: Final = "argosy.train.member"
_MOST_LOST: Final = 3
"""Workers that are lost without a new step between them: it is no accident."""


class Crew(Leader):
    """A context: the leader of a run's workers.

    Args:
        num_workers: with this process.
        pack: writes the run to a file for the others.
        num_threads: that each worker's libraries may use.
    """

    def __init__(self, num_workers: int, pack: Callable[[Path], None], num_threads: int | None) -> None:
        super().__init__()
        self._num_workers = num_workers
        self._pack = pack
        self._num_threads = num_threads
        self._home: Path | None = None
        self._stack = contextlib.ExitStack()
        self._alive: list[Process] = []
        self._num_started = 0
        self._num_lost = 0
        self._furthest = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._alive:
            worker.end()
        self.close()
        self._stack.close()

    def begin(self, start: Any) -> Any:
        """See `Group.begin`; starts what workers are missing."""
        self._bury()
        home = self._home = self._home or self._write_run()
        new: list[Process] = []
        for _ in range(self._num_workers - 1 - len(self._alive)):
            self._num_started += 1
            worker = Process(_MEMBER, [str(home / "run")], home / f"{self._num_started}.log", self._num_threads)
            self._alive.append(worker)
            worker.wire.send(sys.path)
            new.append(worker)
        for worker in new:
            try:
                self.hear_ready(worker)
            except (EOFError, OSError):
                self.lost.append(worker)
        if self.lost:
            return self.begin(start)
        self.form(self._alive, start)
        return start

    def end_step(self, number: int) -> None:
        """Know that a step was taken; only one that was never taken before says that the run goes on."""
        if number > self._furthest:
            self._furthest, self._num_lost = number, 0

    def _bury(self) -> None:
        """Take leave of those that are lost."""
        for worker in [one for one in self._alive if one in self.lost]:
            detail = worker.describe_end()
            rank = self._alive.index(worker) + 1
            self._alive.remove(worker)
            worker.end()
            self._num_lost += 1
            _LOG.warning("worker %d of the run is gone: %s; another one takes its place", rank, detail)
            if self._num_lost >= _MOST_LOST:
                raise FaultError("worker_lost", worker=rank, detail=detail)
        self.lost = []

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
