"""Gradients of MXNet's parameters on their way to the other workers of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from argosy.frameworks.exchange import Exchange, average_arrays
from argosy.frameworks.mxnet.library import mx

__all__ = ["share_gradients"]


def share_gradients(exchange: Exchange, loss: float, trained: Sequence[Any], others: Iterable[Any]) -> None:
    """Give parameters the gradients of all workers' rows, and running statistics their means, in place.

    Args:
        exchange: where workers meet.
        loss: mean over this worker's rows.
        trained: parameters; those that the last pass went through have a gradient.
        others: parameters of the model; those without a gradient are running statistics.
    """
    statistics = [own for own in others if own.grad_req == "null" and np.dtype(own.dtype).kind == "f"]
    gradients = [own.grad().asnumpy() if own.data()._fresh_grad else None for own in trained]
    averaged, means = average_arrays(exchange, loss, gradients, trained, [own.data().asnumpy() for own in statistics])
    for own, gradient in zip(trained, averaged, strict=True):
        if gradient is not None:
            mx.nd.array(gradient, dtype=gradient.dtype).copyto(own.grad())
            own.data()._fresh_grad = True
    for own, mean in zip(statistics, means, strict=True):
        own.set_data(mx.nd.array(mean, dtype=mean.dtype))
