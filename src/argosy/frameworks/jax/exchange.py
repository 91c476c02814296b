"""Gradients of JAX arrays on their way to the other workers of a run, within a compiled function or without."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from argosy.frameworks.exchange import Exchange, average_arrays

__all__ = ["share_gradients"]

jax: Any = importlib.import_module("jax")
_experimental: Any = importlib.import_module("jax.experimental")


def share_gradients(
    exchange: Exchange, loss: Any, gradients: Sequence[Any], beside: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Give the mean of gradients over the rows of all workers, and of what has a fraction beside them.

    Args:
        exchange: where workers meet.
        loss: mean over this worker's rows.
        gradients: of these.
        beside: running statistics; what has no fraction stays.
    """
    places = [index for index, leaf in enumerate(beside) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)]
    count = len(gradients)

    def meet(loss: Any, *leaves: Any) -> list[Any]:
        arrays = [np.asarray(leaf) for leaf in leaves]
        averaged, means = average_arrays(exchange, float(np.asarray(loss)), arrays[:count], arrays[:count], arrays[count:])
        return [np.asarray(array) for array in (*averaged, *means)]

    sent = [*gradients, *(beside[place] for place in places)]
    forms = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in sent]
    back = _experimental.io_callback(meet, forms, loss, *sent, ordered=True)
    after = list(beside)
    for place, mean in zip(places, back[count:], strict=True):
        after[place] = mean
    return list(back[:count]), after
