"""Choices by a linear programme: each option of each parameter has a score, and a budget says how much may be lost in all.

The sum of the options' losses stands for the loss of the whole, which it only resembles: so budgets are tried, and what was
measured says which way to go on. Nothing is random, and few trials are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import import_extra
from argosy.search.record import Record
from argosy.search.space import Space, Value

__all__ = ["LinearPlan", "Score", "Scores"]

_FINEST: Final = 1e-4
"""Part of the range of budgets below which two are not told apart."""


class Score(NamedTuple):
    """What an option is expected to do."""

    loss: float
    """That it adds to what the guard bounds: a sensitivity, such as a gradient times a change of the weights, or a divergence."""
    cost: float
    """That it adds to what is to be small."""


Scores = Mapping[str, Mapping[Value, Score]]
"""By parameter and option."""


class LinearPlan:
    """What to try next, from scores and from what was told.

    Args:
        space: of parameters whose values can be listed.
        scores: for each of their values.

    Raises:
        InputError: `method_unfit`, a score is missing or no finite number; `missing_extra`.
    """

    def __init__(self, space: Space, scores: Scores | None) -> None:
        self._optimize = import_extra("scipy.optimize", feature="The method gradient", extra="search")
        if scores is None:
            raise _fail("it needs a score of each option, which only who gives the space can tell: `scores`")
        self._options: list[tuple[str, Value]] = []
        self._groups: list[range] = []
        table: list[Score] = []
        for name, parameter in space.items():
            if parameter.values is None:
                raise _fail(f"the values of `{name}` cannot be listed")
            known = scores.get(name, {})
            for value in parameter.values:
                if value not in known:
                    raise _fail(f"`{name}` = {value!r} has no score")
                table.append(_check_score(name, value, known[value]))
                self._options.append((name, value))
            self._groups.append(range(len(table) - len(parameter.values), len(table)))
        self._solved: dict[float, dict[str, Value]] = {}
        self._losses = np.array([score.loss for score in table])
        self._costs = np.array([score.cost for score in table])
        self.lowest = float(sum(self._losses[list(group)].min() for group in self._groups))
        self.highest = float(sum(self._losses[list(group)].max() for group in self._groups))

    def describe(self) -> list[list[Any]]:
        """Give the scores as JSON data."""
        scores = zip(self._options, self._losses.tolist(), self._costs.tolist(), strict=True)
        return [[name, value, loss, cost] for (name, value), loss, cost in scores]

    def solve(self, budget: float) -> dict[str, Value]:
        """Give the point that costs least, of those whose losses add up to at most a budget."""
        if budget not in self._solved:
            self._solved[budget] = self._solve(budget)
        return self._solved[budget]

    def _solve(self, budget: float) -> dict[str, Value]:
        rows = np.zeros((len(self._groups), len(self._options)))
        for row, group in zip(rows, self._groups, strict=True):
            row[list(group)] = 1.0
        # Rounding of the sum must not exclude the point that the lowest budget is made of.
        slack = 1e-9 * max(1.0, abs(self.lowest), abs(self.highest))
        # Of points that cost the same, the one that loses least.
        scale = 1e-9 * float(np.ptp(self._costs) or 1.0) / float(np.ptp(self._losses) or 1.0)
        found: Any = self._optimize.milp(
            self._costs + scale * self._losses,
            integrality=np.ones(len(self._options)),
            bounds=self._optimize.Bounds(0, 1),
            constraints=[
                self._optimize.LinearConstraint(rows, 1, 1),
                self._optimize.LinearConstraint(self._losses[None], -np.inf, budget + slack),
            ],
        )
        if found.x is None:
            raise _fail(f"the linear programme has no solution: {found.message}")
        chosen = [option for option, part in zip(self._options, found.x, strict=True) if part > 0.5]
        return dict(chosen)

    def choose(self, records: Sequence[Record]) -> dict[str, Value] | None:
        """Give the next point: where the guard is held at one budget and broken at another, between the two.

        Returns:
            None once no budget gives a point that was not tried.
        """
        tried = [record.parameters for record in records]
        first = self.solve(self.highest)
        if first not in tried:
            return first
        losses = [self._sum_losses(point) for point in tried]
        done = [(loss, record) for loss, record in zip(losses, records, strict=True) if record.state == "done"]
        broken = [loss for loss, record in done if record.violation > 0.0]
        last = self.solve(self.lowest)
        if not broken:  # All budgets are of interest, for the front.
            return last if last not in tried else self._choose_between({self.lowest, self.highest, *losses}, tried)
        high = min(broken)
        low = max((loss for loss, record in done if record.violation <= 0.0 and loss < high), default=self.lowest)
        between = self._choose_between({low, high, *(loss for loss in losses if low < loss < high)}, tried)
        return between if between is not None or last in tried else last

    def _choose_between(self, marks: set[float], tried: Sequence[dict[str, Value]]) -> dict[str, Value] | None:
        """Halve the widest gap between budgets until that gives another point."""
        ordered, finest = sorted(marks), _FINEST * (self.highest - self.lowest)
        gaps = [(low, high) for low, high in itertools.pairwise(ordered) if high - low > finest]
        while gaps:
            low, high = max(gaps, key=lambda gap: gap[1] - gap[0])
            gaps.remove((low, high))
            middle = low + (high - low) / 2
            point = self.solve(middle)
            if point not in tried:
                return point
            # From what it loses to the middle, every budget gives this point.
            found = self._sum_losses(point)
            gaps += [gap for gap in ((low, min(found, middle)), (middle, high)) if gap[1] - gap[0] > finest]
        return None

    def _sum_losses(self, point: Mapping[str, Value]) -> float:
        losses = {option: float(loss) for option, loss in zip(self._options, self._losses, strict=True)}
        return sum(losses[name, value] for name, value in point.items())


def _check_score(name: str, value: Value, given: object) -> Score:
    try:
        score = Score(*map(float, cast("Any", given)))
    except (TypeError, ValueError):
        score = Score(math.nan, math.nan)
    if not all(map(math.isfinite, score)):
        raise _fail(f"the score of `{name}` = {value!r} is {given!r}, no two finite numbers")
    return score


def _fail(detail: str) -> InputError:
    return InputError("method_unfit", method="gradient", detail=detail)
