"""Fit a `tf.Module`: one mini-batch a call."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, fail_not_finite
from argosy.frameworks.own_step import OwnFit, take_own_step
from argosy.frameworks.tensorflow.graph import Graph
from argosy.frameworks.tensorflow.losses import open_loss
from argosy.frameworks.tensorflow.movers import TapeEngine, open_movers
from argosy.frameworks.trees import Tree, join_rows, list_leaves, map_tree, spread
from argosy.signature import Arrays

__all__ = ["ModuleStep", "call_module", "is_optimizer", "name_variables", "to_tensors"]

tf: Any = importlib.import_module("tensorflow")


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


class ModuleStep:
    """Fits one module in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Tree, optimizer: Any, options: FitOptions) -> None:
        self._model = model
        self._options = options
        named = {name: v for name, v in name_variables(model).items() if v.trainable and name not in options.frozen}
        if not named:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        if options.precision is not None:
            expected = "None: a tf.Module computes in the type of its variables"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        self._weights = named
        self._loss = open_loss(loss, options) if options.step is None else None
        self._still = _list_still(model, options.frozen)
        self._movers = open_movers(optimizer, named, has_step=options.step is not None)
        self._mover = mover = next(iter(self._movers.values()))
        beside = [variable for name, variable in name_variables(model).items() if name not in named]
        self._engine = TapeEngine(model, list(named.values()), options.exchange, beside)
        self._graph = Graph(
            mover.weights,
            self._forward,
            mover.update,
            is_dense=mover.rule is not None,
            scale_loss=mover.scale_loss,
            exchange=options.exchange,
            beside=beside,
        )

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        if self._options.step is not None:
            return self._take_own(self._options.step, batch, number), None
        scalars = self._mover.scalars_at(number)
        num_rows = batch.num_rows
        size = self._options.micro_batch_size or num_rows
        if size >= num_rows:
            value, outputs, is_finite = self._graph.fit(batch, self._make_seed(number, 0), scalars)
            outputs = outputs.numpy() if tf.is_tensor(outputs) else map_tree(_to_array, outputs)
        else:
            value, outputs, is_finite = self._fit_pieces(batch, number, scalars)
        value = float(value)
        if not (math.isfinite(value) and is_finite):
            raise self._fail(batch, number)
        return value, outputs

    def _take_own(self, function: Callable[[Any, Any, Any], Any], batch: Batch, number: int) -> float:
        """Take a step of the user's own."""
        seed = self._options.derive_seed(number)
        tf.random.set_seed(seed)
        fit = OwnFit(self._engine, self._movers, self._options.journal, number, seed)

        def run() -> Any:
            with self._engine.record(), _hold_still(self._still):
                return function(self._model, to_tensors(batch.inputs), fit)

        return take_own_step(fit, self._engine, self._movers, run)

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
        for mover in self._movers.values():
            named |= mover.name_state()
        return named

    def _make_seed(self, number: int, piece: int) -> NDArray[np.int32]:
        return np.array([self._options.derive_seed(number), piece], np.int32)

    def _forward(self, batch: Batch, seed: Any) -> tuple[Any, Any]:
        assert self._loss is not None
        outputs = self._run(batch.inputs, seed)
        return self._loss(outputs, batch.targets, batch.weights), outputs

    def _run(self, inputs: Tree, seed: Any) -> Any:
        if not self._still:
            return call_module(self._model, inputs, training=True, seed=seed)
        with _hold_still(self._still):
            return call_module(self._model, inputs, training=True, seed=seed)

    def _fit_pieces(self, batch: Batch, number: int, scalars: NDArray[Any]) -> tuple[Any, Any, Any]:
        """Go through the batch in pieces; once the loss of one is not finite, the rest is not looked at."""
        value, parts = 0.0, list[Any]()
        total: list[Any] = []
        for piece, (rows, share) in enumerate(batch.cut(self._options.micro_batch_size)):
            passed = self._graph.differentiate(rows, self._make_seed(number, piece))
            value += share * float(passed.loss)
            parts.append(map_tree(_to_array, passed.outputs))
            if not math.isfinite(value):
                return value, parts[0], False
            shared: list[Any] = [gradient if gradient is None else share * gradient for gradient in passed.gradients]
            total = [a if b is None else a + b for a, b in zip(total, shared, strict=True)] if total else shared
        return value, join_rows(parts), self._graph.move(total, scalars)

    def _fail(self, batch: Batch, number: int) -> ModelError:
        """Go through the batch again and find the first layer or gradient at fault."""
        what, layer = "gradient", None
        for piece, (rows, _) in enumerate(batch.cut(self._options.micro_batch_size)):
            seed = self._make_seed(number, piece)
            passed = self._graph.differentiate(rows, seed)
            if not math.isfinite(float(passed.loss)):
                what, layer = "loss", self._find_bad_layer(rows.inputs, seed)
                break
            layer = layer or self._find_bad_gradient(passed.gradients)
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=self._mover.rate_at(number))

    def _find_bad_gradient(self, gradients: list[Any]) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        named = zip(self._weights, gradients, strict=True)
        names = [name for name, g in named if g is not None and not np.isfinite(g.numpy()).all()]
        if not names:
            return None
        path = names[-1].rpartition("/")[0]
        return _label_layers(self._model).get(path, path or names[-1])

    def _find_bad_layer(self, inputs: Tree, seed: NDArray[Any]) -> str | None:
        """Run the forward pass again, operator by operator, and watch the layers.

        At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
        """
        labels = _label_layers(self._model)
        names = {id(layer): labels[_join(path)] for path, layer in _flatten(self._model, tf.Module)}
        ran: list[str] = []
        bad: list[str] = []

        def look(layer: Any, output: Any) -> None:
            if id(layer) in names:
                ran.append(names[id(layer)])
                if tf.is_tensor(output) and output.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(output))):
                    bad.append(names[id(layer)])

        with _watch({type(layer) for layer in self._model.submodules if callable(layer)}, look):
            self._run(map_tree(tf.convert_to_tensor, inputs), tf.convert_to_tensor(seed))
        return (bad or ran[-1:] or [None])[0]


