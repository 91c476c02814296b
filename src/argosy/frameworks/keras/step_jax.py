"""Steps of a Keras model on JAX: one compiled function from state to state, which is held here between steps."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.base import Batch
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.jax.exchange import share_gradients
from argosy.frameworks.keras.arrays import narrow_integers
from argosy.frameworks.keras.optimizer import measure_norm
from argosy.frameworks.keras.step import Fit
from argosy.frameworks.trees import map_tree

__all__ = ["ENGINE", "JaxEngine"]

jax: Any = importlib.import_module("jax")
keras: Any = importlib.import_module("keras")

Array = NDArray[Any]


class _State(NamedTuple):
    weights: list[Any]
    buffers: list[Any]
    """Running means and the like, and what random numbers follow from."""
    slots: list[Any]
    """What the optimizer remembers."""


class JaxEngine:
    """See `step.Engine`."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._rate: Any = fit.rate if isinstance(fit.rate, keras.Variable) else None
        self._known_rate: Any = None
        self._known: list[Any] = []
        # The old state's memory becomes the new one's; so it must be nobody else's.
        self._fit_compiled = jax.jit(self._fit_state, donate_argnums=0)
        self._move_compiled = jax.jit(self._move_state, donate_argnums=0)
        self._differentiate_compiled = jax.jit(jax.value_and_grad(self._forward, has_aux=True))
        self.read()

    def fit(self, batch: Batch, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take one step."""
        self._adopt_rate()
        given = self._narrow(batch)
        self._state, loss, outputs, is_finite = self._fit_compiled(self._state, given, seed, self._fit.scalars_at(number))
        return loss, outputs, is_finite

    def differentiate(self, batch: Batch, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
        """Go forward and back."""
        (_, (loss, outputs, buffers)), gradients = self._differentiate_compiled(
            self._state.weights, self._state.buffers, self._narrow(batch), seed
        )
        self._state = self._state._replace(buffers=buffers)
        return loss, outputs, gradients

    def _narrow(self, batch: Batch) -> Batch:
        return Batch(*(map_tree(_narrow, part) for part in batch))

    def move(self, gradients: Sequence[Any], number: int) -> Any:
        """Move the weights."""
        self._adopt_rate()
        self._state, is_finite = self._move_compiled(self._state, list(gradients), self._fit.scalars_at(number))
        return is_finite

    def write(self) -> None:
        """Copy the state into the variables, but for a learning rate that was set since."""
        self._adopt_rate()
        for variables, values in zip(self._list_variables(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(jax.numpy.copy(value))
        self._note()

    def read(self) -> None:
        """Copy the variables into the state."""
        self._state = _State(*([jax.numpy.copy(v.value) for v in variables] for variables in self._list_variables()))
        self._note()

    def adopt(self) -> None:
        """Copy the variables into the state, if one was set since."""
        values = (variable.value for variables in self._list_variables() for variable in variables)
        if any(value is not known for value, known in zip(values, self._known, strict=True)):
            self.read()

    def _note(self) -> None:
        """Note which arrays the variables hold."""
        self._known_rate = None if self._rate is None else self._rate.value
        self._known = [variable.value for variables in self._list_variables() for variable in variables]

    def _adopt_rate(self) -> None:
        """Take over the learning rate of an optimizer of Keras' own, if somebody has set it."""
        if self._rate is None or self._rate.value is self._known_rate:
            return
        self._known_rate = self._rate.value
        slots = [
            jax.numpy.copy(self._known_rate) if variable is self._rate else value
            for variable, value in zip(self._fit.slots, self._state.slots, strict=True)
        ]
        self._state = self._state._replace(slots=slots)

    def _list_variables(self) -> tuple[list[Any], list[Any], list[Any]]:
        return self._fit.weights, self._fit.buffers, self._fit.slots

    def _forward(self, weights: list[Any], buffers: list[Any], batch: Batch, seed: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        fit = self._fit
        seeds = dict(zip(map(id, fit.generators), fit.list_seeds(seed), strict=True))
        seeded = [seeds.get(id(variable), value) for variable, value in zip(fit.buffers, buffers, strict=True)]
        mapping = [*zip(fit.weights, weights, strict=True), *zip(fit.buffers, seeded, strict=True)]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            loss, outputs = fit.forward(batch)
        if type(loss) is type(seed) or not isinstance(loss, jax.core.Tracer):  # Of what is differentiated, the class is another.
            raise fail_loss("a number without a gradient")
        after = [scope.get_current_value(variable) for variable in fit.buffers]
        return fit.optimizer.scale_loss(loss), (loss, outputs, after)

    def _fit_state(self, state: _State, batch: Batch, seed: Any, scalars: Any) -> tuple[_State, Any, Any, Any]:
        differentiate = jax.value_and_grad(self._forward, has_aux=True)
        (_, (loss, outputs, buffers)), gradients = differentiate(state.weights, state.buffers, batch, seed)
        gradients, buffers = self._share(loss, gradients, buffers)
        state = state._replace(buffers=buffers)
        state, is_finite = self._move_if(jax.numpy.isfinite(loss), state, gradients, scalars)
        return state, loss, outputs, is_finite

    def _move_state(self, state: _State, gradients: list[Any], scalars: Any) -> tuple[_State, Any]:
        gradients, buffers = self._share(jax.numpy.zeros(()), gradients, state.buffers)
        return self._move_if(True, state._replace(buffers=buffers), gradients, scalars)

    def _share(self, loss: Any, gradients: list[Any], buffers: list[Any]) -> tuple[list[Any], list[Any]]:
        if self._fit.exchange is None:
            return gradients, buffers
        return share_gradients(self._fit.exchange, loss, gradients, buffers)

    def _move_if(self, is_finite: Any, state: _State, gradients: list[Any], scalars: Any) -> tuple[_State, Any]:
        norm = measure_norm(gradients)
        is_finite = is_finite & jax.numpy.isfinite(norm)

        def move() -> _State:
            fit = self._fit
            slots = fit.slots
            mapping = [*zip(fit.weights, state.weights, strict=True), *zip(slots, state.slots, strict=True)]
            place = fit.optimizer.at(scalars, norm) if fit.is_rule else nullcontext()
            with place, keras.StatelessScope(state_mapping=mapping) as scope:
                fit.optimizer.apply(gradients, fit.weights)
            return state._replace(
                weights=[scope.get_current_value(variable) for variable in fit.weights],
                slots=[scope.get_current_value(variable) for variable in slots],
            )

        # A branch: choosing number by number instead took twice as long for 5 M weights.
        return jax.lax.cond(is_finite, move, lambda: state), is_finite


def _narrow(leaf: Any) -> Any:
    return narrow_integers(cast("Array", leaf)) if isinstance(leaf, np.ndarray) else leaf


ENGINE: Final = JaxEngine
