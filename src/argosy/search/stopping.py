"""When a trial is not worth going on with, by what it and the others have reported on the way."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from argosy.search.record import Record

__all__ = ["Rule", "is_below_median", "is_below_third", "is_never", "is_out_of_rung"]

Rule = Callable[[int, Mapping[int, float], Sequence[Record]], str]
"""From a trial's number, its reports by step (the less the better) and the other trials to the reason to stop it, "" for none."""

_LEAST_OTHERS: Final = 4
"""Trials that must have come as far, for these to say something."""
_SPARED_STEPS: Final = 1
"""In which no trial is stopped by others' best: the first step is noise."""
_REDUCTION: Final = 3
"""Of trials that reach a rung, one in so many goes on; rungs are so many times farther apart each."""
_BRACKETS: Final = (0, 0, 1, 0, 0, 2)
"""Of trials in turn: two thirds may be stopped from the first step on, a sixth from the third, a sixth from the ninth."""


def is_never(number: int, steps: Mapping[int, float], others: Sequence[Record]) -> str:
    """Stop none: of a population the bad ones are replaced."""
    return ""


def is_below_median(number: int, steps: Mapping[int, float], others: Sequence[Record]) -> str:
    """Stop a trial whose best so far is worse than the median of what the others' best was by then.

    Source: Golovin et al. 2017, Google Vizier, section 3.2.2, with the best of each instead of its running average.
    """
    known = _list_rivals(steps, others)
    if not known or min(steps.values()) <= statistics.median(known):
        return ""
    return f"at step {max(steps)} it is worse than the median of {len(known)} others"


def is_below_third(number: int, steps: Mapping[int, float], others: Sequence[Record]) -> str:
    """Stop a trial whose best so far is not among the best third of the others' by then.

    For a method that learns: its later trials are better than the median of all that came before, nearly every one.
    """
    known = sorted(_list_rivals(steps, others))
    if not known or min(steps.values()) <= known[round(len(known) / _REDUCTION) - 1]:
        return ""
    return f"at step {max(steps)} it is not among the best third of {len(known)} others"


def _list_rivals(steps: Mapping[int, float], others: Sequence[Record]) -> list[float]:
    """Give the best of each other by the last step; nothing where it is too early to tell."""
    known = _list_best(others, max(steps)) if len(steps) > _SPARED_STEPS else []
    return known if len(known) >= _LEAST_OTHERS else []


def is_out_of_rung(number: int, steps: Mapping[int, float], others: Sequence[Record]) -> str:
    """Stop a trial at steps 1, 3, 9, ... unless it is among the best third of those that came as far.

    Brackets of trials begin at different rungs, as nobody knows how early a curve tells.

    Source: Li et al. 2018, Hyperband, JMLR 18(185), run asynchronously as in Li et al. 2020, arXiv:1810.05934.
    """
    step, before = max(steps), max((taken for taken in steps if taken < max(steps)), default=0)
    bracket = _BRACKETS[number % len(_BRACKETS)]
    rung = _REDUCTION**bracket
    while rung * _REDUCTION <= step:
        rung *= _REDUCTION
    # Reports may come every so many steps: the rung counts that was passed since the last one.
    if not before < rung <= step:
        return ""
    rivals = [other for other in others if _BRACKETS[other.number % len(_BRACKETS)] <= bracket]
    known = sorted([*_list_best(rivals, step), own := min(steps.values())])
    last = known[max(1, len(known) // _REDUCTION) - 1]
    # The first ones have nobody to be compared with.
    if len(known) < _REDUCTION or own <= last:
        return ""
    return f"at step {step} it is not among the best {max(1, len(known) // _REDUCTION)} of {len(known)}"


def _list_best(others: Sequence[Record], step: int) -> list[float]:
    """Give the best of each by a step, of those that came as far."""
    come = [other.steps for other in others if other.steps and min(other.steps) <= step <= max(other.steps)]
    return [min(value for at, value in steps.items() if at <= step) for steps in come]