def to_tensors(tree: Any) -> Any:
    """Give the same with its arrays as tensors; what holds none is given back as it is, whatever it is."""
    if isinstance(tree, np.ndarray):
        return tf.convert_to_tensor(tree)
    if tree is None or tf.is_tensor(tree) or not any(isinstance(leaf, np.ndarray) for leaf in list_leaves(tree)):
        return tree
    return map_tree(lambda leaf: tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _to_array(leaf: Any) -> Any:
    return leaf.numpy() if tf.is_tensor(leaf) else leaf


def _list_still(model: Any, frozen: frozenset[str]) -> list[Any]:
    """Give the modules all of whose own weights are frozen: they run as they are served, so that their statistics stay, too."""
    if not frozen:
        return []
    owners: dict[str, bool] = {}
    for name, variable in name_variables(model).items():
        if variable.trainable:
            path = name.rpartition("/")[0]
            owners[path] = owners.get(path, True) and name in frozen
    found = {_join(path): module for path, module in _flatten(model, tf.Module)}
    return [found[path] for path, is_still in owners.items() if is_still and path in found]


@contextmanager
def _hold_still(modules: list[Any]) -> Generator[None]:
    """Let modules be called with `training=False`, whatever their callers say."""
    still = {id(module) for module in modules}

    def wrap(call: Any) -> Callable[..., Any]:
        known = inspect.signature(call)
        if "training" not in known.parameters:
            return call

        def held(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in still:
                return call(self, *args, **kwargs)
            bound = known.bind(self, *args, **kwargs)
            bound.arguments["training"] = False
            return call(*bound.args, **bound.kwargs)

        return held

    with _replace_calls({type(module) for module in modules if callable(module)}, wrap):
        yield


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
    tf.config.run_functions_eagerly(True)
    try:
        with _replace_calls(kinds, wrap):
            yield
    finally:
        tf.config.run_functions_eagerly(was_eager)


@contextmanager
def _replace_calls(kinds: set[type], wrap: Callable[[Any], Callable[..., Any]]) -> Generator[None]:
    """Put something around what instances of some classes do when they are called."""
    before = {kind: vars(kind).get("__call__") for kind in kinds}
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
