"""Steps of the optimizers that need no gradient: forward passes alone, the same for every framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from argosy.frameworks.base import Batch, Framework, check_state, derive_seed
from argosy.optim import GradientFreeOptimizer, OptimizerState
from argosy.signature import Arrays
from argosy.train.objective import Objective

__all__ = ["FreeStep"]


class FreeStep:
    """Fits one model in place, a mini-batch a call; see `frameworks.base.Step`. Models run as they would be served."""

    def __init__(self, framework: Framework, model: Any, objective: Objective, rule: GradientFreeOptimizer, seed: int) -> None:
        self._framework = framework
        self._model = model
        self._objective = objective
        self._rule = rule
        self._seed = seed
        self._state = rule.init_state(self._get_weights())

    def __call__(self, batch: Batch, number: int) -> tuple[float, Any]:
        def measure(weights: Arrays) -> float:
            self._framework.set_weights(self._model, weights)
            return self._measure(self._framework.predict(self._model, batch.inputs), batch)

        random = np.random.default_rng(derive_seed(self._seed, number))
        best, self._state = self._rule.search(self._get_weights(), measure, self._state, random)
        self._framework.set_weights(self._model, best)
        outputs = self._framework.predict(self._model, batch.inputs)
        return self._measure(outputs, batch), outputs

    def _measure(self, outputs: Any, batch: Batch) -> float:
        return self._objective.compute(outputs, batch.targets, batch.weights)

    def sync(self) -> None:
        """Do nothing: the model itself is fitted."""

    def get_state(self) -> Arrays:
        weights = {f"weights/{name}": array for name, array in self._get_weights().items()}
        slots = {
            f"optimizer/{name}/{slot}": array for slot, arrays in self._state.slots.items() for name, array in arrays.items()
        }
        return weights | slots | {"optimizer/step": np.array(self._state.step)}

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        names = [*self._get_weights()]
        self._framework.set_weights(self._model, {name: state[f"weights/{name}"] for name in names})
        slots = {slot: {name: state[f"optimizer/{name}/{slot}"] for name in names} for slot in self._state.slots}
        self._state = OptimizerState(int(state["optimizer/step"]), slots)

    def _get_weights(self) -> Arrays:
        weights = self._framework.get_weights(self._model)
        return {name: weights[name] for name in self._framework.list_trainable(self._model)}
