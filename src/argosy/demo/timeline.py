"""What the clients saw over time: answers a second, p99, and which version answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from argosy.demo.crowd import Seen

__all__ = ["WINDOW_S", "Band", "Phase", "Timeline", "Window", "measure_timeline"]

WINDOW_S: Final = 0.5
_FINE_S: Final = 0.05
"""How finely bands are told apart."""


@dataclass(frozen=True)
class Phase:
    """A stretch of time, on `time.monotonic()`."""

    name: str
    start_s: float
    end_s: float
    is_change: bool = False
    """The version is being changed."""


@dataclass(frozen=True)
class Window:
    """What was answered in half a second."""

    start_s: float
    """Since the timeline's start, as all times here."""
    rates: dict[int, float]
    """Answers a second, by the version that gave them."""
    p99_ms: float
    """NaN where nothing was answered."""


@dataclass(frozen=True)
class Band:
    """A stretch in which one version gave most answers."""

    version: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """The run from the first phase's start to the last one's end."""

    span_s: float
    windows: tuple[Window, ...]
    bands: tuple[Band, ...]
    changes: tuple[Phase, ...]
    num_requests: int
    num_failed: int
    num_wrong: int


def measure_timeline(seen: Seen, phases: Sequence[Phase]) -> Timeline:
    """Put what the clients saw in order.

    Args:
        seen: every request.
        phases: at least one, in order.

    Returns:
        Windows of half a second by the time of the answer (what is left at the end and shorter belongs to none),
        and the versions that answered.
    """
    start_s = phases[0].start_s
    span_s = phases[-1].end_s - start_s
    done = seen.column("sent_s") + seen.column("latency_s") - start_s
    latency, version = seen.column("latency_s"), seen.column("version").astype(int)
    is_answered = seen.column("is_failed") == 0
    windows: list[Window] = []
    for index in range(int(span_s / WINDOW_S)):
        left = index * WINDOW_S
        inside = is_answered & (done >= left) & (done < left + WINDOW_S)
        numbers, counts = np.unique(version[inside], return_counts=True)
        rates = {int(number): int(count) / WINDOW_S for number, count in zip(numbers, counts, strict=True)}
        p99_ms = float(np.quantile(latency[inside], 0.99)) * 1e3 if inside.any() else float("nan")
        windows.append(Window(left, rates, p99_ms))
    changes = tuple(
        Phase(phase.name, phase.start_s - start_s, phase.end_s - start_s, is_change=True) for phase in phases if phase.is_change
    )
    bands = _find_bands(done[is_answered], version[is_answered], span_s)
    return Timeline(span_s, tuple(windows), bands, changes, len(seen.rows), seen.num_failed, seen.num_wrong)


def _find_bands(done: np.ndarray, version: np.ndarray, span_s: float) -> tuple[Band, ...]:
    """Merge the moments in which the same version gave most answers; a moment without any belongs to the version before."""
    bands: list[Band] = []
    for index in range(max(1, round(span_s / _FINE_S))):
        left = index * _FINE_S
        numbers, counts = np.unique(version[(done >= left) & (done < left + _FINE_S)], return_counts=True)
        if not len(numbers):
            continue
        number = int(numbers[counts.argmax()])
        if not bands or bands[-1].version != number:
            if bands:
                bands[-1] = Band(bands[-1].version, bands[-1].start_s, left)
            bands.append(Band(number, left if bands else 0.0, span_s))
    return tuple(bands)
