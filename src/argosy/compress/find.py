"""Find the recipe that serves an objective best within the guard: a search over what suits the model, by one of its methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from argosy.bench.artifact import Artifact
from argosy.compress.catalogue import list_recipes
from argosy.compress.gradient import GradientPlan
from argosy.compress.jury import Jury
from argosy.compress.layers import list_layers
from argosy.compress.measure import OBJECTIVES, Cost
from argosy.compress.recipe import Recipe, retrains
from argosy.compress.result import Sensitivity, Tried
from argosy.compress.served import serve_finalists
from argosy.compress.space import RecipeSpace, can_refine
from argosy.compress.steps.base import Workshop
from argosy.compress.trials import LOSS, Trials, describe_tried, find_ratio
from argosy.errors import ConflictError, FaultError, InputError, list_choices
from argosy.optim.schedules import check_count, check_number
from argosy.search import Study

__all__ = ["SEARCHES", "Budget", "Found", "Keeping", "find"]

SEARCHES: Final = ("gradient", "random", "genetic", "tpe")
"""Methods of a search over recipes, of those of `argosy.search`."""

_QUICK_S: Final = 0.3
"""For timing a candidate at each batch size, when all are looked at."""
_CAREFUL_S: Final = 1.5
"""For those that are left."""
_NUM_FINALISTS: Final = 3
_ALIKE: Final = 0.03
"""Part by which two candidates may differ in the objective, and count as equally good."""
_LEAST_GAIN: Final = 0.03
"""Part of the objective by which a candidate must be better than the original."""
_LEAST_STEP_S: Final = 60.0
_STEP_PART: Final = 0.25
"""A step may take so long, or so much of the budget."""
_MAX_ASKED: Final = 5
"""Points asked for each recipe that may be tried: many points stand for one recipe, and a small space has no more."""


@dataclass(frozen=True)
class Budget:
    """Of a search."""

    max_s: float = 600.0
    """Seconds after which no new candidate is begun."""
    trials: int = 60
    """Recipes that are tried at most. The method `gradient` ends by itself, most often before; the others never do."""

    def __post_init__(self) -> None:
        check_number("budget.max_s", self.max_s, "more than 0 seconds", lowest=0.0, is_open=True)
        check_count("budget.trials", self.trials)


class Keeping(NamedTuple):
    """Where a search is kept."""

    home: Path
    name: str
    about: Mapping[str, Any]
    """What else must be the same to go on with it; JSON data."""


class Found(NamedTuple):
    """What a search came to."""

    artifact: Artifact | None
    """The best; None if none holds the guard and is better than the original."""
    best: Tried | None
    tried: tuple[Tried, ...]
    sensitivity: tuple[Sensitivity, ...] = ()
    """Of the recipe that was looked at layer by layer first, the most sensitive group first; empty where none was."""
    explanation: str = ""
    """How near each came, in words."""
    left: str = ""
    """Why not all was tried, and how much was; empty where all was, or what was left is not worth it."""


def find(
    jury: Jury,
    workshop: Workshop,
    objective: str,
    budget: Budget,
    *,
    search: str = "gradient",
    keeping: Keeping | None = None,
    say: Callable[[str], None],
) -> Found:
    """Find the best recipe.

    Args:
        jury: judges candidates.
        workshop: makes them.
        objective: a name of `OBJECTIVES`.
        budget: how long it may take.
        search: a name of `SEARCHES`.
        keeping: where; None: in memory.
        say: is told what happens.

    Raises:
        ConflictError: `search_active`.
        InputError: `unknown_choice`, `missing_extra`, `bad_journal`.
        StoreError: `disk_full`, `write_failed`.
    """
    if search not in SEARCHES:
        raise InputError("unknown_choice", kind="search", got=search, known=list_choices(SEARCHES))
    deadline = time.monotonic() + budget.max_s
    workshop.deadline = deadline
    # One that hangs costs its recipe, and leaves time for the others.
    workshop.step_s = min(workshop.step_s, max(_LEAST_STEP_S, _STEP_PART * budget.max_s))
    value = OBJECTIVES[objective]
    recipes = list_recipes(jury.parent, workshop)
    if not recipes:
        return Found(None, None, (), (), "no method suits its file")
    space = RecipeSpace(recipes, _count_layers(recipes, jury, workshop))
    trials = Trials(space, jury, workshop, (objective, value), budget_s=_QUICK_S, deadline=deadline, say=say)
    left = _search(space, trials, objective, budget, deadline, search, keeping, jury.guard.max_loss)
    if left:
        say(left)
    tried = trials.tried
    valid = [recipe for recipe, one in tried.items() if not one.problem]
    finalists = sorted(valid, key=lambda recipe: find_ratio(tried[recipe], value))[:_NUM_FINALISTS]
    for recipe in finalists:
        tried[recipe] = _measure_again(tried[recipe], trials, jury)
        say(f"once more: {describe_tried(tried[recipe], value)}")
    outcome = list(tried.values())
    places = [place for place, one in enumerate(outcome) if one.recipe in finalists and not one.problem]
    serve_finalists(jury.stage, outcome, {place: trials.open(outcome[place].recipe) for place in places}, places, objective, say)
    best = _choose([outcome[place] for place in places if not outcome[place].problem], value)
    looked = (one for one in next(iter(trials.sensitivity.values()), ()) if one.layers)
    ranked = sorted(looked, key=lambda one: one.distance, reverse=True)
    explanation = "; ".join(describe_tried(one, value) for one in outcome) or "nothing was tried"
    artifact = None if best is None else trials.open(best.recipe)
    return Found(artifact, best, tuple(outcome), tuple(ranked), explanation, left)


def _search(
    space: RecipeSpace,
    trials: Trials,
    objective: str,
    budget: Budget,
    deadline: float,
    search: str,
    keeping: Keeping | None,
    max_loss: float,
) -> str:
    """Try recipes until there is nothing left to try, or the budget is spent; returns what was spent, and what is left."""
    plan = GradientPlan(space, objective, trials.measure_layers, trials.say) if search == "gradient" else None
    objectives = {LOSS: "minimize", objective: "minimize"}
    kept: dict[str, Any] = {} if keeping is None else keeping._asdict()
    with Study(space.space, objectives, method=search, guard={LOSS: max_loss}, plan=plan, **kept) as study:
        trials.resume(study)
        if plan is None:
            # Every method begins with what suits the model as it is.
            for title in space.recipes:
                study.enqueue(space.make_plain(title))
        while len(trials.tried) < budget.trials and len(study.trials) < _MAX_ASKED * budget.trials:
            if time.monotonic() > deadline:
                return _tell_left(f"{budget.max_s:g} s are over", space, trials)
            try:
                trial = study.ask()
            except ConflictError as error:
                if error.key != "search_over":
                    raise
                return ""
            trials.carry_out(trial)
    return _tell_left(f"the budget of {budget.trials} recipes is spent", space, trials)


def _tell_left(spent: str, space: RecipeSpace, trials: Trials) -> str:
    """Say how much was tried, if that is not all."""
    tried = trials.tried
    if len(tried) >= space.count():
        return ""
    num_plain = sum(recipe in tried for recipe in space.recipes.values())
    layers = f", and {len(tried) - num_plain} with layers in float" if len(tried) > num_plain else ""
    return f"{spent}: of {len(space.recipes)} recipes {num_plain} {'was' if num_plain == 1 else 'were'} tried{layers}"


def _count_layers(recipes: list[Recipe], jury: Jury, workshop: Workshop) -> int:
    """Count the layers of the network that recipes may leave out, by the first recipe that can tell."""
    for recipe in recipes:
        if can_refine(recipe) and time.monotonic() < workshop.deadline:
            try:
                return len(list_layers(recipe, jury.parent, workshop))
            except (InputError, FaultError):  # It is told when the recipe itself is tried.
                continue
    return 0


def _choose(finalists: list[Tried], value: Callable[[Cost], float]) -> Tried | None:
    """Choose the best; of those that are as good but for the noise of measuring, the one that loses least, then the smallest."""
    least = min((find_ratio(one, value) for one in finalists), default=1.0)
    if least > 1.0 - _LEAST_GAIN:
        return None
    alike = [one for one in finalists if find_ratio(one, value) <= min(least * (1.0 + _ALIKE), 1.0 - _LEAST_GAIN)]

    def rank(one: Tried) -> tuple[float, int]:
        assert one.score is not None and one.after is not None
        return max(0.0, one.score.loss), one.after.size_bytes

    return min(alike, key=rank)


def _measure_again(one: Tried, trials: Trials, jury: Jury) -> Tried:
    try:
        found = jury.judge(trials.open(one.recipe), one.title, budget_s=_CAREFUL_S, is_retrained=retrains(one.recipe))
    except (InputError, FaultError) as error:
        return replace(one, problem=error.message)
    problem = jury.guard.find_problem(found.score)
    return replace(one, score=found.score, before=found.before, after=found.after, problem=problem, examples=found.examples)
