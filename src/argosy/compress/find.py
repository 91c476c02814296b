"""Find the recipe that serves an objective best within the guard: try what suits the model, and refine what comes near."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from argosy.bench.artifact import Artifact
from argosy.compress.catalogue import list_recipes
from argosy.compress.jury import Jury
from argosy.compress.layers import can_refine, measure_sensitivity, refine
from argosy.compress.measure import OBJECTIVES, Cost
from argosy.compress.recipe import Recipe, run_recipe
from argosy.compress.result import Tried
from argosy.compress.served import serve_finalists
from argosy.compress.steps.base import Workshop
from argosy.errors import ConflictError, FaultError, InputError

__all__ = ["Budget", "find"]

_QUICK_S: Final = 0.3
"""For timing a candidate at each batch size, when all are looked at."""
_CAREFUL_S: Final = 1.5
"""For those that are left."""
_NUM_FINALISTS: Final = 3
_NUM_REFINED: Final = 2
"""Recipes that lose too much, and of which sensitive layers are left out."""
_ALIKE: Final = 0.03
"""Part by which two candidates may differ in the objective, and count as equally good."""
_LEAST_GAIN: Final = 0.03
"""Part of the objective by which a candidate must be better than the original."""


@dataclass(frozen=True)
class Budget:
    """Of a search."""

    max_s: float = 600.0
    """Seconds after which no new candidate is begun."""

    def __post_init__(self) -> None:
        if not self.max_s > 0.0:
            raise InputError("bad_option", option="budget.max_s", got=self.max_s, expected="more than 0 seconds")


def find(
    jury: Jury, workshop: Workshop, objective: str, budget: Budget, *, say: Callable[[str], None]
) -> tuple[Artifact, Tried, tuple[Tried, ...]]:
    """Find the best recipe.

    Args:
        jury: judges candidates.
        workshop: makes them.
        objective: a name of `OBJECTIVES`.
        budget: how long it may take.
        say: is told what happens.

    Returns:
        The best artifact, how it was judged, and all that was tried.

    Raises:
        ConflictError: `nothing_found`; says how near each came.
    """
    deadline = time.monotonic() + budget.max_s
    value = OBJECTIVES[objective]
    tried: list[Tried] = []
    made: dict[int, Artifact] = {}
    for recipe in list_recipes(jury.parent, workshop):
        if time.monotonic() > deadline:
            say(f"{budget.max_s:g} s are over: the rest is not tried")
            break
        one, artifact = try_recipe(recipe, jury, workshop, budget_s=_QUICK_S)
        if artifact is not None:
            made[len(tried)] = artifact
        tried.append(one)
        say(_describe(one, value))
    for place in _choose_to_refine(tried, value):
        for one, artifact in _refine(tried[place].recipe, jury, workshop, deadline, say):
            if artifact is not None:
                made[len(tried)] = artifact
            tried.append(one)
            say(_describe(one, value))
    order = sorted((place for place in made if not tried[place].problem), key=lambda place: _ratio(tried[place], value))
    finalists = order[:_NUM_FINALISTS]
    for place in finalists:
        tried[place] = _measure_again(tried[place], made[place], jury)
        say(f"once more: {_describe(tried[place], value)}")
    serve_finalists(jury.stage, tried, made, finalists, objective, say)
    best = _choose([place for place in finalists if not tried[place].problem], tried, value)
    if best is None:
        raise ConflictError("nothing_found", objective=objective, tried=_tell_all(tried, value), max_loss=jury.guard.max_loss)
    return made[best], tried[best], tuple(tried)


def _choose(finalists: list[int], tried: list[Tried], value: Callable[[Cost], float]) -> int | None:
    """Choose the best; of those that are as good but for the noise of measuring, the one that loses least, then the smallest."""
    ratios = {place: _ratio(tried[place], value) for place in finalists}
    least = min(ratios.values(), default=1.0)
    if least > 1.0 - _LEAST_GAIN:
        return None
    alike = [place for place in finalists if ratios[place] <= min(least * (1.0 + _ALIKE), 1.0 - _LEAST_GAIN)]

    def rank(place: int) -> tuple[float, int]:
        score, after = tried[place].score, tried[place].after
        assert score is not None and after is not None
        return max(0.0, score.loss), after.size_bytes

    return min(alike, key=rank)


def _choose_to_refine(tried: list[Tried], value: Callable[[Cost], float]) -> list[int]:
    """Those that lose too much, and would be better than the best that does not; the most promising first."""
    kept = [_ratio(one, value) for one in tried if not one.problem]
    best = min([1.0, *kept])
    rest = [place for place, one in enumerate(tried) if one.problem and one.score is not None and can_refine(one.recipe)]
    hopeful = [place for place in rest if _ratio(tried[place], value) < best * (1.0 - _LEAST_GAIN)]
    return sorted(hopeful, key=lambda place: _ratio(tried[place], value))[:_NUM_REFINED]


def _refine(
    recipe: Recipe, jury: Jury, workshop: Workshop, deadline: float, say: Callable[[str], None]
) -> list[tuple[Tried, Artifact | None]]:
    """Leave out the layers that suffer most."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        return []
    try:
        ranked = measure_sensitivity(recipe, jury, workshop, time.monotonic() + remaining_s / 2, say)
    except (InputError, FaultError) as error:
        say(f"{Tried(recipe).title} cannot be refined: {error.message}")
        return []
    jury.sensitivity = jury.sensitivity or tuple(ranked)
    return refine(recipe, ranked, lambda other: try_recipe(other, jury, workshop, budget_s=_QUICK_S), deadline)


def try_recipe(recipe: Recipe, jury: Jury, workshop: Workshop, *, budget_s: float) -> tuple[Tried, Artifact | None]:
    """Make and judge what a recipe makes; whatever goes wrong with it is told in `problem`."""
    started = time.monotonic()
    try:
        artifact = run_recipe(recipe, jury.parent, workshop)
        found = jury.judge(artifact, Tried(recipe).title, budget_s=budget_s)
    except (InputError, FaultError) as error:
        return Tried(recipe, problem=error.message, seconds=time.monotonic() - started), None
    score, problem = found.score, jury.guard.find_problem(found.score)
    seconds = time.monotonic() - started
    return Tried(recipe, score, found.before, found.after, problem, seconds, found.examples), artifact


def _measure_again(one: Tried, artifact: Artifact, jury: Jury) -> Tried:
    try:
        found = jury.judge(artifact, one.title, budget_s=_CAREFUL_S)
    except FaultError as error:
        return replace(one, problem=error.message)
    return replace(one, score=found.score, before=found.before, after=found.after)


def _ratio(one: Tried, value: Callable[[Cost], float]) -> float:
    """Of the objective to that of the original, measured in turn with it."""
    assert one.before is not None and one.after is not None
    return value(one.after) / value(one.before)


def _describe(one: Tried, value: Callable[[Cost], float]) -> str:
    if one.score is None:
        return f"{one.title}: {one.problem}"
    found = f"{one.score.metric} {one.score.after:.4f} (loses {one.score.loss:.4g}), {_ratio(one, value):.2f} of the original"
    why = f"; {one.score.ruin}" if one.score.ruin else ", too much" if one.problem else ""
    return f"{one.title}: {found}{why}"


def _tell_all(tried: list[Tried], value: Callable[[Cost], float]) -> str:
    return "; ".join(_describe(one, value) for one in tried)
