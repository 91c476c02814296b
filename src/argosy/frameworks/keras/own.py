"""A step of the user's own on a Keras model: eager, on the variables themselves."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import Batch, FitOptions, derive_seed, name_kind
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import fail_loss, fail_not_finite
from argosy.frameworks.keras.arrays import to_numpy, to_tensors
from argosy.frameworks.keras.movers import Mover
from argosy.frameworks.keras.optimizer import measure_norm
from argosy.frameworks.own_step import OwnFit, take_own_step

__all__ = ["OwnStep", "find_global_state"]

keras: Any = importlib.import_module("keras")

_GLOBAL: Any = importlib.import_module("keras.src.random.seed_generator")
"""Keras has no public way to seed the generator from which `keras.random` draws that is told none."""


class _Fitted(Protocol):
    """What `step.Fit` has of a model."""

    def hold_still(self) -> AbstractContextManager[None]: ...

    def reseed(self, seed: Any) -> None: ...


class OwnStep:
    """Takes a step of the user's own."""

    def __init__(self, model: Any, movers: Mapping[str | None, Mover], options: FitOptions, fitted: _Fitted) -> None:
        self._model = model
        self._movers = movers
        self._options = options
        self._fitted = fitted
        self._engine: Any = _ENGINES[keras.backend.backend()](model, movers, options.exchange)

    def take(self, batch: Batch, number: int) -> float:
        """Take one step, and give its loss."""
        function = self._options.step
        assert function is not None
        seed = self._options.derive_seed(number)
        fit = OwnFit(self._engine, self._movers, self._options.journal, number, seed)
        given = to_tensors(batch.inputs)

        def begin() -> None:
            self._reseed(seed)
            self._options.journal.logged.clear()

        def call(model: Any) -> Any:
            return function(model, given, fit)

        begin()
        with self._fitted.hold_still():
            return take_own_step(fit, self._engine, self._movers, lambda: self._engine.run(call, fit, begin))

    def _reseed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(derive_seed(seed))
        backend = keras.backend.backend()
        if backend == "tensorflow":
            importlib.import_module("tensorflow").random.set_seed(seed)
        elif backend == "torch":
            importlib.import_module("torch").default_generator.manual_seed(seed)
        pair = np.array([seed, 0], np.int32)
        self._fitted.reseed(pair)
        state = _GLOBAL.global_seed_generator().state
        state.assign(keras.ops.cast(pair, state.dtype))


def find_global_state() -> Any:
    """Give the variable of the generator from which `keras.random` draws that is told none."""
    return _GLOBAL.global_seed_generator().state


class _TensorFlowEngine:
    """See `own_step.Engine`: by TensorFlow's own, on the variables of the backend."""

    def __init__(self, model: Any, movers: Mapping[str | None, Mover], exchange: Exchange | None) -> None:
        movements: Any = importlib.import_module("argosy.frameworks.tensorflow.movers")
        weights = [weight for mover in movers.values() for weight in mover.weights]
        beside = [variable.value for variable in model.non_trainable_variables]
        self._tape: Any = movements.TapeEngine(model, weights, exchange, beside)

    def run(self, call: Callable[[Any], Any], fit: OwnFit, begin: Callable[[], None]) -> Any:
        """Call the step."""
        with self._tape.record():
            return call(self._tape.model)

    def minimize(self, loss: Any, mover: Any, number: int) -> float:
        """See `own_step.Engine`."""
        return self._tape.minimize(loss, mover, number)

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(value)


class _TorchEngine:
    """See `own_step.Engine`."""

    def __init__(self, model: Any, movers: Mapping[str | None, Mover], exchange: Exchange | None) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._model = model
        self._exchange = exchange

    def run(self, call: Callable[[Any], Any], fit: OwnFit, begin: Callable[[], None]) -> Any:
        """Call the step."""
        return call(self._model)

    def minimize(self, loss: Any, mover: Any, number: int) -> float:
        """See `own_step.Engine`."""
        torch = self._torch
        scalar: Any = loss
        if not torch.is_tensor(loss) and callable(loss):
            scalar = loss(self._model)
        if not torch.is_tensor(scalar):
            raise fail_loss(name_kind(scalar))
        if scalar.numel() != 1:
            raise fail_loss(f"a tensor of shape {tuple(scalar.shape)}")
        if not scalar.requires_grad:
            raise fail_loss("a number without a gradient")
        value = float(scalar.detach())
        if not math.isfinite(value):
            raise fail_not_finite(step=number, what="loss", layer=None, learning_rate=mover.rate_at(number))
        for weight in mover.weights:
            weight.grad = None
        mover.scale_loss(scalar).backward(inputs=mover.weights)
        if self._exchange is not None:
            share: Any = importlib.import_module("argosy.frameworks.torch.exchange")
            share.share_gradients(
                self._exchange, value, mover.weights, [own.value for own in self._model.non_trainable_variables]
            )
        gradients = [weight.grad for weight in mover.weights]
        with torch.no_grad():
            _move(mover, gradients, number)
        return value

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(value.detach()) if self._torch.is_tensor(value) else float(value)


