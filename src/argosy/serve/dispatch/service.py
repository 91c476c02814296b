"""How long batches take, by rows and by length: measured at warm-up, kept current with every reply.

Times stand on a grid of 1, 2, 4 ... rows and, where lengths differ, 1, 2, 4 ... places; between its points they are
interpolated. A point that was never measured follows from two that were: a cost of the batch, and one of each place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["BATCH_S", "LATE_S", "ServiceTimes"]

BATCH_S: Final = 50e-6
"""What a batch costs beside the time in the runtime: frames, wake-ups and the copy of its rows, as measured on a small model."""

LATE_S: Final = 2.0
"""No batch that took less than this hangs, whatever was measured."""
_LATE_TIMES: Final = 20.0
_SMOOTHING: Final = 0.2
_GAIN: Final = 0.03
"""More rows pay if they raise rows/s by more than this; less is within what measurements differ by."""
_LOSS: Final = 0.1
"""Rows/s that batches may lose by being smaller, where each replica then has one ready and none waits for a large one."""
_DRIFT: Final = 0.1
_FORGET: Final = 0.98
_RISE: Final = 1.01
_SAVED: Final = 0.25
"""Of a batch's cost, what a request saves by joining: left behind, it would share the next one's with others of its length."""
_TINY_S: Final = 1e-9
_MAX_EXPONENT: Final = 40

Measured = Iterable[tuple[int, int, float]]


class ServiceTimes:
    """The times of one version's batches.

    Args:
        measured: rows, length (0 where all rows have one shape) and seconds of some batches; may be empty.
        places: what a unit of length is in `measured`, in the units of length that batches are asked for; a text of 4 bytes
            is about a token.

    Attributes:
        least_s: about the least that any batch took lately; 0 before anything is known. A request that has less time left
            cannot be answered.
    """

    __slots__ = ("_base_s", "_drift", "_place_s", "_points", "is_known", "least_s")

    def __init__(self, measured: Measured = (), places: int = 1) -> None:
        self._points: dict[tuple[int, int], float] = {}
        self._base_s = self._place_s = 0.0
        self._drift = 1.0
        self.is_known = False
        self.least_s = 0.0
        found = [(rows, length * places, seconds) for rows, length, seconds in measured if seconds > 0.0]
        if not found:
            return
        self._fit([(rows * max(1, length), seconds) for rows, length, seconds in found])
        for rows, length, seconds in found:
            self._learn(rows, length, seconds, 1.0)
        self.least_s = min(seconds for *_, seconds in found)

    def _fit(self, found: list[tuple[int, float]]) -> None:
        """Draw a line through (rows times length, seconds) of some batches, so that the relative errors are least.

        Of a single one, all is taken for the batch's cost, so that larger ones are tried.
        """
        self.is_known = True
        a = sum([1.0 / seconds**2 for _, seconds in found])
        b = sum([size / seconds**2 for size, seconds in found])
        c = sum([(size / seconds) ** 2 for size, seconds in found])
        d = sum([1.0 / seconds for _, seconds in found])
        e = sum([size / seconds for size, seconds in found])
        spread = a * c - b * b
        self._place_s = max(0.0, (a * e - b * d) / spread) if spread > _TINY_S * a * c else 0.0
        self._base_s = max(0.0, (d - b * self._place_s) / a)
        if not self._base_s:
            self._place_s = e / c

    def _point(self, key: tuple[int, int]) -> float:
        found = self._points.get(key)
        return self._drift * (self._base_s + self._place_s * (1 << (key[0] + key[1]))) if found is None else found

    def _weigh(self, rows: int, length: int) -> list[tuple[tuple[int, int], float]]:
        """The points around a batch, and how much each says of it."""
        i = min(rows.bit_length() - 1, _MAX_EXPONENT)
        right = min(1.0, rows / (1 << i) - 1.0)
        if length < 2:
            return [((i, 0), 1.0 - right), ((i + 1, 0), right)] if right else [((i, 0), 1.0)]
        j = min(length.bit_length() - 1, _MAX_EXPONENT)
        upper = min(1.0, length / (1 << j) - 1.0)
        weights = (
            ((i, j), (1.0 - right) * (1.0 - upper)),
            ((i + 1, j), right * (1.0 - upper)),
            ((i, j + 1), (1.0 - right) * upper),
            ((i + 1, j + 1), right * upper),
        )
        return [(key, weight) for key, weight in weights if weight]

    def estimate(self, rows: int, length: int = 0) -> float:
        """Seconds in the runtime of a batch; 0 while nothing is known."""
        return sum([weight * self._point(key) for key, weight in self._weigh(rows, length)])

    def late_s(self, rows: int, length: int, unknown_s: float) -> float:
        """What a batch hangs after: far longer than such a one ever takes; `unknown_s` while nothing is known."""
        return max(LATE_S, _LATE_TIMES * self.estimate(rows, length)) if self.is_known else unknown_s

    def update(self, rows: int, length: int, seconds: float) -> None:
        """Take what a batch took."""
        size = rows * length if length else rows
        if not self.is_known:
            self._fit([(size, seconds)])
            self.least_s = seconds
        least_s = self.least_s * _RISE
        self.least_s = seconds if seconds < least_s else least_s
        # What was not measured is slower or faster by as much as what is.
        if line_s := self._base_s + self._place_s * size:
            self._drift += _DRIFT * (seconds / line_s - self._drift)
        self._learn(rows, length, seconds, _SMOOTHING)

    def _learn(self, rows: int, length: int, seconds: float, share: float) -> None:
        """Move the points around a batch so that what they say comes nearer to what it took, by `share` of the difference."""
        i = rows.bit_length() - 1
        if length < 2 and rows == 1 << i <= 1 << _MAX_EXPONENT:
            before = self._point((i, 0))  # most batches of a server that has little to do: no others are around
            self._points[i, 0] = before + share * (seconds - before)
            return
        around = self._weigh(rows, length)
        error = seconds - sum([weight * self._point(key) for key, weight in around])
        step = share * error / sum([weight * weight for _, weight in around])
        for key, weight in around:
            self._points[key] = max(0.0, self._point(key) + step * weight)

    def doubt(self) -> None:
        """Lower what is known of the least time: a request was refused for it, so nothing else would ever correct it."""
        self.least_s *= _FORGET

    def pick_range(self, max_rows: int, length: int = 0) -> tuple[int, int]:
        """The least and the most rows that a batch should have: smaller ones are slow by the row, larger ones bring nothing.

        Both are one of 1, 2, 4 ... rows, or `max_rows`.
        """
        sizes = [1 << exponent for exponent in range(max_rows.bit_length()) if 1 << exponent < max_rows]
        sizes.append(max_rows)
        rates = [rows / (self.estimate(rows, length) + BATCH_S) for rows in sizes]
        best = max(rates)
        least, most = [
            next(rows for rows, rate in zip(sizes, rates, strict=True) if rate * (1.0 + part) >= best) for part in (_LOSS, _GAIN)
        ]
        return least, most

    @property
    def slack(self) -> float:
        """Places of padding that take as long as what joining saves: a part of what a batch costs beside its rows.

        It follows from what was measured at warm-up, without load: a ratio, which does not change with the machine's speed.
        """
        return _SAVED * (self._base_s + BATCH_S) / max(self._place_s, _TINY_S)

    def fit_rows(self, seconds: float, max_rows: int, length: int = 0) -> int:
        """The most rows, at most `max_rows`, whose batch takes no longer than `seconds`; 0 where one row does."""
        low, high = 0, max_rows
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimate(middle, length) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low
