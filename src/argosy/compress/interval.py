"""In which interval a loss lies, as rows are a sample."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_interval"]

_Z: Final = 1.959964
"""Of the normal distribution, for 95 %."""
_NUM_DRAWS: Final = 1000
_MAX_NUMBERS: Final = 20_000_000
"""Of rows times draws; more rows are drawn less often."""
_HELD_NUMBERS: Final = 1_000_000
"""Of these, at once."""
_LEAST_ROWS: Final = 2


def find_interval(losses: NDArray[Any], *, is_rate: bool) -> tuple[float, float] | None:
    """Give the 95 % confidence interval of the mean of what rows lost.

    Of rates by Agresti and Min (2005, doi:10.1002/sim.1783), who add half a row to each of the four ways in which two answers can
    be right or wrong, so that no difference in few rows is not called certainty. Of other losses by the bootstrap: rows are drawn
    anew with replacement.

    Args:
        losses: of each row; after - before paired, so that what both get wrong does not count as noise.
        is_rate: rows are right or wrong.

    Returns:
        Lower and upper bound; None of a single row, and of losses that are no numbers.
    """
    count = len(losses)
    if count < _LEAST_ROWS or not np.isfinite(losses).all():
        return None
    if is_rate:
        total, mean = count + 2, float(losses.sum()) / (count + 2)
        spread = math.sqrt(max(0.0, (float(np.square(losses).sum()) + 1.0) / total - mean * mean) / total)
        return mean - _Z * spread, mean + _Z * spread
    random = np.random.default_rng(0)
    num_draws, at_once = max(100, min(_NUM_DRAWS, _MAX_NUMBERS // count)), max(1, _HELD_NUMBERS // count)
    sizes = [min(at_once, num_draws - start) for start in range(0, num_draws, at_once)]
    means = [losses[random.integers(0, count, (size, count))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975)).tolist()
    return float(low), float(high)
