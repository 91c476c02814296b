"""How many workers a run has, where it is to find out: by the steps that it takes, which count, whoever takes them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Tuner"]

_LOG = logging.getLogger(__name__)

_SKIPPED: Final = 3
"""Steps after a change, the first of which compile, or fill caches."""
_LEAST_STEPS: Final = 8
_LEAST_S: Final = 1.0
_BETTER: Final = 0.95
"""Of the time of a step, from which more workers are worth their cores."""


class Tuner:
    """Doubles the workers as long as steps become faster.

    Args:
        most: workers, such as the cores there are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.say: Callable[[str], object] = _LOG.info
        """Is told what was found."""
        self._times: dict[int, float] = {}
        """Of a step, by number of workers."""
        self._size = 1
        self._wanted = 1
        self._gaps: list[float] = []
        self._num_skipped = 0
        self._last_s: float | None = None
        self._is_done = most == 1

    def begin(self, size: int) -> None:
        """Know that the group has formed with so many."""
        self._size, self._gaps, self._num_skipped, self._last_s = size, [], 0, None

    def end_step(self) -> int:
        """Know that a step was taken; gives how many workers there are to be."""
        now_s = time.perf_counter()
        gap_s, self._last_s = None if self._last_s is None else now_s - self._last_s, now_s
        if self._is_done or gap_s is None or self._size != self._wanted:
            return self._wanted
        self._num_skipped += 1
        if self._num_skipped > _SKIPPED:
            self._gaps.append(gap_s)
        if len(self._gaps) >= _LEAST_STEPS and sum(self._gaps) >= _LEAST_S:
            self._decide(statistics.median(self._gaps))
        return self._wanted

    def _decide(self, step_s: float) -> None:
        self._times[self._size] = step_s
        before = self._times.get(self._size // 2)
        if before is not None and step_s > _BETTER * before:
            self._wanted = self._size // 2
        elif 2 * self._size <= self._most:
            self._wanted = 2 * self._size
            return
        self._is_done = True
        measured = ", ".join(f"{1e3 * one:.3g} ms with {size}" for size, one in self._times.items())
        self.say(f"workers: {self._wanted} (a step takes {measured})")
