"""Gradients of torch tensors on their way to the other workers of a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from argosy.frameworks.exchange import Exchange

__all__ = ["open_share", "share_gradients"]

torch: Any = importlib.import_module("torch")

_KNOWN: Final = (torch.float32, torch.float64)
"""Types that are averaged as they are; others, such as bfloat16, as float32."""


def open_share(exchange: Exchange | None, model: Any) -> Callable[[float, Sequence[Any]], None] | None:
    """Give what shares the gradients of some weights of a model; None where there is one worker."""
    if exchange is None:
        return None
    return lambda loss, weights: share_gradients(exchange, loss, weights, model.buffers())


def share_gradients(exchange: Exchange, loss: float, weights: Sequence[Any], buffers: Iterable[Any]) -> None:
    """Give weights the gradients of all workers' rows, and running statistics their means, in place.

    Args:
        exchange: where workers meet.
        loss: mean over this worker's rows.
        weights: with their gradients; None is filled where another worker has one.
        buffers: of the model; those with a fraction are averaged.
    """
    has = [weight.grad is not None for weight in weights]
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        elif weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()
    own = [*(weight.grad for weight in weights), *(buffer for buffer in buffers if buffer.is_floating_point())]
    sent = [tensor if tensor.dtype in _KNOWN else tensor.float() for tensor in own]
    arrays = [tensor.detach().numpy() for tensor in sent]
    found = exchange.average(loss, arrays[: len(has)], has, arrays[len(has) :])
    with torch.no_grad():
        for tensor, back in zip(own, sent, strict=True):
            if tensor is not back:
                tensor.copy_(back)
    for weight, is_there in zip(weights, found, strict=True):
        if not is_there:
            weight.grad = None
