"""Medians and paired ratios of what was measured side by side, and whether a limit holds.

A ratio is taken within each round, so that a change of the machine's speed meets both sides; its interval comes from
order statistics (no assumption on the distribution). A limit is missed only if the interval lies wholly beyond it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Cores of other work from which a window is dirty: at 0.25 of 2 cores, figures moved by 20 to 60 % here.
DIRTY_CORES = 0.25
WANTED_COVERAGE = 0.95
# Fewer clean pairs than these give no interval of that coverage: then all pairs are taken, and the table says so.
MIN_PAIRS = 6
# Of these figures more is better; of all others less.
MORE_IS_BETTER = ("rps",)

Window = Mapping[str, float]
Windows = Mapping[tuple[str, int], Sequence[Window]]


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, with its interval.

    Attributes:
        median: of the ratios within the rounds.
        low: lower end of the interval.
        high: upper end.
        coverage: probability that the interval holds the true median.
        pairs: what it was computed from.
    """

    median: float
    low: float
    high: float
    coverage: float
    pairs: str

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Limit:
    """What is asked of a ratio.

    Attributes:
        figure: `rps`, `cpu_us`, `p50_ms` or `p99_ms`.
        connections: of the windows that are compared.
        subject: the entrant whose figure is divided.
        against: the entrants by which it is divided: by the best of those that ran.
        at_least: the ratio must not be smaller.
        at_most: the ratio must not be larger.
    """

    figure: str
    connections: int
    subject: str
    against: tuple[str, ...]
    at_least: float = 0.0
    at_most: float = math.inf


def find_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The narrowest symmetric pair of order statistics that covers the median often enough, and how often it does."""
    ordered, count = sorted(values), len(values)
    rank, coverage = 0, 0.0
    for cut in range((count + 1) // 2):
        outside = 2 * sum(math.comb(count, index) for index in range(cut + 1)) / 2**count
        if cut == 0 or 1 - outside >= WANTED_COVERAGE:
            rank, coverage = cut, max(0.0, 1 - outside)
    return ordered[rank], ordered[count - 1 - rank], coverage


def is_dirty(window: Window) -> bool:
    return window["other_cores"] > DIRTY_CORES


def compare(subject: Sequence[Window], other: Sequence[Window], figure: str) -> Ratio:
    """The ratio of a figure, from the pairs of windows without other work where there are enough of them."""
    pairs = list(zip(subject, other, strict=True))
    clean = [pair for pair in pairs if not any(map(is_dirty, pair))]
    taken, label = (clean, f"{len(clean)} clean") if len(clean) >= MIN_PAIRS else (pairs, f"{len(pairs)}, {len(clean)} clean")
    # A server that answered nothing in a window is infinitely slow there.
    ratios = [first[figure] / second[figure] if second[figure] else math.inf for first, second in taken]
    return Ratio(statistics.median(ratios), *find_interval(ratios), label)


def median_of(windows: Sequence[Window], figure: str) -> float:
    return statistics.median(window[figure] for window in windows)


def find_best(windows: Windows, names: Sequence[str], connections: int, figure: str) -> str | None:
    """The entrant with the best median of a figure; None where none of them ran."""
    ran = [name for name in names if (name, connections) in windows]
    sign = -1 if figure in MORE_IS_BETTER else 1
    return min(ran, key=lambda name: sign * median_of(windows[name, connections], figure), default=None)


def judge(at_least: float, at_most: float, ratio: Ratio) -> str:
    """`met` or `missed` where the whole interval says so, else `undecided`; of too few rounds nothing is said."""
    if ratio.coverage < WANTED_COVERAGE:
        return "too few rounds"
    if at_least <= ratio.low and ratio.high <= at_most:
        return "met"
    return "missed" if ratio.high < at_least or ratio.low > at_most else "undecided"
