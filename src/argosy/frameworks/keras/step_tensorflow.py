"""Steps of a Keras model on TensorFlow: compiled graphs over the variables themselves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from numpy.typing import NDArray

from argosy.frameworks.base import Batch
from argosy.frameworks.keras.step import Fit
from argosy.frameworks.tensorflow.graph import Graph

__all__ = ["ENGINE", "TensorFlowEngine"]

tf: Any = importlib.import_module("tensorflow")

Array = NDArray[Any]


class TensorFlowEngine:
    """See `step.Engine`."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._weights = fit.weights
        # As in `tensorflow.optimizer`: unfused, the operators of a rule each read and write all weights.
        self._move_compiled = tf.function(self._move, jit_compile=True)
        variables = [weight.value for weight in self._weights]
        self._graph = Graph(
            variables,
            self._forward,
            self._update,
            is_dense=fit.is_rule,
            scale_loss=fit.optimizer.scale_loss,
            exchange=fit.exchange,
            beside=[buffer.value for buffer in fit.buffers],
        )

    def fit(self, batch: Batch, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take one step."""
        return self._graph.fit(batch, seed, self._fit.scalars_at(number))

    def differentiate(self, batch: Batch, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
        """Go forward and back."""
        return self._graph.differentiate(batch, seed)

    def move(self, gradients: Sequence[Any], number: int) -> Any:
        """Move the weights."""
        return self._graph.move(gradients, self._fit.scalars_at(number))

    def write(self) -> None:
        """Do nothing: the variables themselves are fitted."""

    def read(self) -> None:
        """Do nothing, either."""

    def adopt(self) -> None:
        """Nor here."""

    @tf.autograph.experimental.do_not_convert
    def _forward(self, batch: Batch, seed: Any) -> tuple[Any, Any]:
        self._fit.reseed(seed)
        return self._fit.forward(batch)

    def _update(self, gradients: list[Any], scalars: Any, norm: Any) -> None:
        if self._fit.is_rule:
            self._move_compiled(gradients, scalars, norm)
        else:
            self._apply(gradients)

    def _move(self, gradients: Sequence[Any], scalars: Any, norm: Any) -> None:
        with self._fit.optimizer.at(scalars, norm):
            self._apply(gradients)

    def _apply(self, gradients: Sequence[Any]) -> None:
        self._fit.optimizer.apply_gradients([(g, w) for g, w in zip(gradients, self._weights, strict=True) if g is not None])


ENGINE: Final = TensorFlowEngine
