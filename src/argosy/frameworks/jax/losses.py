"""Losses of flax models: ours, optax' own, functions; of one output or several, with weights of rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.describe import is_library
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.loss_trees import Compute, fail_unweighable, open_losses, takes_weights
from argosy.frameworks.trees import Tree, list_leaves

__all__ = ["check_scalar", "has_gradient", "has_own_code", "open_loss"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
optax: Any = importlib.import_module("optax")
extended: Any = importlib.import_module("jax.extend.core")


def _mse(outputs: Any, targets: Any) -> Any:
    return jnp.square(outputs - targets)


def _half_mse(outputs: Any, targets: Any) -> Any:
    return 0.5 * jnp.square(outputs - targets).reshape(len(outputs), -1).sum(axis=1)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": optax.sigmoid_binary_cross_entropy,
    "cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
    "half_mse": _half_mse,
    "mse": _mse,
}
"""Each gives a number for every row, or for every output of a row."""


def open_loss(loss: Tree, options: FitOptions) -> Compute:
    """Give what a step makes small.

    Args:
        loss: see `base.Framework.build_step`.
        options: of the run.

    Raises:
        InputError: `unknown_choice`, none of our losses has such a name.
    """
    return open_losses(loss, options.loss_weights, _open_leaf)


def _open_leaf(loss: Any) -> Compute:
    if isinstance(loss, str) and loss not in _LOSSES:
        raise InputError("unknown_choice", kind="loss", got=loss, known=list_choices(_LOSSES))
    if isinstance(loss, str) or not takes_weights(loss):
        function: Any = _LOSSES[loss] if isinstance(loss, str) else loss
        return lambda outputs, targets, weights: _reduce(function(outputs, targets), outputs, weights)
    return lambda outputs, targets, weights: _reduce(loss(outputs, targets, weights), outputs, None)


def _reduce(value: Any, outputs: Tree, weights: Any) -> Any:
    """Give a loss as a scalar: the mean over the rows of what it is for a row, times the row's weight.

    Raises:
        InputError: `bad_loss`, it is no number, nor numbers of which the first axis counts rows; `bad_option`, a scalar, which
            weights of rows cannot multiply.
    """
    _check_number(value)
    if value.ndim == 0:
        if weights is not None:
            raise fail_unweighable("a loss that gives a scalar")
        return value
    num_rows = next((len(leaf) for leaf in list_leaves(outputs) if getattr(leaf, "shape", ())), None)
    if num_rows is not None and len(value) != num_rows:
        raise fail_loss(f"a tensor of shape {value.shape}", num_rows)
    if weights is None:
        return jnp.mean(value)
    return jnp.mean(value.reshape(len(value), -1).mean(axis=1) * weights)


def check_scalar(value: Any) -> Any:
    """Give a loss, if it is one number with a fraction.

    Raises:
        InputError: `bad_loss`.
    """
    _check_number(value)
    if value.size != 1:
        raise fail_loss(f"a tensor of shape {value.shape}")
    return value.reshape(())


def _check_number(value: Any) -> None:
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise fail_loss(name_kind(value))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise fail_loss("a number without a gradient")


def has_own_code(loss: Tree) -> bool:
    """Say whether some loss is neither one of ours nor of a library's, so that nobody knows whether it has a gradient."""
    return any(not isinstance(leaf, str) and not is_library(_name_module(leaf), ("jax", "optax")) for leaf in list_leaves(loss))


def _name_module(function: Any) -> str:
    return str(getattr(getattr(function, "func", function), "__module__", None) or "")


def has_gradient(measure: Callable[[Any], Any], weights: Any) -> bool:
    """Say whether a function of weights changes with them at all, as far as JAX differentiates it; it is traced, not run."""

    def differentiate(tangents: Any) -> Any:
        return jax.jvp(measure, (weights,), (tangents,))[1]

    traced: Any = jax.make_jaxpr(differentiate)(weights).jaxpr
    reached: set[Any] = {*traced.invars}
    for equation in traced.eqns:
        if any(isinstance(given, extended.Var) and given in reached for given in equation.invars):
            reached.update(equation.outvars)
    return any(isinstance(given, extended.Var) and given in reached for given in traced.outvars)
