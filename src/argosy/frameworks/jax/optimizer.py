"""Argosy's optimizers as gradient transformations of optax."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.jax.state import name_leaves
from argosy.optim import GradientOptimizer
from argosy.optim.base import Scalars

__all__ = ["RuleOptimizer", "RuleState", "measure_norm", "sum_squares"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
optax: Any = importlib.import_module("optax")

_SMALL: Final = 2.0**-70
"""The largest float32 times it, squared and summed over a billion weights, is a float32."""


class RuleState(NamedTuple):
    """What a rule remembers."""

    count: Any
    """Steps taken so far; an int32 array of no axes."""
    slots: dict[str, Any]
    """By the rule's own names; each a tree like that of the weights."""


class RuleOptimizer(optax.GradientTransformationExtraArgs):
    """One of Argosy's optimizers where optax takes a gradient transformation; the same rule as its NumPy reference.

    `update(gradients, state, weights)` needs the weights, and gives what `optax.apply_updates` adds to them.

    >>> import jax.numpy as jnp
    >>> from argosy.optim import SGD
    >>> optimizer = RuleOptimizer(SGD(learning_rate=0.5))
    >>> updates, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)), jnp.zeros(1))
    >>> updates.tolist()
    [-0.5]
    """

    rule: GradientOptimizer

    def __new__(cls, rule: GradientOptimizer) -> RuleOptimizer:
        """Follow a rule."""

        def update(
            gradients: Any, state: RuleState, weights: Any = None, *, scalars: Any = None, norm: Any = None, **others: Any
        ) -> tuple[Any, RuleState]:
            return _update(rule, gradients, state, weights, scalars, norm)

        def init(weights: Any) -> RuleState:
            return _init(rule, weights)

        self: RuleOptimizer = optax.GradientTransformationExtraArgs.__new__(cls, init, update)
        self.rule = rule
        return self


def _init(rule: GradientOptimizer, weights: Any) -> RuleState:
    return RuleState(jnp.zeros((), jnp.int32), {slot: jax.tree.map(jnp.zeros_like, weights) for slot in rule.slots})


def _update(
    rule: GradientOptimizer, gradients: Any, state: RuleState, weights: Any, scalars: Any, norm: Any
) -> tuple[Any, RuleState]:
    """Take a step.

    Args:
        rule: to follow.
        gradients: means over the rows; a tree like that of the weights.
        state: from `_init` or the step before.
        weights: a tree of arrays.
        scalars: of the step, an array of three, where they are known already.
        norm: of all gradients together, where it is known already.
    """
    if weights is None:
        raise InputError("bad_option", option="params", got=None, expected="the weights, which the rule needs")
    leaves, tree = jax.tree.flatten(weights)
    given = tree.flatten_up_to(gradients)
    if rule.clip_norm is not None:
        norm = measure_norm(given) if norm is None else norm
        scale = jnp.where(norm > rule.clip_norm, rule.clip_norm / norm, 1.0)
        given = [gradient * scale.astype(gradient.dtype) for gradient in given]
    if rule.clip_value is not None:
        given = [jnp.clip(gradient, -rule.clip_value, rule.clip_value) for gradient in given]
    shared: Any = _read_scalars(rule, state.count) if scalars is None else scalars
    slots = {slot: tree.flatten_up_to(values) for slot, values in state.slots.items()}
    names = name_leaves(weights) if rule.groups else [""] * len(leaves)
    updates: list[Any] = []
    for index, (name, weight, gradient) in enumerate(zip(names, leaves, given, strict=True)):
        own = {slot: values[index] for slot, values in slots.items()}
        # Half a float's rate and corrections are kept as float32: its own type would round them too far.
        dtype = jnp.promote_types(weight.dtype, jnp.float32)
        scalars = Scalars(*(value.astype(dtype) for value in shared))
        if group := rule.find_group(name):
            scalars = scalars._replace(rate=scalars.rate * group.rate_factor)
        moved, after = rule.for_weight(name).move(weight, gradient, own, scalars, jnp.sqrt)
        updates.append((moved - weight).astype(weight.dtype))
        for slot, values in slots.items():
            values[index] = after[slot].astype(own[slot].dtype)
    remembered = {slot: tree.unflatten(values) for slot, values in slots.items()}
    return tree.unflatten(updates), RuleState(state.count + 1, remembered)


def _read_scalars(rule: GradientOptimizer, count: Any) -> Any:
    """Give the scalars of the step after `count` steps.

    A schedule is Python, and computes in double precision: a compiled function calls it back.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.pure_callback(partial(_compute_scalars, rule, dtype), jax.ShapeDtypeStruct((3,), dtype), count)


def _compute_scalars(rule: GradientOptimizer, dtype: Any, count: Any) -> NDArray[Any]:
    return np.array(rule.scalars_at(int(count) + 1), dtype)


def sum_squares(gradients: Any, scale: float = 1.0) -> Any:
    """Give the sum of the squares of all gradients, each taken `scale` times."""
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) * scale for leaf in jax.tree.leaves(gradients)]
    return sum(jnp.vdot(leaf, leaf) for leaf in leaves)


def measure_norm(gradients: Any) -> Any:
    """Give the Euclidean norm of all gradients together; not finite only if one of them is not.

    The squares of large float32 gradients overflow. Those of the same gradients made small do not, and all that is lost
    among them is far too small to count beside what overflowed.
    """
    squares = sum_squares(gradients)
    large = jnp.sqrt(sum_squares(gradients, _SMALL)) / _SMALL
    return jnp.where(jnp.isfinite(squares), jnp.sqrt(squares), large)
