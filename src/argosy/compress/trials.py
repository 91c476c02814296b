"""Trials of recipes: what a study asks for is made and judged, and kept in its journal before it goes on."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.judge import Score
from argosy.compress.jury import Jury
from argosy.compress.layers import list_layers, measure_sensitivity, weigh_layers
from argosy.compress.measure import Cost
from argosy.compress.recipe import Recipe, read_recipe, retrains, run_recipe
from argosy.compress.result import Sensitivity, Tried
from argosy.compress.space import RecipeSpace
from argosy.compress.steps.base import Workshop
from argosy.errors import FaultError, InputError
from argosy.search import Record, Study, Trial

__all__ = ["LOSS", "Trials", "describe_tried", "find_ratio", "try_recipe"]

LOSS: Final = "loss"
"""The objective that the guard bounds; the other one is a part of the original's."""
_TRIED: Final = "tried"
_SENSITIVITY: Final = "sensitivity.json"


class Trials:
    """All that was tried, by recipe.

    Args:
        space: of recipes.
        jury: judges what is made.
        workshop: makes it.
        objective: name and value of what is to be small.
        budget_s: for timing each candidate at each batch size.
        deadline: on the monotonic clock.
        say: is told what happens.
    """

    def __init__(
        self,
        space: RecipeSpace,
        jury: Jury,
        workshop: Workshop,
        objective: tuple[str, Callable[[Cost], float]],
        *,
        budget_s: float,
        deadline: float,
        say: Callable[[str], None],
    ) -> None:
        self._space, self._jury, self._workshop, self.say = space, jury, workshop, say
        self._objective, self._value = objective
        self._budget_s, self._deadline = budget_s, deadline
        self.tried: dict[Recipe, Tried] = {}
        self._made: dict[Recipe, Artifact] = {}
        self._layers: dict[str, list[str]] = {}
        self._study: Study | None = None
        self.sensitivity: dict[str, Sequence[Sensitivity]] = {}
        """Of each recipe that was looked at layer by layer, by its title; in the network's order."""

    def resume(self, study: Study) -> None:
        """Take what an earlier process has kept."""
        self._study = study
        for record in study.trials:
            if _TRIED in record.notes:
                one = _read_tried(record)
                self.tried.setdefault(one.recipe, one)
        if self.tried:
            self.say(f"{len(self.tried)} recipes were tried before this search was ended: it goes on")

    def carry_out(self, trial: Trial) -> None:
        """Make and judge what a trial asks for, and tell it; what was tried already is told again."""
        study = trial.study
        try:
            recipe = self._space.make_recipe(trial.parameters, self.list_layers)
        except (InputError, FaultError) as error:
            study.fail(trial, error.message)
            return
        is_new = recipe not in self.tried
        if is_new:
            self.tried[recipe], artifact = try_recipe(recipe, self._jury, self._workshop, budget_s=self._budget_s)
            if artifact is not None:
                self._made[recipe] = artifact
        one = self.tried[recipe]
        # As text, since a loss may be no number, which is no JSON data.
        notes = {_TRIED: json.dumps(one.describe())} if is_new else {}
        if one.score is None or not math.isfinite(one.score.loss):
            study.fail(trial, one.problem or "its loss is no number", notes=notes)
        else:
            values = {LOSS: one.score.loss, self._objective: find_ratio(one, self._value)}
            is_ruined = bool(one.problem) and one.score.loss <= self._jury.guard.max_loss
            study.tell(trial, values, constraint=float(is_ruined), notes=notes)
        if is_new:
            self.say(describe_tried(one, self._value))

    def open(self, recipe: Recipe) -> Artifact:
        """Give what a recipe makes; it is made again if an earlier process has made it.

        Raises:
            InputError, FaultError: it cannot be made again.
        """
        if recipe not in self._made:
            self._made[recipe] = run_recipe(recipe, self._jury.parent, self._workshop)
        return self._made[recipe]

    def list_layers(self, title: str) -> list[str]:
        """Name the layers that a recipe may leave out.

        Raises:
            InputError, FaultError: as its steps.
        """
        if title not in self._layers:
            self._layers[title] = list_layers(self._space.recipes[title], self._jury.parent, self._workshop)
        return self._layers[title]

    def measure_layers(self, title: str) -> list[tuple[float, float]]:
        """Give of each group of layers how far compressing it alone moves the answers, and what it costs in float.

        Raises:
            InputError, FaultError: as the recipe's steps.
        """
        layers = self.list_layers(title)
        groups = self._space.split(layers)
        known = self._read_sensitivity(title)
        if [one.layers for one in known] != groups:
            self.say(f"looking at {len(groups)} groups of layers of {title}")
            half = time.monotonic() + (self._deadline - time.monotonic()) / 2
            known = measure_sensitivity(self._space.recipes[title], groups, self._jury, self._workshop, half)
        self.sensitivity[title] = known
        self._write_sensitivity()
        weights = iter(weigh_layers(self._jury.parent, self._workshop, len(layers)))
        place = 0 if self._objective in ("size", "memory") else 1
        costs = [sum(next(weights)[place] for _ in group) for group in groups]
        return [(one.distance, cost) for one, cost in zip(known, costs, strict=True)]

    def _read_sensitivity(self, title: str) -> Sequence[Sensitivity]:
        if self._study is None or self._study.folder is None:
            return []
        try:
            kept: Any = json.loads((self._study.folder / _SENSITIVITY).read_text())
            return [Sensitivity(tuple(layers), float(distance)) for layers, distance in kept[title]]
        except (OSError, ValueError, KeyError, TypeError):  # Not there, or cut off when its process was killed: looked at again.
            return []

    def _write_sensitivity(self) -> None:
        if self._study is not None and self._study.folder is not None:
            found = {title: [(one.layers, one.distance) for one in groups] for title, groups in self.sensitivity.items()}
            # What a full disk does not take is measured again.
            with contextlib.suppress(OSError):
                (self._study.folder / _SENSITIVITY).write_text(json.dumps(found))


