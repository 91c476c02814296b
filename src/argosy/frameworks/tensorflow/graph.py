"""Fit variables by compiled graphs: what a step of a `tf.Module` and one of Keras on TensorFlow have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from argosy.errors import ArgosyError
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import Batch, fail_loss
from argosy.frameworks.tensorflow.exchange import share_gradients
from argosy.frameworks.tensorflow.optimizer import make_dense, measure_norm
from argosy.frameworks.trees import Tree, list_leaves, map_tree

__all__ = ["Graph", "Outcome", "Pass"]

tf: Any = importlib.import_module("tensorflow")

Array = NDArray[Any]


class Pass(NamedTuple):
    """What one forward and backward pass gives."""

    loss: Any
    """Mean over the rows, penalties included."""
    outputs: Any
    gradients: list[Any]
    """One for each weight, None where the loss does not depend on it."""


class Outcome(NamedTuple):
    """What one step gives."""

    loss: Any
    outputs: Any
    is_finite: Any
    """Whether loss and gradients are; otherwise no weight was moved."""


class Graph:
    """The graphs of a step over some variables, each traced once, for any number of rows."""

    def __init__(
        self,
        weights: Sequence[Any],
        forward: Callable[[Batch, Any], tuple[Any, Any]],
        update: Callable[[list[Any], Any, Any], None],
        *,
        is_dense: bool,
        scale_loss: Callable[[Any], Any] = lambda loss: loss,
        exchange: Exchange | None = None,
        beside: Sequence[Any] = (),
    ) -> None:
        """Say what is fitted.

        Args:
            weights: `tf.Variable`s.
            forward: gives loss and outputs from a batch and a seed (two int32).
            update: moves the weights by gradients, the step's scalars (three float64) and the gradients' norm.
            is_dense: give the gradients of embeddings to `update` as tensors; optimizers of TensorFlow's own take IndexedSlices.
            scale_loss: what an optimizer asks to be differentiated instead of the loss.
            exchange: where the workers of a run meet in each step; None for one alone.
            beside: variables that a pass may change, such as running statistics.
        """
        self._weights = list(weights)
        self._forward = forward
        self._update = update
        self._is_dense = is_dense
        self._scale_loss = scale_loss
        self._exchange = exchange
        self._beside = list(beside)
        self._fit_graph = _Compiled(self._fit)
        self._differentiate_graph = _Compiled(self._differentiate)
        self._move_graph = tf.function(self._move, reduce_retracing=True)

    def fit(self, batch: Batch, seed: Array, scalars: Array) -> Outcome:
        """Take one step, unless loss or gradients are not finite."""
        return Outcome(*self._fit_graph(batch, seed, scalars))

    def differentiate(self, batch: Batch, seed: Array) -> Pass:
        """Go forward and back with some rows, and move nothing."""
        return Pass(*self._differentiate_graph(batch, seed))

    def move(self, gradients: Sequence[Any], scalars: Array) -> Any:
        """Move the weights by gradients; says whether those were finite, and if not moves nothing."""
        return self._move_graph(list(gradients), scalars)

    def _fit(self, batch: Batch, seed: Any, scalars: Any) -> tuple[Any, Any, Any]:
        loss, outputs, gradients = self._pass(batch, seed)
        if self._is_dense:
            gradients = [make_dense(gradient) for gradient in gradients]
        return loss, outputs, self._move_if(tf.math.is_finite(loss), self._share(loss, gradients), scalars)

    def _differentiate(self, batch: Batch, seed: Any) -> tuple[Any, Any, list[Any]]:
        loss, outputs, gradients = self._pass(batch, seed)
        return loss, outputs, [make_dense(gradient) for gradient in gradients]

    def _move(self, gradients: list[Any], scalars: Any) -> Any:
        return self._move_if(tf.constant(True), self._share(tf.constant(0.0), gradients), scalars)

    @tf.autograph.experimental.do_not_convert
    def _share(self, loss: Any, gradients: list[Any]) -> list[Any]:
        if self._exchange is None:
            return gradients
        return share_gradients(self._exchange, loss, gradients, self._weights, self._beside)

    def _pass(self, batch: Batch, seed: Any) -> tuple[Any, Any, list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights)
            loss, outputs = self._forward(batch, seed)
            scaled = self._scale_loss(loss)
        gradients = tape.gradient(scaled, self._weights)
        if all(gradient is None for gradient in gradients):
            raise fail_loss("a number without a gradient")
        return loss, outputs, gradients

    # Converting it to a graph's control flow, of which it has none but what stands there, would double the time of a trace.
    @tf.autograph.experimental.do_not_convert
    def _move_if(self, is_finite: Any, gradients: list[Any], scalars: Any) -> Any:
        norm = measure_norm(gradients)

        def move() -> Any:
            self._update(gradients, scalars, norm)
            return tf.constant(True)

        return tf.cond(is_finite & tf.math.is_finite(norm), move, lambda: tf.constant(False))


class _Compiled:
    """A function of a batch and some more arrays as a graph, traced once for any number of rows."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._take = function
        self._function = tf.function(self._call, reduce_retracing=True)
        self._form: Batch = Batch(None)
        """Of the batches, which all have the same: numbers of the leaves instead of them."""
        self._num_leaves = 0
        self._kind: tuple[Any, ...] = ()
        self._graph: Any = None

    def __call__(self, batch: Batch, *rest: Array) -> Any:
        inputs, targets, weights = batch
        if weights is None and hasattr(inputs, "shape") and hasattr(targets, "shape"):
            leaves = [inputs, targets]
        else:
            leaves = list_leaves(batch)
        kind = tuple([(leaf.shape[1:], leaf.dtype) for leaf in leaves])
        tensors = [tf.convert_to_tensor(array) for array in (*leaves, *rest)]
        if self._graph is None:
            self._kind, self._graph = kind, self._trace(batch, leaves, rest)
        # Found by TensorFlow, the graph for these tensors takes 0.2 ms a call, half of a small step.
        return self._graph(*tensors) if kind == self._kind else self._function(*tensors)

    def _call(self, *tensors: Any) -> Any:
        return self._take(self._rebuild(tensors), *tensors[self._num_leaves :])

    @tf.autograph.experimental.do_not_convert
    def _rebuild(self, tensors: tuple[Any, ...]) -> Batch:
        return Batch(*(map_tree(lambda number: tensors[number], part) for part in self._form))

    def _trace(self, batch: Batch, leaves: list[Any], rest: tuple[Array, ...]) -> Any:
        numbers = iter(range(len(leaves)))
        form: Tree = map_tree(lambda leaf: next(numbers), batch)
        self._form, self._num_leaves = Batch(*form), len(leaves)
        # Left alone, the first trace would be for as many rows as the first batch has, and the last batch would need another.
        specs = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in leaves]
        try:
            return self._function.get_concrete_function(*specs, *(tf.TensorSpec(array.shape, array.dtype) for array in rest))
        except Exception as error:
            # An error from within a trace comes in a wrapping of TensorFlow's.
            if isinstance(error.__context__, ArgosyError):
                raise error.__context__ from error
            raise
