"""Steps of a Keras model on JAX: one compiled function from state to state, which is held here between steps."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from argosy.frameworks.keras.arrays import narrow_integers
from argosy.frameworks.keras.optimizer import measure_norm
from argosy.frameworks.keras.step import Fit

__all__ = ["ENGINE", "JaxEngine"]

jax: Any = importlib.import_module("jax")

Array = NDArray[Any]


class _State(NamedTuple):
    weights: list[Any]
    buffers: list[Any]
    """Running means and the like, and what random numbers follow from."""
    slots: list[Any]
    """The optimizer's variables."""


class JaxEngine:
    """See `step.Engine`."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        # The old state's memory becomes the new one's; so it must be nobody else's.
        self._fit_compiled = jax.jit(self._fit_state, donate_argnums=0)
        self._move_compiled = jax.jit(self._move_state, donate_argnums=0)
        self._differentiate_compiled = jax.jit(jax.value_and_grad(self._forward, has_aux=True))
        self.read()

    def fit(self, x: Array, y: Array, seed: Array, number: int) -> tuple[Any, Any, Any]:
        """Take one step."""
        x, y = narrow_integers(x), narrow_integers(y)
        self._state, loss, outputs, is_finite = self._fit_compiled(self._state, x, y, seed, self._fit.scalars_at(number))
        return loss, outputs, is_finite

    def differentiate(self, x: Array, y: Array, seed: Array) -> tuple[Any, Any, Sequence[Any]]:
        """Go forward and back."""
        (_, (loss, outputs, buffers)), gradients = self._differentiate_compiled(
            self._state.weights, self._state.buffers, x, y, seed
        )
        self._state = self._state._replace(buffers=buffers)
        return loss, outputs, gradients

    def move(self, gradients: Sequence[Any], number: int) -> Any:
        """Move the weights."""
        self._state, is_finite = self._move_compiled(self._state, list(gradients), self._fit.scalars_at(number))
        return is_finite

    def write(self) -> None:
        """Copy the state into the variables."""
        for variables, values in zip(self._list_variables(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(jax.numpy.copy(value))

    def read(self) -> None:
        """Copy the variables into the state."""
        self._state = _State(*([jax.numpy.copy(v.value) for v in variables] for variables in self._list_variables()))

    def _list_variables(self) -> tuple[list[Any], list[Any], list[Any]]:
        return self._fit.weights, self._fit.model.non_trainable_variables, self._fit.optimizer.variables

    def _forward(self, weights: list[Any], buffers: list[Any], x: Any, y: Any, seed: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        model = self._fit.model
        seeds = dict(zip(map(id, self._fit.generators), self._fit.list_seeds(seed), strict=True))
        seeded = [seeds.get(id(variable), value) for variable, value in zip(model.non_trainable_variables, buffers, strict=True)]
        training = {"training": True} if self._fit.takes_training else {}
        outputs, after, penalties = model.stateless_call(weights, seeded, x, return_losses=True, **training)
        loss = self._fit.loss(y, outputs) + sum(penalties)
        return self._fit.optimizer.scale_loss(loss), (loss, outputs, after)

    def _fit_state(self, state: _State, x: Any, y: Any, seed: Any, scalars: Any) -> tuple[_State, Any, Any, Any]:
        differentiate = jax.value_and_grad(self._forward, has_aux=True)
        (_, (loss, outputs, buffers)), gradients = differentiate(state.weights, state.buffers, x, y, seed)
        state = state._replace(buffers=buffers)
        state, is_finite = self._move_if(jax.numpy.isfinite(loss), state, gradients, scalars)
        return state, loss, outputs, is_finite

    def _move_state(self, state: _State, gradients: list[Any], scalars: Any) -> tuple[_State, Any]:
        return self._move_if(True, state, gradients, scalars)

    def _move_if(self, is_finite: Any, state: _State, gradients: list[Any], scalars: Any) -> tuple[_State, Any]:
        norm = measure_norm(gradients)
        is_finite = is_finite & jax.numpy.isfinite(norm)

        def move() -> _State:
            apply = self._fit.optimizer.stateless_apply
            with self._fit.optimizer.at(scalars, norm) if self._fit.is_rule else nullcontext():
                weights, slots = apply(state.slots, gradients, state.weights)
            return state._replace(weights=weights, slots=slots)

        # A branch: choosing number by number instead took twice as long for 5 M weights.
        return jax.lax.cond(is_finite, move, lambda: state), is_finite


ENGINE: Final = JaxEngine
