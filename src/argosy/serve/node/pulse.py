"""Whether a process is there: it may live, and do nothing. Standard library only.

Beats are counted, not seconds: a supervisor that had no processor itself, on a machine that is busy or was suspended, has not
looked, and a child that could not answer meanwhile is not to blame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["BEAT_S", "Pulse", "is_stopped"]

BEAT_S: Final = 2.0
STOPPED_BEATS: Final = 3
"""At which a process is stopped (SIGSTOP) before it is given up."""
SILENT_BEATS: Final = 15
"""Which a process that is not stopped leaves unanswered before it is given up: it may work hard, or wait for a disk."""


class Pulse:
    """What is known of one process; begun anew with each that is started."""

    def __init__(self) -> None:
        self._num_stopped = 0
        self._num_silent = 0
        self._has_answered = False

    def hear(self) -> None:
        """It has answered."""
        self._has_answered = True
        self._num_silent = 0

    def beat(self, pid: int) -> str:
        """Look at it once more, and count the question that it is asked now; returns why it is to be given up, or ""."""
        self._num_stopped = self._num_stopped + 1 if is_stopped(pid) else 0
        if self._num_stopped >= STOPPED_BEATS:
            return "it is stopped, as by SIGSTOP"
        # One that is being started, or is never asked, has not answered yet.
        self._num_silent += self._has_answered
        return "it does not answer" if self._num_silent > SILENT_BEATS else ""


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped by a signal; one that a debugger holds is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False