class _JaxEngine:
    """See `own_step.Engine`: losses are functions of the model, which is called with its variables as tracers.

    A step that returns its loss is such a function itself. That it is, its first call tells, whose effects are undone.
    """

    def __init__(self, model: Any, movers: Mapping[str | None, Mover], exchange: Exchange | None) -> None:
        self._jax: Any = importlib.import_module("jax")
        self._model = model
        self._exchange = exchange
        self._returns_loss = False
        self._is_tracing = False

    def run(self, call: Callable[[Any], Any], fit: OwnFit, begin: Callable[[], None]) -> Any:
        """Call the step, or give it as a loss."""
        if self._returns_loss:
            return call
        before = [(variable, variable.value) for variable in self._model.variables]
        loss = call(self._model)
        if fit.value is not None or loss is None:
            return loss
        for variable, value in before:
            variable.assign(value)
        begin()
        self._returns_loss = True
        return call

    def minimize(self, loss: Any, mover: Any, number: int) -> float:
        """See `own_step.Engine`."""
        if self._is_tracing:
            expected = "a step that always calls it, or never, and not within a loss"
            raise InputError("bad_option", option="step", got="a call of fit.minimize in some steps", expected=expected)
        if not callable(loss) or keras.ops.is_tensor(loss):
            expected = "a function of the model: JAX cannot differentiate what was computed already"
            raise InputError("bad_option", option="fit.minimize(loss)", got=name_kind(loss), expected=expected)
        others = [*self._model.variables, find_global_state()]

        def forward(values: list[Any]) -> tuple[Any, tuple[Any, dict[int, Any]]]:
            mapping = zip(mover.variables, values, strict=True)
            with keras.StatelessScope(state_mapping=mapping) as scope:
                scalar = self._check(loss(self._model))
            return mover.scale_loss(scalar), (scalar, dict(scope.state_mapping))

        with self._trace():
            differentiate = self._jax.value_and_grad(forward, has_aux=True)
            (_, (scalar, after)), gradients = differentiate([variable.value for variable in mover.variables])
        value = float(scalar)
        if not math.isfinite(value):
            raise fail_not_finite(step=number, what="loss", layer=None, learning_rate=mover.rate_at(number))
        moved = set(map(id, mover.variables))
        for variable in others:
            if id(variable) in after and id(variable) not in moved:
                variable.assign(after[id(variable)])
        if self._exchange is not None:
            share: Any = importlib.import_module("argosy.frameworks.jax.exchange")
            buffers = self._model.non_trainable_variables
            gradients, means = share.share_gradients(self._exchange, scalar, gradients, [own.value for own in buffers])
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.assign(mean)
        _move(mover, gradients, number)
        return value

    @contextmanager
    def _trace(self) -> Generator[None]:
        self._is_tracing = True
        try:
            yield
        finally:
            self._is_tracing = False

    def _check(self, scalar: Any) -> Any:
        if not keras.ops.is_tensor(scalar):
            raise fail_loss(name_kind(scalar))
        if scalar.size != 1:
            raise fail_loss(f"a tensor of shape {tuple(scalar.shape)}")
        if not isinstance(scalar, self._jax.core.Tracer):
            raise fail_loss("a number without a gradient")
        return scalar.reshape(())

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(self._jax.lax.stop_gradient(value))


def _move(mover: Mover, gradients: list[Any], number: int) -> None:
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        raise fail_loss("a number without a gradient")
    norm = measure_norm(present)
    if not math.isfinite(float(norm)):
        named = zip(mover.names, gradients, strict=True)
        bad = [name for name, g in named if g is not None and not np.isfinite(to_numpy(g)).all()]
        layer = (bad[-1].rpartition("/")[0] or bad[-1]) if bad else None
        raise fail_not_finite(step=number, what="gradient", layer=layer, learning_rate=mover.rate_at(number))
    mover.move(gradients, norm)


_ENGINES = {"jax": _JaxEngine, "tensorflow": _TensorFlowEngine, "torch": _TorchEngine}
