"""Population-based training: members train side by side, and the worst go on from the weights of the best.

A trial is an interval of one member. The first generation begins anew with points of chance; in each one after it every member
goes on with its parameters, but for the worst quarter, which takes weights and parameters of one of the best and changes these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from argosy.errors import ConflictError, InputError
from argosy.optim.schedules import check_count
from argosy.search.record import Record
from argosy.search.space import Choice, Float, Int, Parameter, Space, Value

__all__ = ["Population", "make_population"]

_SIZE: Final = 8
"""Members that are not asked for otherwise: two of them are replaced in each generation."""

_QUARTER: Final = 0.25
"""Of a population is replaced by as many of the best."""
_REDRAWN: Final = 0.25
"""How often a parameter is drawn anew instead of moved."""
_FACTORS: Final = (0.8, 1.2)
_TRIES: Final = 20
"""To find a point that nobody has, which a space of few options may not allow."""


class Population:
    """Says from which trial's weights the next one goes on, and with what parameters.

    It depends on the trials that have ended alone, and waits for a whole generation: the same answers give the same trials, with
    any number of them at a time, and after a kill.

    Source: Jaderberg et al. 2017, Population Based Training of Neural Networks, arXiv:1711.09846: truncation selection, a quarter
    of the parameters resampled, the others times 0.8 or 1.2.

    Args:
        space: of the parameters.
        size: members.
        seed: of what is drawn.
        watched: the objective by which members are compared.
        is_minimized: whether less of it is better.
    """

    def __init__(self, space: Space, size: int, seed: int, watched: str, *, is_minimized: bool) -> None:
        self.size = size
        self._space, self._seed, self._watched = space, seed, watched
        self._sign = 1.0 if is_minimized else -1.0

    def choose(self, records: Sequence[Record], number: int) -> tuple[dict[str, Value], int] | None:
        """Give the parameters of a trial, and the trial from whose weights it goes on.

        Args:
            records: those with lower numbers.
            number: of the trial, not of the first generation.

        Returns:
            None if no member is left, as all of the last generation failed.

        Raises:
            ConflictError: `search_waits`, the last generation is not over.
        """
        start = (number // self.size - 1) * self.size
        last = [record for record in records if start <= record.number < start + self.size]
        running = [record.number for record in last if record.seconds is None]
        if len(last) < self.size or running:
            raise ConflictError("search_waits", number=number, running=", ".join(map(str, running)))
        done = sorted((record for record in last if record.state == "done"), key=self._rank)
        if not done:
            return None
        num_replaced = max(1, round(self.size * _QUARTER))
        lost = {record.number for record in last if record.state != "done"}
        lost |= {record.number for record in done[len(done) - max(0, num_replaced - len(lost)) :]}
        own = last[number - start - self.size]
        if own.number not in lost:
            return own.parameters, _find_weights(own)
        random = np.random.default_rng([self._seed, number])
        best = done[int(random.integers(min(num_replaced, len(done))))]
        parent = _find_weights(best)
        # As the best one itself will do, and others that took its weights.
        taken = [best.parameters, *(one.parameters for one in records if one.number >= start and one.parent == parent)]
        return self._explore(best.parameters, taken, random), parent

    def list_parents(self, num_trials: int) -> range:
        """Give the numbers of the trials, of so many, from whose weights others may go on."""
        return range(max(0, ((num_trials - 1) // self.size - 1) * self.size), num_trials)

    def _rank(self, record: Record) -> tuple[float, float, int]:
        return record.violation, self._sign * record.values[self._watched], record.number

    def _explore(
        self, point: Mapping[str, Value], taken: Sequence[Mapping[str, Value]], random: np.random.Generator
    ) -> dict[str, Value]:
        changed = dict(point)
        for _ in range(_TRIES):
            changed = {
                name: _draw(parameter, random) if random.random() < _REDRAWN else _move(parameter, point[name], random)
                for name, parameter in self._space.items()
            }
            if changed not in taken:
                break
        return changed


def make_population(
    method: str, space: Space, size: int | None, seed: int, watched: str, *, is_minimized: bool
) -> Population | None:
    """Give a population for the method `pbt`, None for others.

    Raises:
        InputError: `bad_option`, fewer than two members, or members of another method.
    """
    if method != "pbt":
        if size is not None:
            raise InputError("bad_option", option="population", got=size, expected=f"None with the method {method}")
        return None
    check_count("population", size := _SIZE if size is None else size, 2)
    return Population(space, size, seed, watched, is_minimized=is_minimized)


def _find_weights(record: Record) -> int:
    """Of a trial that repeats an earlier one, the earlier one has them."""
    return record.number if record.same_as is None else record.same_as


def _draw(parameter: Parameter, random: np.random.Generator) -> Value:
    """Give any value, each as likely as another; by its order of magnitude where the parameter is logarithmic."""
    if isinstance(parameter, Choice):
        return parameter.options[int(random.integers(len(parameter.options)))]
    if parameter.log:
        found = math.exp(random.uniform(math.log(parameter.low), math.log(parameter.high)))
        return _fit(parameter, found)
    values = parameter.values
    if values is None:
        return _fit(parameter, random.uniform(parameter.low, parameter.high))
    return values[int(random.integers(len(values)))]


def _move(parameter: Parameter, value: Any, random: np.random.Generator) -> Value:
    """Give a value near another one; of a choice, which knows no near, the same."""
    if isinstance(parameter, Choice):
        return value
    factor = _FACTORS[int(random.integers(len(_FACTORS)))]
    moved = _fit(parameter, value * factor)
    values = parameter.values
    if values is None or moved != value:
        return moved
    # Steps are wider than the move: the next one on that side.
    place = _find_place(parameter, value) + (1 if (factor > 1.0) == (value >= 0) else -1)
    return values[min(len(values) - 1, max(0, place))]


def _fit(parameter: Float | Int, value: float) -> Value:
    """Give the nearest value that a parameter may take."""
    values = parameter.values
    if values is None:
        return float(min(parameter.high, max(parameter.low, value)))
    return values[min(len(values) - 1, max(0, _find_place(parameter, value)))]


def _find_place(parameter: Float | Int, value: float) -> int:
    assert parameter.step is not None
    return round((value - parameter.low) / parameter.step)
