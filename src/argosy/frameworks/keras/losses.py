"""Losses of a training step on Keras' tensors, the same on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

__all__ = ["take_loss"]

keras: Any = importlib.import_module("keras")


def _mean(values: Any) -> Any:
    # keras.ops.mean computes float64 in float32 on JAX and PyTorch.
    return keras.ops.sum(values) / keras.ops.cast(keras.ops.size(values), values.dtype)


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


def take_loss(loss: Any) -> Callable[[Any, Any], Any]:
    """Give a loss as a function of targets and outputs that is a mean over the rows.

    Args:
        loss: a name of `train.losses.LOSSES`; a `keras.losses.Loss`, used as it is; or a function of (y_true, y_pred).
    """
    if isinstance(loss, keras.losses.Loss):
        return loss
    compute = _LOSSES[loss] if isinstance(loss, str) else loss

    def measure(y: Any, outputs: Any) -> Any:
        if keras.backend.standardize_dtype(outputs.dtype) in ("bfloat16", "float16"):
            outputs = keras.ops.cast(outputs, "float32")
        if len(y.shape) + 1 == len(outputs.shape) and outputs.shape[-1] == 1:
            # Left alone, (rows,) would be broadcast against (rows, 1).
            y = keras.ops.expand_dims(y, -1)
        return _mean(compute(y, outputs))

    return measure
