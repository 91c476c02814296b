"""Fit a Keras model, one mini-batch a call: what all backends have in common. What they have not is in `step_BACKEND.py`."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, fail_not_finite
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.keras.arrays import name_weights, to_numpy, to_tensors
from argosy.frameworks.keras.calling import call_model
from argosy.frameworks.keras.faults import find_bad_layer, name_layer
from argosy.frameworks.keras.losses import open_loss
from argosy.frameworks.keras.movers import Mover, open_movers
from argosy.frameworks.keras.own import OwnStep
from argosy.frameworks.loss_trees import Compute
from argosy.frameworks.trees import Tree, join_rows, map_tree
from argosy.signature import Arrays

__all__ = ["Engine", "Fit", "KerasStep"]

keras: Any = importlib.import_module("keras")

Array = NDArray[Any]

_NO_SCALARS: Final = (0.0, 0.0, 0.0)

_SEED_STATE: Final = "seed_generator_state"
_DRAWS: Final = 1 << 16
"""Random numbers of one layer in one pass; the next layer's begin after them."""


class Fit:
    """What is fitted, and how."""

    def __init__(
        self, model: Any, loss: Compute | None, mover: Mover, frozen: frozenset[str], exchange: Exchange | None = None
    ) -> None:
        self.model = model
        self.loss = loss
        """Of outputs, targets and weights of the rows; None with a step of the user's own."""
        self.exchange = exchange
        """Where the workers of a run meet in each step; None for one alone."""
        self.optimizer = mover.optimizer
        self.slots = mover.list_slots()
        """The variables in which it remembers."""
        self.rate: Any = mover.lowered if mover.lowered is not None else getattr(mover.optimizer, "_learning_rate", None)
        """The variable of them that sets its rate, or anything."""
        self.is_rule = mover.rule is not None
        """The optimizer is a `RuleOptimizer`."""
        self.weights = mover.variables
        """The variables that the optimizer moves."""
        self.names = mover.names
        self.takes_training = "training" in inspect.signature(model.call).parameters
        self._frozen = [variable for name, variable in name_weights(model).items() if name in frozen]
        known = set(map(id, self._frozen))
        self._still = [layer for layer in model._flatten_layers() if known and _is_still(layer, known)]
        with self.hold_still():
            moved = set(map(id, self.weights))
            variables = [*model.non_trainable_variables, *model.trainable_variables]
        self.buffers = [variable for variable in variables if id(variable) not in moved]
        """All other variables."""
        self.generators = [variable for variable in self.buffers if variable.name == _SEED_STATE]
        """Those that the model's layers draw random numbers from."""

    def call(self, inputs: Tree) -> Any:
        """Go forward as one trains."""
        if isinstance(inputs, tuple | dict):
            return call_model(self.model, inputs, training=True)
        return self.model(inputs, training=True) if self.takes_training else self.model(inputs)

    def forward(self, batch: Batch) -> tuple[Any, Any]:
        """Give the loss, penalties included, and the outputs, as one trains."""
        assert self.loss is not None
        with self.hold_still():
            outputs = self.call(batch.inputs)
            return self.loss(outputs, batch.targets, batch.weights) + sum(self.model.losses), outputs

    @contextmanager
    def hold_still(self) -> Generator[None]:
        """Let frozen weights be none to train, and layers all of whose weights are frozen run as they are served."""
        if not self._frozen:
            yield
            return
        for variable in self._frozen:
            variable.trainable = False
        for layer in self._still:
            if "training" in inspect.signature(layer.call).parameters:
                layer.call = partial(_call_still, layer.call)
        try:
            yield
        finally:
            for variable in self._frozen:
                variable.trainable = True
            for layer in self._still:
                if "call" in vars(layer):
                    del layer.call

    def list_seeds(self, seed: Any) -> list[Any]:
        """Give the states of the model's random generators for a pass: they follow from its seed, two int32."""
        steps = (np.array([0, index * _DRAWS], np.int32) for index in range(len(self.generators)))
        return [keras.ops.cast(seed + step, state.dtype) for step, state in zip(steps, self.generators, strict=True)]

    def reseed(self, seed: Any) -> None:
        """Set the model's random generators for a pass."""
        for state, value in zip(self.generators, self.list_seeds(seed), strict=True):
            state.assign(value)

    def scalars_at(self, number: int) -> Array:
        """Give the scalars of a step as an array, of which an optimizer of Keras' own makes nothing."""
        return np.array(self.optimizer.steered.scalars_at(number) if self.is_rule else _NO_SCALARS)


def _is_still(layer: Any, frozen: set[int]) -> bool:
    own = layer._trainable_variables
    return bool(own) and all(id(variable) in frozen for variable in own)


def _call_still(call: Callable[..., Any], *given: Any, training: Any = None, **named: Any) -> Any:
    return call(*given, training=False, **named)