def try_recipe(recipe: Recipe, jury: Jury, workshop: Workshop, *, budget_s: float) -> tuple[Tried, Artifact | None]:
    """Make and judge what a recipe makes; whatever goes wrong with it is told in `problem`."""
    started = time.monotonic()
    try:
        artifact = run_recipe(recipe, jury.parent, workshop)
        found = jury.judge(artifact, Tried(recipe).title, budget_s=budget_s, is_retrained=retrains(recipe))
    except (InputError, FaultError) as error:
        return Tried(recipe, problem=error.message, seconds=time.monotonic() - started), None
    score, problem = found.score, jury.guard.find_problem(found.score)
    seconds = time.monotonic() - started
    return Tried(recipe, score, found.before, found.after, problem, seconds, found.examples), artifact


def find_ratio(one: Tried, value: Callable[[Cost], float]) -> float:
    """Give the objective as part of the original's, which was measured in turn with it."""
    assert one.before is not None and one.after is not None
    return value(one.after) / value(one.before)


def describe_tried(one: Tried, value: Callable[[Cost], float]) -> str:
    """Say in one line what became of a recipe."""
    if one.score is None:
        return f"{one.title}: {one.problem}"
    found = f"{one.score.metric} {one.score.after:.4f} (loses {one.score.loss:.4g}), {find_ratio(one, value):.2f} of the original"
    why = f"; {one.score.ruin}" if one.score.ruin else ", too much" if one.problem else ""
    return f"{one.title}: {found}{why}"


def _read_tried(record: Record) -> Tried:
    """Give what was kept of a trial; the answers that moved most are not, they are found again of what is chosen."""
    kept: dict[str, Any] = json.loads(record.notes[_TRIED])
    score = None if kept["score"] is None else msgspec.convert(kept["score"], Score)
    before, after = (None if kept[key] is None else msgspec.convert(kept[key], Cost) for key in ("before", "after"))
    return Tried(read_recipe(kept["recipe"]), score, before, after, kept["problem"], kept["seconds"])
