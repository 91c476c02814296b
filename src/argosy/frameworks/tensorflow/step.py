"""Fit a `tf.Module`: one mini-batch a call."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, derive_seed, fail_not_finite, name_kind
from argosy.frameworks.tensorflow.graph import Graph
from argosy.frameworks.tensorflow.optimizer import RuleOptimizer
from argosy.frameworks.trees import Tree, spread
from argosy.optim import GradientOptimizer
from argosy.signature import Arrays

__all__ = ["ModuleStep", "call_module", "is_optimizer", "name_variables"]

tf: Any = importlib.import_module("tensorflow")

_NO_SCALARS: Final = np.zeros(3)


def name_variables(model: Any) -> dict[str, Any]:
    """Give the variables of a module by their paths in it, such as `layers/0/kernel`, in the module's own order."""
    return {_join(path): variable for path, variable in _flatten(model, tf.Variable)}


def call_module(model: Any, inputs: Tree, *, training: bool, seed: Any = None) -> Any:
    """Call a module with its inputs, and with what of `training` and `seed` its `__call__` takes."""
    known = inspect.signature(model.__call__).parameters
    options = {"training": training} if "training" in known else {}
    given, named = spread(inputs)
    return model(*given, **named, **options, **({"seed": seed} if "seed" in known and seed is not None else {}))


def is_optimizer(optimizer: object) -> bool:
    """Say whether this is one of TensorFlow's optimizers: those are Keras', which is not imported for the question."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(optimizer, keras.optimizers.Optimizer)


def _half_mse(y: Any, outputs: Any) -> Any:
    return 0.5 * tf.reduce_sum(tf.square(outputs - y)) / tf.cast(tf.shape(outputs)[0], outputs.dtype)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": tf.nn.sigmoid_cross_entropy_with_logits,
    "cross_entropy": tf.nn.sparse_softmax_cross_entropy_with_logits,
    "half_mse": _half_mse,
    "mse": tf.math.squared_difference,
}
"""From targets and outputs; what is left of axes is averaged."""


class ModuleStep:
    """Fits one module in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        self._model = model
        self._options = options
        self._weights = {name: v for name, v in name_variables(model).items() if v.trainable}
        if not self._weights:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        if options.precision is not None:
            expected = "None: a tf.Module computes in the type of its variables"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        if options.micro_batch_size and getattr(loss, "reduction", "mean") in ("sum", "none", None):
            raise InputError(
                "bad_option", option="loss", got=f"reduction {loss.reduction}", expected="a mean, with micro-batches"
            )
        self._loss = _LOSSES[loss] if isinstance(loss, str) else loss
        weights = list(self._weights.values())
        self._rule = optimizer if isinstance(optimizer, GradientOptimizer) else None
        self._optimizer: Any = RuleOptimizer(weights, self._rule) if self._rule else _take_over(optimizer, weights)
        self._graph = Graph(weights, self._forward, self._update, is_dense=self._rule is not None, scale_loss=self._scale_loss)

    def __call__(self, batch: Batch, number: int) -> tuple[float, NDArray[Any]]:
        x, y = batch.inputs, batch.targets
        scalars = np.array(self._rule.scalars_at(number)) if self._rule else _NO_SCALARS
        size = self._options.micro_batch_size or len(x)
        if size >= len(x):
            value, outputs, is_finite = self._graph.fit(x, y, self._make_seed(number, 0), scalars)
        else:
            value, outputs, is_finite = self._fit_pieces(x, y, number, scalars)
        value = float(value)
        if not (math.isfinite(value) and is_finite):
            raise self._fail(x, y, number)
        return value, outputs.numpy()

    def sync(self) -> None:
        """Do nothing: the module itself is fitted."""

    def get_state(self) -> Arrays:
        return {name: variable.numpy().copy() for name, variable in self._name_state().items()}

    def set_state(self, state: Arrays) -> None:
        variables = self._name_state()
        check_state({name: variable.numpy() for name, variable in variables.items()}, state)
        for name, variable in variables.items():
            variable.assign(state[name])

    def _name_state(self) -> dict[str, Any]:
        named = {f"weights/{name}": variable for name, variable in name_variables(self._model).items()}
        if not self._rule:
            # Their names hold counters of the process.
            return named | {f"optimizer/{index}": variable for index, variable in enumerate(self._optimizer.variables)}
        named["optimizer/taken"] = self._optimizer.taken
        for name, memory in zip(self._weights, self._optimizer.memory, strict=True):
            named |= {f"optimizer/{name}/{slot}": v for slot, v in zip(self._rule.slots, memory, strict=True)}
        return named

    def _make_seed(self, number: int, piece: int) -> NDArray[np.int32]:
        return np.array([derive_seed(self._options.seed, number), piece], np.int32)

    def _forward(self, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        outputs = call_module(self._model, x, training=True, seed=seed)
        return tf.reduce_mean(self._loss(y, outputs)), outputs

    def _update(self, gradients: list[Any], scalars: Any, norm: Any) -> None:
        if self._rule:
            self._optimizer.move(gradients, scalars, norm)
        else:
            self._optimizer.apply_gradients(zip(gradients, self._weights.values(), strict=True))

    def _scale_loss(self, loss: Any) -> Any:
        return loss if self._rule else self._optimizer.scale_loss(loss)

    def _fit_pieces(self, x: NDArray[Any], y: NDArray[Any], number: int, scalars: NDArray[Any]) -> tuple[Any, Any, Any]:
        """Go through the batch in pieces; once the loss of one is not finite, the rest is not looked at."""
        value, parts = 0.0, list[Any]()
        total: list[Any] = []
        for piece, rows in enumerate(self._cut(len(x))):
            passed = self._graph.differentiate(x[rows], y[rows], self._make_seed(number, piece))
            share = len(x[rows]) / len(x)
            value += share * float(passed.loss)
            if not math.isfinite(value):
                return value, passed.outputs, False
            shared: list[Any] = [gradient if gradient is None else share * gradient for gradient in passed.gradients]
            total = [a if b is None else a + b for a, b in zip(total, shared, strict=True)] if total else shared
            parts.append(passed.outputs)
        return value, tf.concat(parts, 0), self._graph.move(total, scalars)

    def _cut(self, num_rows: int) -> list[slice]:
        size = self._options.micro_batch_size or num_rows
        return [slice(start, start + size) for start in range(0, num_rows, size)]

    def _fail(self, x: NDArray[Any], y: NDArray[Any], number: int) -> ModelError:
        """Go through the batch again and find the first layer or gradient at fault."""
        what, layer = "gradient", None
        for piece, rows in enumerate(self._cut(len(x))):
            seed = self._make_seed(number, piece)
            passed = self._graph.differentiate(x[rows], y[rows], seed)
            if not math.isfinite(float(passed.loss)):
                what, layer = "loss", _find_bad_layer(self._model, x[rows], seed)
                break
            layer = layer or self._find_bad_gradient(passed.gradients)
        rate = self._rule.rate_at(number) if self._rule else float(self._optimizer.learning_rate)
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=rate)

    def _find_bad_gradient(self, gradients: list[Any]) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        named = zip(self._weights, gradients, strict=True)
        names = [name for name, g in named if g is not None and not np.isfinite(g.numpy()).all()]
        if not names:
            return None
        path = names[-1].rpartition("/")[0]
        return _label_layers(self._model).get(path, path or names[-1])