class Engine(Protocol):
    """A backend's way to take steps."""

    def fit(self, batch: Batch, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take the step of a number; gives the loss, the outputs, and whether all was finite. If not, no weight was moved."""
        ...

    def differentiate(self, batch: Batch, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
        """Go forward and back; gives the loss, the outputs, and a gradient or None for each weight."""
        ...

    def move(self, gradients: Sequence[Any], number: int) -> Any:
        """Move the weights as the step of a number does; says whether the gradients were finite, and if not moves nothing."""
        ...

    def write(self) -> None:
        """Bring the model's and the optimizer's variables up to date."""
        ...

    def read(self) -> None:
        """Take over what the variables hold."""
        ...

    def adopt(self) -> None:
        """Do so if somebody has set one since `write`."""
        ...


class KerasStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Tree, optimizer: Any, options: FitOptions) -> None:
        trained = set(map(id, model.trainable_variables))
        named = {name: v for name, v in name_weights(model).items() if id(v) in trained and name not in options.frozen}
        if not named:
            expected = "a model with weights to train, which was built by a call with rows"
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected=expected)
        if options.precision is not None:
            expected = "None: the precision of a Keras model is that of its layers, such as dtype='mixed_bfloat16'"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        self._model = model
        self._options = options
        self._movers = open_movers(optimizer, named, has_step=options.step is not None)
        self._mover = mover = next(iter(self._movers.values()))
        compute = open_loss(loss, options) if options.step is None else None
        self._fitted = fit = Fit(model, compute, mover, options.frozen, options.exchange)
        backend = importlib.import_module(f"argosy.frameworks.keras.step_{keras.backend.backend()}")
        self._engine: Engine | None = backend.ENGINE(fit) if options.step is None else None
        self._own = OwnStep(model, self._movers, options, fit) if options.step is not None else None

    @property
    def optimizer(self) -> Any:
        """The only optimizer, as Keras knows it; None if there are several."""
        return self._mover.optimizer if len(self._movers) == 1 else None

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        if self._own is not None:
            return self._own.take(batch, number), None
        assert self._engine is not None
        num_rows = batch.num_rows
        if (self._options.micro_batch_size or num_rows) >= num_rows:
            value, outputs, is_finite = self._engine.fit(batch, self._make_seed(number, 0), number)
        else:
            value, outputs, is_finite = self._fit_pieces(batch, number)
        value = float(value)
        if not (math.isfinite(value) and bool(is_finite)):
            raise self._fail(batch, number)
        return value, _to_arrays(outputs)

    def sync(self) -> None:
        if self._engine is not None:
            self._engine.write()

    def adopt(self) -> None:
        """Go on from what the variables hold, which others may have set."""
        if self._engine is not None:
            self._engine.adopt()

    def get_state(self) -> Arrays:
        self.sync()
        return {name: to_numpy(variable) for name, variable in self._name_state().items()}

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        for name, variable in self._name_state().items():
            variable.assign(state[name])
        if self._engine is not None:
            self._engine.read()

    def _name_state(self) -> dict[str, Any]:
        named = {f"weights/{name}": variable for name, variable in name_weights(self._model).items()}
        for mover in self._movers.values():
            named |= mover.name_state()
        return named

    def _make_seed(self, number: int, piece: int) -> NDArray[np.int32]:
        return np.array([self._options.derive_seed(number, piece), 0], np.int32)

    def _fit_pieces(self, batch: Batch, number: int) -> tuple[Any, Any, Any]:
        """Go through the batch in pieces; once the loss of one is not finite, the rest is not looked at."""
        assert self._engine is not None
        value, parts = 0.0, list[Any]()
        total: list[Any] = []
        for piece, (rows, share) in enumerate(batch.cut(self._options.micro_batch_size)):
            loss, outputs, gradients = self._engine.differentiate(rows, self._make_seed(number, piece))
            value += share * float(loss)
            parts.append(_to_arrays(outputs))
            if not math.isfinite(value):
                return value, parts[0], False
            shared: list[Any] = [gradient if gradient is None else share * gradient for gradient in gradients]
            total = [a if b is None else a + b for a, b in zip(total, shared, strict=True)] if total else shared
        return value, join_rows(parts), self._engine.move(total, number)

    def _fail(self, batch: Batch, number: int) -> ModelError:
        """Go through the batch again and find the first layer or gradient at fault."""
        assert self._engine is not None
        self._engine.write()
        what, layer = "gradient", None
        for piece, (rows, _) in enumerate(batch.cut(self._options.micro_batch_size)):
            seed = self._make_seed(number, piece)
            loss, _, gradients = self._engine.differentiate(rows, seed)
            if not math.isfinite(float(loss)):
                what, layer = "loss", self._find_bad_layer(rows.inputs, seed)
                break
            layer = layer or self._find_bad_gradient(gradients)
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=self._mover.rate_at(number))

    def _find_bad_layer(self, inputs: Tree, seed: Array) -> str | None:
        self._fitted.reseed(seed)
        return find_bad_layer(self._model, lambda: self._fitted.call(to_tensors(inputs)))

    def _find_bad_gradient(self, gradients: Sequence[Any]) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        named = zip(self._fitted.weights, gradients, strict=True)
        bad = [weight for weight, g in named if g is not None and not np.isfinite(to_numpy(g)).all()]
        return name_layer(bad[-1]) if bad else None


def _to_arrays(outputs: Any) -> Tree:
    return to_numpy(outputs) if hasattr(outputs, "shape") else map_tree(to_numpy, outputs)
