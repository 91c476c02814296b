"""Requests that wait, in lines by priority, form, shape and length; and the choice of those that run together.

The oldest request always runs next, so that nobody starves. It is joined by those whose padding costs less than joining saves,
nearest in length first. An urgent request counts as older than it is, one of low priority as younger.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Final, NamedTuple

from argosy.serve.dispatch.call import Call
from argosy.serve.wire.frames import FORM_TENSORS
from argosy.signature import Signature

__all__ = ["PLAIN", "Choice", "Key", "Lines", "find_level"]

DEFAULT_LEVEL: Final = 2
_MAX_LEVEL: Final = 8

Shapes = tuple[tuple[int, ...], ...]


class Key(NamedTuple):
    """What the requests of one line have in common."""

    level: int
    form: int
    shapes: Shapes
    """Of a row, input by input, without the ragged axis; empty where the signature leaves nothing open."""
    length: int
    """Along the ragged axis; of text, its bytes; 0 where the signature is not ragged."""


PLAIN: Final = Key(DEFAULT_LEVEL, FORM_TENSORS, (), 0)


class Choice(NamedTuple):
    """Requests that may run together, the oldest first."""

    calls: list[Call]
    num_rows: int
    length: int
    """Of the longest."""
    cause: str
    """What kept more from being taken: `rows`, `bytes`, or nothing."""


def find_level(priority: int) -> int:
    """Rank of a request's priority: 1 is urgent, 0 (the default) stands for 2, what is greater than 8 for 8."""
    return min(priority, _MAX_LEVEL) if priority else DEFAULT_LEVEL


