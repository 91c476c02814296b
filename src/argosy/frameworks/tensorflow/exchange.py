"""Gradients of TensorFlow's tensors on their way to the other workers of a run: eager, or within a graph."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.exchange import Exchange, average_arrays
from argosy.frameworks.tensorflow.optimizer import make_dense

__all__ = ["share_gradients"]

tf: Any = importlib.import_module("tensorflow")


def share_gradients(
    exchange: Exchange, loss: Any, gradients: Sequence[Any], weights: Sequence[Any], beside: Sequence[Any]
) -> list[Any]:
    """Give the mean of gradients over the rows of all workers, and running statistics theirs.

    Args:
        exchange: where workers meet.
        loss: mean over this worker's rows.
        gradients: of these; None where the loss does not depend on a weight.
        weights: variables.
        beside: variables; what has a fraction is averaged in place.
    """
    statistics = [variable for variable in beside if variable.dtype in (tf.float32, tf.float64)]
    there = [make_dense(gradient) for gradient in gradients if gradient is not None]
    places = [gradient is not None for gradient in gradients]
    kept = [weight for weight, is_there in zip(weights, places, strict=True) if is_there]

    def meet(loss: Any, *arrays: NDArray[Any]) -> list[Any]:
        count = len(kept)
        averaged, means = average_arrays(exchange, float(loss), arrays[:count], kept, arrays[count:])
        return [np.asarray(array) for array in (*averaged, *means)]

    sent = [*there, *(tf.convert_to_tensor(variable) for variable in statistics)]
    back = tf.numpy_function(meet, [loss, *sent], [tensor.dtype for tensor in sent])
    for tensor, own in zip(back, sent, strict=True):
        tensor.set_shape(own.shape)
    for variable, mean in zip(statistics, back[len(there) :], strict=True):
        variable.assign(mean)
    found = iter(back)
    return [next(found) if is_there else None for is_there in places]
