"""A neutral network description as a flax.nnx module."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from argosy.frameworks.jax.state import open_precision, set_weights
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.signature import Arrays

__all__ = ["Network", "build_network"]

jax: Any = importlib.import_module("jax")
nnx: Any = importlib.import_module("flax.nnx")

_WEIGHT_NAMES: Final[dict[type, str]] = {Conv: "kernel", BatchNorm: "scale", Dense: "kernel"}


class Network(nnx.Module):
    """Layers one after the other, each an attribute of its own name.

    Rows are channels first outside; within, where flax wants them, last.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[Any]) -> None:
        """Take layers and their names."""
        self.names = tuple(names)
        for name, layer in zip(names, layers, strict=True):
            setattr(self, name, layer)

    def __call__(self, x: Any) -> Any:
        """Answer rows."""
        if x.ndim == 4:
            x = x.transpose(0, 2, 3, 1)
        for name in self.names:
            x = getattr(self, name)(x)
        return _move_channels(x)


class _Function(nnx.Module):
    """A layer without weights."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, x: Any) -> Any:
        return self.function(x)


def build_network(layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Network:
    """See `base.Framework.build_network`."""
    dtype = next(iter(weights.values())).dtype
    names = name_layers(layers)
    with open_precision(is_double=dtype == "float64"):
        shapes = list_shapes(layers, input_shape)
        model = Network(names, [_build_layer(layer, shape, dtype) for layer, shape in zip(layers, shapes, strict=False)])
    own: Arrays = {}
    for name, layer in zip(names, layers, strict=True):
        if f"{name}.weight" in weights:
            weight = weights[f"{name}.weight"]
            own[f"{name}.{_WEIGHT_NAMES[type(layer)]}"] = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight
            own[f"{name}.bias"] = weights[f"{name}.bias"]
    set_weights(model, own)
    return model


def _build_layer(layer: Layer, shape: tuple[int, ...], dtype: Any) -> Any:
    """Make a layer for rows of this shape, channels first; its weights are set later."""
    rngs, zeros = nnx.Rngs(0), nnx.initializers.zeros
    match layer:
        case Conv(channels, kernel):
            size = (kernel, kernel)
            return nnx.Conv(shape[0], channels, size, padding="SAME", kernel_init=zeros, param_dtype=dtype, rngs=rngs)
        case BatchNorm():
            # Not the fast variance, a difference of two large numbers.
            return nnx.BatchNorm(shape[0], momentum=0.9, epsilon=1e-5, use_fast_variance=False, param_dtype=dtype, rngs=rngs)
        case Relu():
            return _Function(jax.nn.relu)
        case MaxPool(size):
            # By keywords: jax2onnx converts no other call.
            return _Function(partial(nnx.max_pool, window_shape=(size, size), strides=(size, size)))
        case Flatten():
            return _Function(_flatten)
        case Dropout(rate):
            return nnx.Dropout(rate, rngs=rngs)
        case Dense(units):
            return nnx.Linear(shape[0], units, kernel_init=zeros, param_dtype=dtype, rngs=rngs)


def _flatten(x: Any) -> Any:
    """Make one axis of all but the first, in the order of channels first."""
    x = _move_channels(x)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _move_channels(x: Any) -> Any:
    """Bring the last axis of images to where it is outside."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