class Lines(dict[Key, deque[Call]]):
    """The lines of one version; each in the order of arrival.

    Args:
        signature: of the version.

    Attributes:
        is_open: the signature leaves a dimension of a row open, so that no line is empty for long: it is made and dropped.
        can_pad: warm-up showed that a row answers the same whatever it is padded to.
        level_s: how much older one step of priority makes a request.
    """

    def __init__(self, signature: Signature) -> None:
        self._inputs = signature.inputs
        self._raw_inputs = signature.raw_inputs
        ragged = signature.ragged
        self._axes = {name: item.axis for name, item in ragged.inputs.items()} if ragged else {}
        self._measured = (
            next((i, self._axes[s.name]) for i, s in enumerate(signature.inputs) if s.name in self._axes) if ragged else None
        )
        self._cuts_raw = bool(ragged and ragged.outputs)
        self.is_open = any(-1 in spec.shape[1:] for spec in signature.inputs)
        self.can_pad = False
        self.level_s = 0.0
        super().__init__({} if self.is_open else {PLAIN: deque()})

    def put(self, call: Call) -> None:
        """Add a request to its line."""
        key = self.find_key(call)
        line = self.get(key)
        if line is None:
            line = self[key] = deque()
        line.append(call)

    def find_key(self, call: Call) -> Key:
        """The line of a request."""
        if not self.is_open and not call.form:
            return PLAIN._replace(level=find_level(call.priority))
        return Key(find_level(call.priority), call.form, self._find_shapes(call), self.find_length(call))

    def find_length(self, call: Call) -> int:
        """Length of a request's rows along the ragged axis; of text, the bytes of its longest element."""
        if self._measured is None:
            return 0
        if not call.form:
            place, axis = self._measured
            return call.inputs[place].shape[axis]
        return max((len(item) for item in call.inputs[0].ravel().tolist()), default=0)

    def _find_shapes(self, call: Call) -> Shapes:
        if call.form or not self._axes:
            return tuple([array.shape[1:] for array in call.inputs])
        shapes: list[tuple[int, ...]] = []
        for spec, array in zip(self._inputs, call.inputs, strict=True):
            axis = self._axes.get(spec.name)
            shape = array.shape
            shapes.append(shape[1:] if axis is None else (*shape[1:axis], *shape[axis + 1 :]))
        return tuple(shapes)

    def joins_lengths(self, form: int) -> bool:
        """Say whether requests of this form and of different lengths may run together."""
        return self.can_pad and not (form and self._cuts_raw)

    def can_join(self, form: int) -> bool:
        """Say whether requests of this form may run together at all, given that rows may.

        The worker pads the rows that it makes of text or pictures, to a length that is not known here.
        """
        return not form or not self.is_open or self.joins_lengths(form)

    def rank(self, call: Call) -> float:
        """When a request arrived, moved by its priority."""
        return call.started_s + (find_level(call.priority) - DEFAULT_LEVEL) * self.level_s

    def find_oldest(self) -> Key:
        """The line whose first request is the oldest; one of them must hold a request."""
        return min((key for key, line in self.items() if line), key=lambda key: self.rank(self[key][0]))

    def count_before(self, priority: int) -> int:
        """Rows that wait and are at least as urgent."""
        level = find_level(priority)
        return sum(call.num_rows for key, line in self.items() if key.level <= level for call in line)

    def choose(self, head: Key, limit: int, slack: float, max_bytes: int) -> Choice:
        """Take the oldest request and those that join it out of their lines.

        Args:
            head: its line.
            limit: the most rows; the first request may have more.
            slack: places of padding that one more request may cost.
            max_bytes: of the padded tensors.
        """
        mates = [key for key in self if key.form == head.form and key.shapes == head.shapes and self[key]]
        lengths = sorted({key.length for key in mates}) if self.joins_lengths(head.form) else [head.length]
        place = lengths.index(head.length)
        lower = self._walk(mates, lengths[place::-1])
        higher = self._walk(mates, lengths[place + 1 :])
        longest, first = next(lower)
        calls, rows, cause = [first], first.num_rows, ""
        place_bytes = sum([array.nbytes for array in first.inputs]) / (rows * max(1, longest))
        low, high = next(lower, None), next(higher, None)
        while low is not None or high is not None:
            low_cost = (longest - low[0]) * low[1].num_rows if low is not None else math.inf
            high_cost = (high[0] - longest) * rows if high is not None else math.inf
            if min(low_cost, high_cost) > slack:
                break
            taken = low if low_cost <= high_cost else high
            assert taken is not None
            length, call = max(longest, taken[0]), taken[1]
            if rows + call.num_rows > limit or (rows + call.num_rows) * max(1, length) * place_bytes > max_bytes:
                cause = "rows" if rows + call.num_rows > limit else "bytes"
                break
            calls.append(call)
            rows, longest = rows + call.num_rows, length
            if taken is low:
                low = next(lower, None)
            else:
                high = next(higher, None)
        self._remove(mates, calls)
        return Choice(calls, rows, longest, cause)

    def _walk(self, mates: list[Key], lengths: list[int]) -> Iterator[tuple[int, Call]]:
        """The requests of these lengths, length by length, the oldest of each first."""
        for length in lengths:
            lines = [self[key] for key in mates if key.length == length]
            for call in merge(*lines, key=self.rank) if len(lines) > 1 else lines[0]:
                yield length, call

    def _remove(self, mates: list[Key], calls: list[Call]) -> None:
        """Take chosen requests out of their lines, of which they are the first."""
        taken = {id(call) for call in calls}
        for key in mates:
            line = self[key]
            while line and id(line[0]) in taken:
                line.popleft()
            if not line:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        """Forget an empty line; clients choose how many there are."""
        if key != PLAIN or self.is_open:
            del self[key]

    def filter(self, is_late: Callable[[Call], bool]) -> None:
        """Drop the requests of which `is_late` says so."""
        for key, line in list(self.items()):
            kept = deque(call for call in line if not is_late(call))
            if len(kept) < len(line):
                line.clear()
                line.extend(kept)
            if not line:
                self._drop(key)

    def take_all(self) -> list[Call]:
        """Take every request out."""
        calls = [call for line in self.values() for call in line]
        for key, line in list(self.items()):
            line.clear()
            self._drop(key)
        return calls
