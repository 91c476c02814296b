"""How the next trial is chosen, by method."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, Final, Protocol

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import import_extra
from argosy.search.linear import LinearPlan, Scores
from argosy.search.record import Record
from argosy.search.space import Space, Value
from argosy.search.stopping import Rule, is_below_median, is_below_third, is_never, is_out_of_rung

__all__ = ["METHODS", "Plan", "get_rule", "make_plan", "make_sampler"]

METHODS: Final = {
    "random": "any point, each as likely as another",
    "grid": "every point once, in order",
    "tpe": "a tree of Parzen estimators: more of what was good, by parameter",
    "genetic": "NSGA-II: the fittest are crossed and changed, generation by generation",
    "hyperband": "tpe, and most trials are stopped at steps 1, 3, 9, ...",
    "gradient": "a linear programme over scores that are given",
    "pbt": "population-based training: in each generation the worst go on from the weights of the best, with other parameters",
}
"""With what each is."""

_POPULATION: Final = 16
"""Of NSGA-II: Optuna's 50 would leave a search of a hundred trials two generations."""


class GridPlan:
    """Every point of a space, in order."""

    def __init__(self, space: Space) -> None:
        space.list_points()  # Refuses what cannot be listed.
        self._space = space

    def describe(self) -> None:
        """Give what else it depends on than the space: nothing."""
        return

    def choose(self, records: Sequence[Record]) -> dict[str, Value] | None:
        """Give the first point that was not tried, None once there is none."""
        tried = {tuple(record.parameters.values()) for record in records}
        return next((point for point in self._space.list_points() if tuple(point.values()) not in tried), None)


class Plan(Protocol):
    """What chooses points by itself, from all that is known of the trials."""

    def describe(self) -> Any:
        """Give what else it depends on than the space, as JSON data: a journal of another one is refused."""
        ...

    def choose(self, records: Sequence[Record]) -> dict[str, Value] | None:
        """Give the next point, None once there is none."""
        ...


def make_plan(method: str, space: Space, scores: Scores | None, plan: Plan | None = None) -> Plan | None:
    """Give what chooses points without a sampler, None for the methods that have one.

    Args:
        method: a name of `METHODS`.
        space: of the points.
        scores: for the method `gradient`.
        plan: instead of them.

    Raises:
        InputError: `unknown_choice`; `bad_space`, a grid over a float without step; `method_unfit`, `missing_extra`;
            `bad_option`, scores or a plan for a method that takes none.
    """
    if method not in METHODS:
        raise InputError("unknown_choice", kind="method", got=method, known=list_choices(METHODS))
    if method == "gradient":
        return plan or LinearPlan(space, scores)
    for option, given in (("scores", scores), ("plan", plan)):
        if given is not None:
            raise InputError("bad_option", option=option, got=option, expected=f"None with the method {method}")
    return GridPlan(space) if method == "grid" else None


def make_sampler(method: str, seed: int, number: int, name: str = "") -> Any:
    """Give Optuna's sampler for one trial, or one parameter of it, which depends on these alone and on nothing that is not kept.

    A sampler that lived from trial to trial would begin its random numbers anew when a study is resumed, and one that lived from
    parameter to parameter when a process was killed between two of them.
    """
    samplers = import_extra("optuna.samplers", feature="A search", extra="search")
    own = int.from_bytes(hashlib.sha256(f"{seed} {number} {name}".encode()).digest()[:4], "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some arguments are called experimental.
        if method in ("tpe", "hyperband"):
            return samplers.TPESampler(seed=own, multivariate=True, warn_independent_sampling=False)
        if method == "genetic":
            return samplers.NSGAIISampler(seed=own, population_size=_POPULATION)
        return samplers.RandomSampler(seed=own)


def get_rule(method: str) -> Rule:
    """Give when a trial of a method is stopped early."""
    return {"hyperband": is_out_of_rung, "tpe": is_below_third, "pbt": is_never}.get(method, is_below_median)
