"""Which layer of a Keras model is at fault when a loss is not finite."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["find_bad_layer", "name_layer"]

keras: Any = importlib.import_module("keras")


def find_bad_layer(model: Any, run: Callable[[], object]) -> str | None:
    """Run a forward pass, operator by operator, and watch the layers.

    At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
    """
    ran: list[str] = []
    bad: list[str] = []

    def look(layer: Any, outputs: Any) -> None:
        ran.append(layer.name)
        if not all(map(_is_finite, keras.tree.flatten(outputs))):
            bad.append(layer.name)

    with _watch(list(model._flatten_layers(include_self=False)), look):
        run()
    return (bad or ran[-1:] or [None])[0]


def name_layer(weight: Any) -> str:
    """Name the layer that a variable belongs to: `dense` for `sequential/dense/kernel`."""
    return weight.path.split("/")[-2] if "/" in weight.path else weight.path


def _is_finite(output: Any) -> bool:
    try:
        return bool(np.isfinite(keras.ops.convert_to_numpy(output).astype(np.float64)).all())
    except TypeError:
        # JAX is tracing: the layer is inside of a loop, and the one around the loop will tell.
        return True


@contextmanager
def _watch(layers: list[Any], look: Callable[[Any, Any], None]) -> Generator[None]:
    """Let `look` see what each layer returns."""

    def wrap(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            look(layer, outputs)
            return outputs

        return watched

    for layer in layers:
        layer.call = wrap(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call
