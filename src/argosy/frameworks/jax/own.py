"""Steps of the user's own on flax models, as one function of arrays, which may be compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import Journal, fail_loss
from argosy.frameworks.jax.exchange import share_gradients
from argosy.frameworks.jax.losses import check_scalar, has_gradient
from argosy.frameworks.jax.movers import Mover
from argosy.frameworks.jax.optimizer import measure_norm
from argosy.frameworks.jax.state import Leaves, Parts, follow, prepare
from argosy.frameworks.own_step import OwnFit

__all__ = ["Numbers", "Taken", "take_own", "to_arrays"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")

Own = Callable[[Any, Any, Any], Any]
"""`step(model, batch, fit) -> loss`."""


class Numbers(NamedTuple):
    """What a step is told beside its batch; numbers, or arrays of no axes in a compiled function."""

    number: Any
    epoch: Any
    seed: Any
    scalars: list[Any]
    """Of the first step that each mover takes, in their order."""


class Taken(NamedTuple):
    """What a step came to."""

    trained: Leaves
    rest: Leaves
    memories: list[Leaves]
    """Of each mover in their order."""
    measured: Any
    """The loss, the sum of what was made small, and the largest norm of gradients."""
    logged: dict[str, Any]


class _Engine:
    """Makes losses small on a model whose arrays belong to the function that is running; see `own_step.Engine`."""

    def __init__(
        self,
        model: Any,
        movers: Mapping[str | None, Mover],
        memories: list[Leaves],
        numbers: Numbers,
        exchange: Exchange | None,
    ) -> None:
        self.model = model
        self._exchange = exchange
        self.journal = Journal(numbers.epoch)
        self.norms: list[Any] = []
        self.memories = dict(zip(movers.values(), memories, strict=True))
        self._scalars = dict(zip(movers.values(), numbers.scalars, strict=True))

    def minimize(self, loss: Any, mover: Mover, number: Any) -> Any:
        """See `own_step.Engine`."""
        if not callable(loss):
            expected = "a function of the model that gives a scalar: JAX differentiates functions"
            raise InputError("bad_option", option="fit.minimize(loss)", got=name_kind(loss), expected=expected)
        graph, own, others = nnx.split(self.model, mover.owns, ...)
        weights, tree = jax.tree.flatten(own)

        def measure(weights: Leaves) -> tuple[Any, tuple[Leaves, dict[str, Any]]]:
            model = nnx.merge(graph, jax.tree.unflatten(tree, weights), others)
            # What is logged in here belongs to what is being differentiated, and is handed out with it.
            outside, self.journal.logged = self.journal.logged, {}
            try:
                value = check_scalar(loss(model))
                logged = self.journal.logged
            finally:
                self.journal.logged = outside
            after = nnx.split(model, mover.owns, ...)[2]
            return value, (follow(others, after), logged)

        def measure_loss(weights: Leaves) -> Any:
            return measure(weights)[0]

        if _is_traced(weights) and not has_gradient(measure_loss, weights):
            raise fail_loss("a number without a gradient")
        (value, (after, logged)), gradients = jax.value_and_grad(measure, has_aux=True)(weights)
        self.journal.logged.update(logged)
        if self._exchange is not None:
            others_after, form = jax.tree.flatten(after)
            gradients, others_after = share_gradients(self._exchange, value, gradients, others_after)
            after = jax.tree.unflatten(form, others_after)
        norm = measure_norm(gradients)
        self.norms.append(norm)
        scalars = self._scalars.pop(mover, None) if mover.rule else self._scalars[mover]
        moved, self.memories[mover] = mover.move(weights, gradients, self.memories[mover], value, norm, scalars)
        nnx.update(self.model, jax.tree.unflatten(tree, moved), jax.tree.unflatten(jax.tree.structure(others), after))
        return value

    def to_float(self, value: Any) -> Any:
        """Check what is logged; it becomes a number once the step has been taken."""
        if np.size(value) != 1:
            raise ValueError("no scalar")
        return jnp.asarray(value).reshape(())


def _is_traced(leaves: Leaves) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def take_own(
    step: Own,
    build: Callable[[], Any],
    parts: Parts,
    rest: Leaves,
    movers: Mapping[str | None, Mover],
    memories: list[Leaves],
    batch: Any,
    numbers: Numbers,
    exchange: Exchange | None,
) -> Taken:
    """Take a step.

    Args:
        step: the user's.
        build: makes the model of arrays, each time the same.
        parts: of the model.
        rest: the arrays beside those that are trained and random numbers.
        movers: by name.
        memories: what they remember, in their order.
        batch: what the step is given.
        numbers: see there.
        exchange: where the workers of a run meet; None for one alone.

    Raises:
        InputError: `bad_loss`, `bad_option`.
    """
    engine = _Engine(build(), movers, memories, numbers, exchange)
    fit = OwnFit(engine, movers, engine.journal, numbers.number, numbers.seed)
    returned = step(engine.model, batch, fit)
    if fit.value is None:
        if returned is None:
            raise fail_loss("builtins.NoneType")
        if len(movers) > 1:
            expected = "a step that calls fit.minimize with the name of an optimizer"
            raise InputError("bad_option", option="step", got="no call of fit.minimize", expected=expected)
        # Once more, to be differentiated: what the first pass computed falls away when this is compiled.
        engine = _Engine(build(), movers, memories, numbers, exchange)
        fit = OwnFit(engine, movers, engine.journal, numbers.number, numbers.seed)
        fit.minimize(_call(step, batch, fit), next(iter(movers)))
        returned = None
    value: Any = fit.value if returned is None else check_scalar(jnp.asarray(returned))
    trained, after = parts.structure.read(engine.model, rest)
    measured = jnp.stack([jnp.asarray(one).astype(engine.norms[0].dtype) for one in (value, fit.value, sum(engine.norms))])
    return Taken(trained, after, list(engine.memories.values()), measured, engine.journal.logged)


def _call(step: Own, batch: Any, fit: OwnFit) -> Callable[[Any], Any]:
    """Give a step as a function of the model."""
    return lambda model: step(model, batch, fit)


def to_arrays(batch: Any) -> tuple[Any, bool]:
    """Give a batch with its tensors as arrays that JAX takes, and whether it holds nothing else.

    Raises:
        InputError: `bad_data`, integers that JAX would cut.
    """
    leaves, tree = jax.tree.flatten(batch)
    given = [_to_array(leaf) for leaf in leaves]
    return jax.tree.unflatten(tree, given), all(isinstance(leaf, np.ndarray | jax.Array | int | float) for leaf in given)


def _to_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) or not hasattr(leaf, "__array__"):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "fiubc":
        return leaf
    if array.dtype.kind in "iu":
        return prepare(array, "batch")
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
