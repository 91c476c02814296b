"""Two ways to better weights without a gradient, for small models and losses that have none. The card is `free.md`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from argosy.optim.base import Optimizer, OptimizerState
from argosy.optim.schedules import check_count
from argosy.signature import Arrays

__all__ = ["Genetic", "GradientFreeOptimizer", "Measure", "RandomSearch"]

Measure = Callable[[Arrays], float]
"""Gives the loss of some weights on the rows of this step; lower is better, a NaN is worst."""


@dataclass(frozen=True, kw_only=True)
class GradientFreeOptimizer(Optimizer):
    """A rule that only compares losses."""

    scale: float = 0.1
    """Standard deviation of the noise that is added to a weight."""

    def __post_init__(self) -> None:
        self._check("scale", self.scale, "a finite number above 0", lowest=0.0, is_open=True)

    @abstractmethod
    def search(
        self, weights: Arrays, measure: Measure, state: OptimizerState, random: np.random.Generator
    ) -> tuple[Arrays, OptimizerState]:
        """Take one step. Nothing is changed in place.

        Args:
            weights: by name; where the last step ended.
            measure: may be called as often as the rule says.
            state: from `init_state` or the step before.
            random: of this step alone, so that a run can be resumed.

        Returns:
            The best weights known, and the new state.
        """


@dataclass(frozen=True, kw_only=True)
class RandomSearch(GradientFreeOptimizer):
    """Try `tries` random changes of all weights, and keep the best if it is better than what there is.

    Source: Rastrigin 1963, "The convergence of the random search method"; Solis and Wets 1981, doi:10.1287/moor.6.1.19.
    """

    name: ClassVar[str] = "random_search"

    tries: int = 16
    """Forward passes of a step, beside the one of the weights themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("random_search.tries", self.tries)

    def search(
        self, weights: Arrays, measure: Measure, state: OptimizerState, random: np.random.Generator
    ) -> tuple[Arrays, OptimizerState]:
        best, lowest = weights, _rank(measure(weights))
        for _ in range(self.tries):
            tried = {name: w + _draw(random, self.scale, w) for name, w in weights.items()}
            loss = _rank(measure(tried))
            if loss < lowest:
                best, lowest = tried, loss
        return best, OptimizerState(state.step + 1)


@dataclass(frozen=True, kw_only=True)
class Genetic(GradientFreeOptimizer):
    """Breed a population: the better of few become parents, children mix two parents weight by weight and mutate.

    A step is a generation: every individual is measured once, the best `elites` live on unchanged.

    Source: Holland 1975, "Adaptation in Natural and Artificial Systems"; the choice by tournament is Goldberg and Deb's, 1991.
    """

    name: ClassVar[str] = "genetic"
    slots: ClassVar[tuple[str, ...]] = ("population",)

    population: int = 32
    """Individuals, each a full set of weights."""
    elites: int = 2
    tournament: int = 3
    """Individuals drawn for each parent; the best of them is it."""
    mutation_rate: float = 0.2
    """Part of a child's weights that mutate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("genetic.population", self.population, 2)
        check_count("genetic.elites", self.elites)
        self._check("elites", self.elites, f"below the population, {self.population}", lowest=1, below=self.population)
        check_count("genetic.tournament", self.tournament)
        self._check("mutation_rate", self.mutation_rate, "a number in (0, 1]", lowest=0.0, below=1.0 + 1e-12, is_open=True)

    def init_state(self, weights: Arrays) -> OptimizerState:
        """Give a state without a population: the first step draws it around the weights."""
        shape = (self.population,)
        return OptimizerState(0, {"population": {name: np.zeros(shape + w.shape, w.dtype) for name, w in weights.items()}})

    def search(
        self, weights: Arrays, measure: Measure, state: OptimizerState, random: np.random.Generator
    ) -> tuple[Arrays, OptimizerState]:
        crowd = state.slots["population"] if state.step else self._settle(weights, random)
        losses = np.array([_rank(measure({name: people[i] for name, people in crowd.items()})) for i in range(self.population)])
        order = np.argsort(losses, kind="stable")
        # Drawn first and for all weights alike: a child has two parents, not two for each array.
        mothers, fathers = (self._choose(losses, random) for _ in range(2))
        bred = {name: self._breed(people, order, mothers, fathers, random) for name, people in crowd.items()}
        best = {name: people[order[0]].copy() for name, people in crowd.items()}
        return best, OptimizerState(state.step + 1, {"population": bred})

    def _settle(self, weights: Arrays, random: np.random.Generator) -> Arrays:
        crowd = {name: np.repeat(w[None], self.population, axis=0) for name, w in weights.items()}
        for people in crowd.values():
            people[1:] += _draw(random, self.scale, people[1:])
        return crowd

    def _choose(self, losses: NDArray[Any], random: np.random.Generator) -> NDArray[np.intp]:
        drawn = random.integers(0, self.population, (self.population - self.elites, self.tournament))
        return drawn[np.arange(len(drawn)), np.argmin(losses[drawn], axis=1)]

    def _breed(
        self,
        people: NDArray[Any],
        order: NDArray[np.intp],
        mothers: NDArray[np.intp],
        fathers: NDArray[np.intp],
        random: np.random.Generator,
    ) -> NDArray[Any]:
        children = np.where(random.random((len(mothers), *people.shape[1:])) < 0.5, people[mothers], people[fathers])
        is_mutant = random.random(children.shape) < self.mutation_rate
        children = children + is_mutant * _draw(random, self.scale, children)
        return np.concatenate([people[order[: self.elites]], children.astype(people.dtype)])


def _draw(random: np.random.Generator, scale: float, like: NDArray[Any]) -> NDArray[Any]:
    return (scale * random.standard_normal(like.shape)).astype(like.dtype)


def _rank(loss: float) -> float:
    """Make a loss comparable: what is not finite is worst."""
    return loss if np.isfinite(loss) else np.inf
