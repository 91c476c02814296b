"""Averaged weights: what a run's weights were lately, which often answers better than the last of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import Framework
from argosy.optim.schedules import check_count, check_number
from argosy.signature import Arrays

__all__ = ["Average", "Ema"]

_PREFIX: Final = "average/"
"""Before the names of averaged weights in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Ema:
    """An exponential moving average of the weights and of what layers count, such as running means.

        average = d * average + (1 - d) * weights          d = min(decay, (1 + n) / (10 + n)) at its n-th update

    The run goes on with the weights themselves; it is validated with the average, which the model holds at the end.

    Source: Polyak and Juditsky 1992, doi:10.1137/0330046; the smaller d of the first updates is TensorFlow's.
    """

    decay: float = 0.999
    every_steps: int = 1
    """Steps from one update to the next."""

    def __post_init__(self) -> None:
        check_number("average.decay", self.decay, "a number above 0 and below 1", lowest=0.0, below=1.0, is_open=True)
        check_count("average.every_steps", self.every_steps)

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {"name": "ema", **asdict(self)}


class Average:
    """The average of one model's weights."""

    def __init__(self, plan: Ema, framework: Framework, model: Any) -> None:
        self._plan = plan
        self._framework = framework
        self._model = model
        self._weights: Arrays = framework.get_weights(model)
        self._count = 0

    def is_due(self, step: int) -> bool:
        """Say whether the weights after this step are taken in."""
        return step % self._plan.every_steps == 0

    def update(self) -> None:
        """Take the model's weights in."""
        self._count += 1
        decay = min(self._plan.decay, (1 + self._count) / (10 + self._count))
        for name, weight in self._framework.get_weights(self._model).items():
            mean = self._weights[name]
            if mean.dtype.kind == "f" and mean.ndim:
                # In the memory that is there: the weights are copies already.
                mean *= decay
                weight *= 1.0 - decay
                mean += weight
            elif mean.dtype.kind == "f":
                self._weights[name] = np.asarray(decay * mean + (1.0 - decay) * weight, mean.dtype)
            else:
                self._weights[name] = weight

    def apply(self) -> Arrays:
        """Give the model the averaged weights, and back the ones that it had."""
        own = self._framework.get_weights(self._model)
        self._framework.set_weights(self._model, self._weights)
        return own

    def get_state(self) -> Arrays:
        """Give copies for a checkpoint."""
        state = {f"{_PREFIX}{name}": weight.copy() for name, weight in self._weights.items()}
        return {**state, _PREFIX: np.array(self._count)}

    def set_state(self, state: Arrays) -> None:
        """Go on from what `get_state` gave.

        Raises:
            InputError: `bad_checkpoint`, it is not there.
        """
        own = {name.removeprefix(_PREFIX): array for name, array in state.items() if name.startswith(_PREFIX)}
        count = own.pop("", None)
        if count is None or own.keys() != self._weights.keys():
            raise InputError("bad_checkpoint", detail="it has no averaged weights")
        self._weights = {name: array.copy() for name, array in own.items()}
        self._count = int(count)

    def restart(self) -> None:
        """Begin with the weights that the model has now."""
        self._weights, self._count = self._framework.get_weights(self._model), 0

    @staticmethod
    def is_in(state: Arrays) -> bool:
        """Say whether a state has averaged weights."""
        return _PREFIX in state

    @staticmethod
    def leave_out(state: Arrays) -> Arrays:
        """Give a state without averaged weights."""
        return {name: array for name, array in state.items() if not name.startswith(_PREFIX)}
