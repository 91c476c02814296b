"""Bound what a model may take: while it is loaded no more than is free, later no more than a node has, in a trial less.

A graph of a few bytes can fold a constant of gigabytes, and a row of a trial may hold what a model takes for a number of steps,
or for a size. What is cut off may leave anything half done, so code is interrupted in copies of a process alone
(`cores.run_apart`): a process that is to answer clients runs a trial to its end, and then finds that it took too long.
The standard library only.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import ClassVar, Final

__all__ = ["Bounds", "TrialTooLong", "end_first", "limit_memory"]

_PAGE_BYTES: Final = resource.getpagesize()
_ENDS_FIRST: Final = "500"
_RESERVED_BYTES: Final = 1 << 30
"""Libraries reserve memory that they do not use, and the limit counts it."""
_DATA: Final = 5
"""Place of the pages of data in `/proc/self/statm`."""


class TrialTooLong(BaseException):
    """The trial took too long. No Exception, for a model's own code may catch those."""


class Bounds:
    """What takes longer while it is entered raises TrialTooLong, and memory beyond half of what is free is refused.

    In another thread than the main one nothing is bounded.

    Args:
        limit_s: seconds.

    Attributes:
        cuts: this process is a copy, in which code is interrupted when the time is over; elsewhere it ends first. A library is
            not interrupted in a call of its own.
    """

    cuts: ClassVar[bool] = False

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._is_over = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._is_over = True
            return
        self._memory = resource.getrlimit(resource.RLIMIT_DATA)
        soft = _count_data_bytes() + _count_free_bytes() // 2
        self._until_s = time.monotonic() + self._limit_s
        _lower(soft)
        if self.cuts:
            signal.signal(signal.SIGALRM, self._stop)
            signal.setitimer(signal.ITIMER_REAL, self._limit_s)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._is_over:
            raise TrialTooLong

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_over:
            return
        try:
            # The alarm may come at any of these lines.
            self._is_over = True
        finally:
            self._is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            resource.setrlimit(resource.RLIMIT_DATA, self._memory)
        if kind is None and time.monotonic() > self._until_s:
            raise TrialTooLong


def limit_memory(num_bytes: int, *, must_be_free: bool) -> None:
    """Refuse memory beyond so much more than this process has: what is too large fails here, and takes nothing from others.

    Args:
        num_bytes: that it may take.
        must_be_free: no more than the machine has free now.
    """
    most = min(num_bytes, _count_free_bytes()) if must_be_free else num_bytes
    soft, hard = _count_data_bytes() + most + _RESERVED_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def end_first() -> None:
    """Be among the first that the kernel ends where memory runs out, so that a model takes no other process with it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_ENDS_FIRST)


def _lower(soft: int) -> None:
    """Let the limit of data be no higher than this."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    if all(limit == resource.RLIM_INFINITY or soft < limit for limit in limits):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, limits[1]))


def _count_data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[_DATA]) * _PAGE_BYTES


def _count_free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
