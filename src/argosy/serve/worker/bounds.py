"""Bound what a trial may take: a row that no client sent must not cost the server what only a client could ask for.

A row of a trial may hold what a model takes for a number of steps, or for a size. Python code is interrupted; what a library does
in one call of its own is not, and ends by itself or with the time that a load has. The standard library only.
"""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["Bounds", "TrialTooLong"]

_PAGE_BYTES: Final = resource.getpagesize()
_DATA: Final = 5
"""Place of the pages of data in `/proc/self/statm`."""


class TrialTooLong(BaseException):
    """The trial took too long. No Exception, for a model's own code may catch those."""


class Bounds:
    """While it is entered, code that takes longer raises TrialTooLong, and memory beyond half of what is free is refused.

    In another thread than the main one, which alone can be interrupted, nothing is bounded.

    Args:
        limit_s: seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._is_over = False

    def __enter__(self) -> None:
        try:
            self._handler = signal.signal(signal.SIGALRM, self._stop)
        except ValueError:  # not the main thread
            self._is_over = True
            return
        self._memory = resource.getrlimit(resource.RLIMIT_DATA)
        soft = _count_data_bytes() + _count_free_bytes() // 2
        if self._memory[1] == resource.RLIM_INFINITY or soft < self._memory[1]:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, self._memory[1]))
        signal.setitimer(signal.ITIMER_REAL, self._limit_s)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._is_over:
            raise TrialTooLong

    def __exit__(self, *_: object) -> None:
        if self._is_over:
            return
        try:
            # The alarm may come at any of these lines.
            self._is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        finally:
            self._is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, self._handler)
            resource.setrlimit(resource.RLIMIT_DATA, self._memory)


def _count_data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[_DATA]) * _PAGE_BYTES


def _count_free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
