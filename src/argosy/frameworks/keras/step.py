"""Fit a Keras model, one mini-batch a call: what all backends have in common. What they have not is in `step_BACKEND.py`."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, derive_seed, fail_not_finite, name_kind
from argosy.frameworks.keras.arrays import name_weights, to_numpy
from argosy.frameworks.keras.faults import find_bad_layer, name_layer
from argosy.frameworks.keras.losses import take_loss
from argosy.frameworks.keras.optimizer import RuleOptimizer
from argosy.optim import GradientOptimizer
from argosy.signature import Arrays

__all__ = ["Engine", "Fit", "KerasStep"]

keras: Any = importlib.import_module("keras")

Array = NDArray[Any]

_NO_SCALARS: Final = (0.0, 0.0, 0.0)

_SEED_STATE: Final = "seed_generator_state"
_DRAWS: Final = 1 << 16
"""Random numbers of one layer in one pass; the next layer's begin after them."""


class Fit(NamedTuple):
    """What is fitted, and how."""

    model: Any
    loss: Callable[[Any, Any], Any]
    """From targets and outputs, a mean over the rows."""
    optimizer: Any
    is_rule: bool
    """The optimizer is a `RuleOptimizer`."""
    takes_training: bool
    """The model's `call` has the argument `training`."""

    def call(self, x: Any) -> Any:
        """Go forward as one trains."""
        return self.model(x, training=True) if self.takes_training else self.model(x)

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
        return np.array(self.optimizer.rule.scalars_at(number) if self.is_rule else _NO_SCALARS)

    @property
    def generators(self) -> list[Any]:
        """The variables that the model's layers draw random numbers from."""
        return [variable for variable in self.model.non_trainable_variables if variable.name == _SEED_STATE]

    @property
    def weights(self) -> list[Any]:
        """The variables that the optimizer moves."""
        return list(self.model.trainable_variables)


class Engine(Protocol):
    """A backend's way to take steps."""

    def fit(self, x: Array, y: Array, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take the step of a number; gives the loss, the outputs, and whether all was finite. If not, no weight was moved."""
        ...

    def differentiate(self, x: Array, y: Array, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
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


class KerasStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        if not model.trainable_variables:
            expected = "a model with weights to train, which was built by a call with rows"
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected=expected)
        if options.precision is not None:
            expected = "None: the precision of a Keras model is that of its layers, such as dtype='mixed_bfloat16'"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        if options.micro_batch_size and getattr(loss, "reduction", "mean") in ("sum", "none", None):
            raise InputError(
                "bad_option", option="loss", got=f"reduction {loss.reduction}", expected="a mean, with micro-batches"
            )
        self._model = model
        self._options = options
        self._optimizer = RuleOptimizer(optimizer) if isinstance(optimizer, GradientOptimizer) else optimizer
        self._rule: GradientOptimizer | None = getattr(self._optimizer, "rule", None)
        _prepare_optimizer(self._optimizer, model)
        takes_training = "training" in inspect.signature(model.call).parameters
        self._fitted = fit = Fit(model, take_loss(loss), self._optimizer, self._rule is not None, takes_training)
        backend = keras.backend.backend()
        self._engine: Engine = importlib.import_module(f"argosy.frameworks.keras.step_{backend}").ENGINE(fit)

    def __call__(self, batch: Batch, number: int) -> tuple[float, Array]:
        x, y = batch.inputs, batch.targets
        size = self._options.micro_batch_size or len(x)
        if size >= len(x):
            value, outputs, is_finite = self._engine.fit(x, y, self._make_seed(number, 0), number)
        else:
            value, outputs, is_finite = self._fit_pieces(x, y, number)
        value = float(value)
        if not (math.isfinite(value) and bool(is_finite)):
            raise self._fail(x, y, number)
        return value, to_numpy(outputs)

    def sync(self) -> None:
        self._engine.write()

    def get_state(self) -> Arrays:
        self._engine.write()
        return {name: to_numpy(variable) for name, variable in self._name_state().items()}

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        for name, variable in self._name_state().items():
            variable.assign(state[name])
        self._engine.read()

    def _name_state(self) -> dict[str, Any]:
        # The names of an optimizer's variables hold counters of the process.
        slots = {f"optimizer/{index}": variable for index, variable in enumerate(self._optimizer.variables)}
        return {f"weights/{name}": variable for name, variable in name_weights(self._model).items()} | slots

    def _make_seed(self, number: int, piece: int) -> NDArray[np.int32]:
        return np.array([derive_seed(self._options.seed, number, piece), 0], np.int32)

    def _fit_pieces(self, x: Array, y: Array, number: int) -> tuple[Any, Any, Any]:
        """Go through the batch in pieces; once the loss of one is not finite, the rest is not looked at."""
        value, parts = 0.0, list[Any]()
        total: list[Any] = []
        for piece, rows in enumerate(self._cut(len(x))):
            loss, outputs, gradients = self._engine.differentiate(x[rows], y[rows], self._make_seed(number, piece))
            share = len(x[rows]) / len(x)
            value += share * float(loss)
            if not math.isfinite(value):
                return value, outputs, False
            shared: list[Any] = [gradient if gradient is None else share * gradient for gradient in gradients]
            total = [a if b is None else a + b for a, b in zip(total, shared, strict=True)] if total else shared
            parts.append(outputs)
        return value, keras.ops.concatenate(parts), self._engine.move(total, number)

    def _cut(self, num_rows: int) -> list[slice]:
        size = self._options.micro_batch_size or num_rows
        return [slice(start, start + size) for start in range(0, num_rows, size)]

    def _fail(self, x: Array, y: Array, number: int) -> ModelError:
        """Go through the batch again and find the first layer or gradient at fault."""
        self._engine.write()
        what, layer = "gradient", None
        for piece, rows in enumerate(self._cut(len(x))):
            seed = self._make_seed(number, piece)
            loss, _, gradients = self._engine.differentiate(x[rows], y[rows], seed)
            if not math.isfinite(float(loss)):
                what, layer = "loss", self._find_bad_layer(x[rows], seed)
                break
            layer = layer or self._find_bad_gradient(gradients)
        rate = self._rule.rate_at(number) if self._rule else float(self._optimizer.learning_rate)
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=rate)

    def _find_bad_layer(self, x: Array, seed: Array) -> str | None:
        self._fitted.reseed(seed)
        return find_bad_layer(self._model, lambda: self._fitted.call(keras.ops.convert_to_tensor(x)))

    def _find_bad_gradient(self, gradients: Sequence[Any]) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        named = zip(self._fitted.weights, gradients, strict=True)
        bad = [weight for weight, g in named if g is not None and not np.isfinite(to_numpy(g)).all()]
        return name_layer(bad[-1]) if bad else None


def _prepare_optimizer(optimizer: Any, model: Any) -> None:
    """Let an optimizer make its slots, and refuse what Keras' own loop would have to do for it."""
    weights = model.trainable_variables
    expected = None
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        expected = "one without loss scaling; mixed_bfloat16 needs none"
    elif optimizer.use_ema:
        expected = "one without use_ema, which takes effect only at the end of Keras' own loop"
    elif not optimizer.built:
        optimizer.build(weights)
    elif [id(weight) for weight in optimizer._trainable_variables] != [id(weight) for weight in weights]:
        expected = "one made for this model's weights"
    if expected:
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
