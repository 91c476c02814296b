"""What has come of requests that are not complete yet, over all connections of a front, and a bound on it.

One client may send a body as large as allowed; thousands at once must not fill the memory. Beyond the bound all but the oldest
wait: the kernel stops what they send. The oldest always goes on, so that one after the other completes, or runs out of time.
"""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["MAX_INTAKE_BYTES", "Intake", "Taker"]

MAX_INTAKE_BYTES: Final = 1 << 30


class Taker(Protocol):
    """A connection."""

    def hold(self) -> None:
        """Read nothing more for now."""
        ...

    def go_on(self) -> None:
        """Read again."""
        ...


class Intake:
    """The account of a front.

    Args:
        max_bytes: the bound; what is read at once from each connection, and the oldest one's body, may come on top.
    """

    def __init__(self, max_bytes: int = MAX_INTAKE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._total = 0
        self._taken: dict[Taker, int] = {}
        """Bytes that a connection holds, the oldest first."""
        self._waiting: dict[Taker, None] = {}

    def note(self, taker: Taker, num_bytes: int) -> None:
        """A connection holds so many bytes now: more than before, and it may have to wait; or less, and others may go on."""
        before = self._taken.get(taker, 0)
        self._total += num_bytes - before
        if num_bytes > before:
            self._taken[taker] = num_bytes
            if self._total > self._max_bytes and taker not in self._waiting and taker is not next(iter(self._taken)):
                self._waiting[taker] = None
                taker.hold()
        elif num_bytes < before:
            # What it still holds is another body, and younger.
            del self._taken[taker]
            if num_bytes:
                self._taken[taker] = num_bytes
            if self._waiting:
                self._free(taker)

    def _free(self, taker: Taker) -> None:
        """Let those go on that need not wait any more: all, or the oldest, and one that holds nothing."""
        if self._total <= self._max_bytes:
            freed = list(self._waiting)
        else:
            candidates = {next(iter(self._taken)), *([] if taker in self._taken else [taker])}
            freed = [other for other in candidates if other in self._waiting]
        for other in freed:
            del self._waiting[other]
            other.go_on()
