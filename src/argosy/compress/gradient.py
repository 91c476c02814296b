"""The method `gradient`: every recipe as it is, then those layers in float that suffer, as cheaply as the guard takes.

How far the answers move if one group of layers is compressed alone is its score, and a linear programme says which groups to
compress so that scores add up to at most a budget. What is measured of such a point says which way to go on with the budget.

Source: the search of formats in NVIDIA's Model-Optimizer (`auto_quantize`), with what is measured in place of an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from argosy.compress.space import COMPRESSED, FLOAT, RECIPE, RecipeSpace, can_refine
from argosy.errors import FaultError, InputError
from argosy.search import Choice, Record, Score, Space
from argosy.search.linear import LinearPlan
from argosy.search.space import Value

__all__ = ["GradientPlan"]

_NUM_REFINED: Final = 2
"""Recipes that lose too much, and of which sensitive layers are left out."""
_MAX_POINTS: Final = 8
"""Tried of each of them: halving finds the budget to a part in hundreds."""
_LEAST_GAIN: Final = 0.03
"""Part of the objective by which a recipe must be better than the best one within the guard, to be refined."""
_SAVED: Final = 0.75
"""Part of a layer's cost that compressing it saves, about: of four bytes three."""
_LEAST_COST: Final = 0.01
"""Of a group, as part of all: a group that is left out for nothing is left out needlessly."""


class GradientPlan:
    """What to try next.

    Args:
        space: of recipes.
        objective: what is to be small, of the study's objectives.
        measure: gives of a recipe, by its title, how sensitive each group of layers is and what it costs, a pair for each.
        say: is told what happens.
    """

    def __init__(
        self,
        space: RecipeSpace,
        objective: str,
        measure: Callable[[str], Sequence[tuple[float, float]]],
        say: Callable[[str], None],
    ) -> None:
        self._space, self._objective, self._measure, self._say = space, objective, measure, say
        self._linear: dict[str, LinearPlan | None] = {}

    def describe(self) -> Any:
        """Give what else it depends on: what is measured, which is the model's."""
        return None

    def choose(self, records: Sequence[Record]) -> dict[str, Value] | None:
        """Give the next point, None once there is none that is worth a trial."""
        tried = [record.parameters for record in records]
        for title in self._space.recipes:
            if self._space.make_plain(title) not in tried:
                return self._space.make_plain(title)
        for title in self._list_hopeful(records):
            own = [record for record in records if record.parameters[RECIPE] == title]
            linear = self._prepare(title)
            if linear is None or len(own) > _MAX_POINTS:
                continue
            parts = [{name: record.parameters[name] for name in self._space.groups} for record in own]
            point = linear.choose([replace(record, parameters=part) for record, part in zip(own, parts, strict=True)])
            # With all of it in float nothing is compressed.
            if point is not None and COMPRESSED in point.values():
                return {RECIPE: title, **point}
        return None

    def _list_hopeful(self, records: Sequence[Record]) -> list[str]:
        """Name those that lose too much, and would be better than the best that does not; the most promising first."""
        if not self._space.groups:
            return []
        plain = [self._space.make_plain(title) for title in self._space.recipes]
        first = [record for record in records if record.state == "done" and record.parameters in plain]
        best = min([1.0, *(record.values[self._objective] for record in first if record.is_valid)])
        hopeful = [
            (record.values[self._objective], str(record.parameters[RECIPE]))
            for record in first
            if not record.is_valid and record.values[self._objective] < best * (1.0 - _LEAST_GAIN)
        ]
        return [title for _, title in sorted(hopeful) if can_refine(self._space.recipes[title])][:_NUM_REFINED]

    def _prepare(self, title: str) -> LinearPlan | None:
        """Give the linear programme over a recipe's layers; None where these cannot be looked at."""
        if title not in self._linear:
            try:
                self._linear[title] = self._make(self._measure(title))
            except (InputError, FaultError) as error:
                self._say(f"{title} cannot be refined: {error.message}")
                self._linear[title] = None
        return self._linear[title]

    def _make(self, found: Sequence[tuple[float, float]]) -> LinearPlan:
        known = [distance for distance, _ in found if math.isfinite(distance)]
        # A group that cannot even be compressed alone is never worth it.
        worst = 10.0 * sum(known) + 1.0
        total = sum(cost for _, cost in found) or 1.0
        scores: dict[str, dict[Value, Score]] = {}
        for name, (distance, cost) in zip(self._space.groups, found, strict=True):
            part = max(_LEAST_COST, cost / total)
            loss = distance if math.isfinite(distance) else worst
            scores[name] = {COMPRESSED: Score(loss, (1.0 - _SAVED) * part), FLOAT: Score(0.0, part)}
        return LinearPlan(Space(dict.fromkeys(self._space.groups, Choice((COMPRESSED, FLOAT)))), scores)
