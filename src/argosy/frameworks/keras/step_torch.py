"""Steps of a Keras model on PyTorch: eager, as Keras itself runs there."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, Final

from numpy.typing import NDArray

from argosy.frameworks.base import Batch
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.keras.arrays import to_tensors
from argosy.frameworks.keras.step import Fit
from argosy.frameworks.torch import RuleOptimizer
from argosy.frameworks.torch.exchange import share_gradients
from argosy.frameworks.trees import map_tree

__all__ = ["ENGINE", "TorchEngine"]

torch: Any = importlib.import_module("torch")

Array = NDArray[Any]


class TorchEngine:
    """See `step.Engine`.

    A rule moves the weights by torch's operators in place: those of Keras made a step of 5 M weights a fifth slower, and
    one of a hundred twice as slow. They work on the very memory of the optimizer's variables.
    """

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._weights = fit.weights
        self._inputs = [weight.value for weight in self._weights]
        self._mover: Any = None
        if fit.is_rule:
            self._mover = RuleOptimizer([weight.value for weight in self._weights], fit.optimizer.steered, fit.names)
            for index, weight in enumerate(self._weights):
                slots = {slot: variables[index].value.data for slot, variables in fit.optimizer.memory.items()}
                self._mover.state[weight.value] = {"step": 0, **slots}

    def fit(self, batch: Batch, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take one step."""
        loss, outputs, gradients = self.differentiate(batch, seed)
        return loss, outputs, math.isfinite(float(loss)) and self.move(gradients, number)

    def differentiate(self, batch: Batch, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
        """Go forward and back."""
        # Keras' own dropout draws from torch's generator, unless it was given a seed.
        torch.default_generator.manual_seed(int(seed[0]))
        self._fit.reseed(seed)
        for weight in self._weights:
            weight.value.grad = None
        loss, outputs = self._fit.forward(Batch(*map(to_tensors, batch)))
        if not loss.requires_grad:
            raise fail_loss("a number without a gradient")
        self._fit.optimizer.scale_loss(loss).backward(inputs=self._inputs)
        outputs = outputs.detach() if torch.is_tensor(outputs) else map_tree(_detach, outputs)
        return loss.detach(), outputs, [weight.value.grad for weight in self._weights]

    def move(self, gradients: Sequence[Any], number: int) -> bool:
        """Move the weights."""
        if self._fit.exchange is not None:
            # With the loss of the rows, `move` is not called unless it is finite.
            share_gradients(self._fit.exchange, 0.0, self._inputs, [buffer.value for buffer in self._fit.buffers])
            gradients = [weight.grad for weight in self._inputs]
        given = [(g, weight) for g, weight in zip(gradients, self._weights, strict=True) if g is not None]
        with torch.no_grad():
            norm = _measure_norm([g for g, _ in given])
            if not math.isfinite(norm):
                return False
            if self._mover is None:
                self._fit.optimizer.apply_gradients(given)
                return True
            for gradient, weight in given:
                weight.value.grad = gradient
                self._mover.state[weight.value]["step"] = number - 1
            self._mover.step(norm=norm)
            for _, weight in given:
                if weight.constraint is not None:
                    weight.assign(weight.constraint(weight))
            self._fit.optimizer.iterations.assign(number)
        return True

    def write(self) -> None:
        """Do nothing: the variables themselves are fitted."""

    def read(self) -> None:
        """Do nothing, either."""

    def adopt(self) -> None:
        """Nor here."""


def _detach(leaf: Any) -> Any:
    return leaf.detach() if torch.is_tensor(leaf) else leaf


def _measure_norm(gradients: Sequence[Any]) -> float:
    """Give the Euclidean norm of all gradients together; not finite only if one of them is not."""
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    if math.isfinite(norm):
        return norm
    # The squares of large float32 gradients overflow, those of float64 do not.
    return math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))


ENGINE: Final = TorchEngine
