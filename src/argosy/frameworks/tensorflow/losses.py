"""Losses of modules: ours, TensorFlow's and Keras' own, functions; of one output or several, with weights of rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.loss_trees import Compute, fail_unweighable, is_targets_first, open_losses, takes_weights
from argosy.frameworks.trees import Tree

__all__ = ["open_loss", "reduce_loss"]

tf: Any = importlib.import_module("tensorflow")


def _half_mse(y: Any, outputs: Any) -> Any:
    return 0.5 * tf.reduce_sum(tf.square(outputs - y), axis=tf.range(1, tf.rank(outputs)))


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": tf.nn.sigmoid_cross_entropy_with_logits,
    "cross_entropy": tf.nn.sparse_softmax_cross_entropy_with_logits,
    "half_mse": _half_mse,
    "mse": tf.math.squared_difference,
}
"""From targets and outputs; what is left of axes is averaged."""


def open_loss(loss: Tree, options: FitOptions) -> Compute:
    """Give what a step makes small.

    Args:
        loss: see `base.Framework.build_step`; a function is called with targets first if it is TensorFlow's or Keras', or its
            arguments are called so.
        options: of the run.

    Raises:
        InputError: `bad_option`, a loss that cannot be passed in pieces, or whose arguments nobody can tell apart.
    """
    return open_losses(loss, options.loss_weights, lambda leaf: _open_leaf(leaf, options))


def _open_leaf(loss: Any, options: FitOptions) -> Compute:
    function: Any = _LOSSES[loss] if isinstance(loss, str) else loss
    if options.micro_batch_size and getattr(function, "reduction", "mean") in ("sum", "none", None):
        raise InputError(
            "bad_option", option="loss", got=f"reduction {function.reduction}", expected="a mean, with micro-batches"
        )
    if hasattr(function, "reduction"):  # A loss of Keras' classes.
        return lambda outputs, targets, weights: reduce_loss(function(targets, outputs, sample_weight=weights), None)
    has_targets_first = isinstance(loss, str) or is_targets_first(function, ("tensorflow", "keras"))
    has_weights = not isinstance(loss, str) and takes_weights(function)

    def compute(outputs: Any, targets: Any, weights: Any) -> Any:
        given = (targets, outputs) if has_targets_first else (outputs, targets)
        if has_weights:
            return reduce_loss(function(*given, weights), None)
        return reduce_loss(function(*given), weights)

    return compute


def reduce_loss(value: Any, weights: Any) -> Any:
    """Give a loss as a scalar: the mean over the rows of what it is for a row, times the row's weight.

    Raises:
        InputError: `bad_loss`, it is no number, nor numbers of which the first axis counts rows; `bad_option`, a scalar, which
            weights of rows cannot multiply.
    """
    if not tf.is_tensor(value):
        raise fail_loss(name_kind(value))
    rank = value.shape.rank
    if rank and tf.inside_function() and value.shape[0] is not None:  # Only that of the rows is of any length there.
        raise fail_loss(f"a tensor of shape {tuple(value.shape)}")
    if weights is None:
        return value if rank == 0 else tf.reduce_mean(value)
    if rank == 0:
        raise fail_unweighable("a loss that gives a scalar")
    by_row = tf.reduce_mean(tf.reshape(value, (tf.shape(value)[0], -1)), axis=1)
    return tf.reduce_mean(by_row * tf.cast(weights, by_row.dtype))
