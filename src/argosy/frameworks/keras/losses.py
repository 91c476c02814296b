"""Losses of a training step on Keras' tensors, the same on every backend; of one output or several, with weights of rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.loss_trees import Compute, fail_unweighable, is_targets_first, open_losses, takes_weights
from argosy.frameworks.trees import Tree

__all__ = ["CompiledLoss", "open_loss"]

keras: Any = importlib.import_module("keras")

_PACKAGES: Final = ("keras", "tensorflow")
"""Whose functions have targets first."""


class CompiledLoss:
    """A function that a model was compiled with: Keras calls it with targets first, whatever its arguments are called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take the function."""
        self.func = function

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        """Call it."""
        return self.func(y_true, y_pred)


def _binary_cross_entropy(y: Any, outputs: Any) -> Any:
    return keras.ops.binary_crossentropy(y, outputs, from_logits=True)


def _cross_entropy(y: Any, outputs: Any) -> Any:
    return keras.ops.sparse_categorical_crossentropy(y, outputs, from_logits=True)


def _half_mse(y: Any, outputs: Any) -> Any:
    return 0.5 * keras.ops.sum(keras.ops.square(outputs - y), axis=tuple(range(1, len(outputs.shape))))


def _mse(y: Any, outputs: Any) -> Any:
    return keras.ops.square(outputs - y)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "half_mse": _half_mse,
    "mse": _mse,
}
"""From targets and outputs, which are in single or double precision; what is left of axes is averaged."""


def open_loss(loss: Tree, options: FitOptions) -> Compute:
    """Give what a step makes small.

    Args:
        loss: see `base.Framework.build_step`; a `keras.losses.Loss` is used as it is, a function is called with targets first if
            it is Keras' own, or its arguments are called so.
        options: of the run.

    Raises:
        InputError: `bad_option`, a loss that cannot be passed in pieces, or whose arguments nobody can tell apart.
    """
    return open_losses(loss, options.loss_weights, lambda leaf: _open_leaf(leaf, options))


def _open_leaf(loss: Any, options: FitOptions) -> Compute:
    if options.micro_batch_size and getattr(loss, "reduction", "mean") in ("sum", "none", None):
        raise InputError("bad_option", option="loss", got=f"reduction {loss.reduction}", expected="a mean, with micro-batches")
    if isinstance(loss, keras.losses.Loss):
        own: Any = loss
        return lambda outputs, targets, weights: _reduce(own(targets, outputs, sample_weight=weights), None, outputs)
    function: Any = _LOSSES[loss] if isinstance(loss, str) else loss
    is_known = isinstance(loss, str | CompiledLoss)
    has_targets_first = is_known or is_targets_first(function, _PACKAGES)
    has_weights = not is_known and takes_weights(function)

    def compute(outputs: Any, targets: Any, weights: Any) -> Any:
        outputs = keras.tree.map_structure(_widen, outputs)
        if _lacks_axis(targets, outputs):
            # Left alone, (rows,) would be broadcast against (rows, 1).
            targets = keras.ops.expand_dims(targets, -1)
        given = (targets, outputs) if has_targets_first else (outputs, targets)
        if has_weights:
            return _reduce(function(*given, weights), None, outputs)
        return _reduce(function(*given), weights, outputs)

    return compute


def _lacks_axis(targets: Any, outputs: Any) -> bool:
    if not hasattr(targets, "shape") or not hasattr(outputs, "shape"):
        return False
    return len(targets.shape) + 1 == len(outputs.shape) and outputs.shape[-1] == 1


def _widen(output: Any) -> Any:
    is_low = hasattr(output, "dtype") and keras.backend.standardize_dtype(output.dtype) in ("bfloat16", "float16")
    return keras.ops.cast(output, "float32") if is_low else output


def _reduce(value: Any, weights: Any, outputs: Any) -> Any:
    """Give a loss as a scalar: the mean over the rows of what it is for a row, times the row's weight."""
    ops = keras.ops
    if not ops.is_tensor(value):
        raise fail_loss(name_kind(value))
    if len(value.shape) == 0:
        if weights is not None:
            raise fail_unweighable("a loss that gives a scalar")
        return value
    # In a graph of TensorFlow, None counts the rows, and those alone.
    num_rows = keras.tree.flatten(outputs)[0].shape[0]
    if value.shape[0] != num_rows:
        raise fail_loss(f"a tensor of shape {tuple(value.shape)}", num_rows)
    if weights is not None:
        by_row = ops.reshape(value, (-1, _count_others(value)))
        value = ops.sum(by_row, axis=1) / _count_others(value) * ops.cast(weights, value.dtype)
    # keras.ops.mean computes float64 in float32 on JAX and PyTorch.
    return ops.sum(value) / ops.cast(ops.size(value), value.dtype)


def _count_others(value: Any) -> int:
    count = 1
    for length in value.shape[1:]:
        count *= int(length)
    return count
