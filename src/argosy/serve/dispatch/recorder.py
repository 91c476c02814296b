"""When requests arrive at a front and what they are like, kept for a moment for whoever records a trace.

Nothing of what a request says is kept: its time, rows and length alone.
"""

from __future__ import annotations

import time
from array import array
from typing import Any, Final

from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.call import Call, Clock

__all__ = ["MAX_ARRIVALS", "Recorder", "unpack_arrivals"]

MAX_ARRIVALS: Final = 200_000
"""Of one recording, between two times that it is asked for; what comes beyond is counted."""
KEEP_S: Final = 20.0
"""A recording that nobody asks for any more ends; a control process that starts anew takes less."""
_FIELDS: Final = 3

Message = dict[str, Any]


class _Tape:
    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = array("d")
        self.num_missed = 0
        self.asked_s = 0.0


class Recorder:
    """The recordings of a front.

    Args:
        admit: the gate that every request passes; it is watched while there is a recording.
        clock: tells when a recording was last asked for.
    """

    def __init__(self, admit: Admit, clock: Clock = time.monotonic) -> None:
        self._admit = admit
        self._now = clock
        self._tapes: dict[str, _Tape] = {}

    def take(self, recording: str, name: str) -> Message:
        """Give what has arrived for a deployment since a recording was last asked for; the first time it begins.

        Args:
            recording: whatever its maker calls it.
            name: of the deployment.
        """
        tape = self._tapes.setdefault(recording, _Tape(name))
        self._admit.watch = self._note
        numbers, num_missed = tape.numbers, tape.num_missed
        tape.numbers, tape.num_missed, tape.asked_s = array("d"), 0, self._now()
        return {"arrivals": numbers.tobytes(), "num_missed": num_missed}

    def expire(self, now: float) -> None:
        """End the recordings that nobody asks for any more."""
        if self._tapes:
            self._tapes = {key: tape for key, tape in self._tapes.items() if now - tape.asked_s < KEEP_S}
            self._admit.watch = self._note if self._tapes else None

    def _note(self, call: Call) -> None:
        for tape in self._tapes.values():
            if tape.name != call.lane.name:
                continue
            if len(tape.numbers) < _FIELDS * MAX_ARRIVALS:
                tape.numbers.extend((call.started_s, call.num_rows, _find_length(call)))
            else:
                tape.num_missed += 1


def unpack_arrivals(data: bytes) -> list[tuple[float, int, int | None]]:
    """Read what `Recorder.take` gives: the moment, rows and length of each request, the latter None where there is none."""
    numbers = array("d", data)
    times, rows, lengths = (numbers[start::_FIELDS] for start in range(_FIELDS))
    return [(at_s, int(count), int(length) or None) for at_s, count, length in zip(times, rows, lengths, strict=True)]


def _find_length(call: Call) -> int:
    """Of the axis whose length requests choose; 0 where there is none, or where the worker makes tensors of text or pictures."""
    if call.form or (place := call.lane.free_axis) is None:
        return 0
    index, axis = place
    return call.inputs[index].shape[axis]