def _take_over(optimizer: Any, weights: list[Any]) -> Any:
    """Check one of TensorFlow's own optimizers, and let it make its slots."""
    if optimizer.use_ema:
        expected = "one without use_ema, which takes effect only at the end of Keras' own loop"
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
    if not optimizer.built:
        optimizer.build(weights)
    own = {id(variable) for variable in optimizer._trainable_variables}  # there is no other way to ask
    if not own.issuperset(map(id, weights)):
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected="one made for this model's weights")
    return optimizer


def _find_bad_layer(model: Any, x: NDArray[Any], seed: NDArray[Any]) -> str | None:
    """Run the forward pass again, operator by operator, and watch the layers.

    At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
    """
    labels = _label_layers(model)
    names = {id(layer): labels[_join(path)] for path, layer in _flatten(model, tf.Module)}
    ran: list[str] = []
    bad: list[str] = []

    def look(layer: Any, output: Any) -> None:
        if id(layer) in names:
            ran.append(names[id(layer)])
            if tf.is_tensor(output) and output.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(output))):
                bad.append(names[id(layer)])

    with _watch({type(layer) for layer in model.submodules if callable(layer)}, look):
        call_module(model, tf.convert_to_tensor(x), training=True, seed=tf.convert_to_tensor(seed))
    return (bad or ran[-1:] or [None])[0]


def _label_layers(model: Any) -> dict[str, str]:
    """Give the modules in a module by path: their own names, unless two have the same; then the paths."""
    found = {_join(path): layer for path, layer in _flatten(model, tf.Module)}
    names = [layer.name for layer in found.values()]
    return {path: layer.name if names.count(layer.name) == 1 else path for path, layer in found.items()}


def _flatten(model: Any, kind: type) -> Any:
    def is_wanted(value: object) -> bool:
        return isinstance(value, kind)

    return model._flatten(predicate=is_wanted, with_path=True)  # as subclasses may


def _join(path: tuple[str | int, ...]) -> str:
    return "/".join(map(str, path))


@contextmanager
def _watch(kinds: set[type], look: Callable[[Any, Any], None]) -> Generator[None]:
    """Let `look` see what each call of some classes returns; graphs inside are run eagerly meanwhile."""

    def wrap(call: Any) -> Callable[..., Any]:
        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(self, *args, **kwargs)
            look(self, output)
            return output

        return watched

    was_eager = tf.config.functions_run_eagerly()
    before = {kind: vars(kind).get("__call__") for kind in kinds}
    tf.config.run_functions_eagerly(True)
    for kind, call in [(kind, kind.__call__) for kind in kinds]:
        kind.__call__ = wrap(call)
    try:
        yield
    finally:
        for kind, call in before.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call
        tf.config.run_functions_eagerly(was_eager)
