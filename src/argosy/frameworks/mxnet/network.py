"""The network of a neutral description in Gluon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.frameworks.mxnet.library import mx
from argosy.frameworks.mxnet.weights import set_weights
from argosy.signature import Arrays

__all__ = ["build_network"]


def build_network(layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
    """Build a hybrid model; see `base.Framework.build_network`."""
    model = mx.gluon.nn.HybridSequential()
    shapes = list_shapes(layers, input_shape)
    for index, (name, layer) in enumerate(zip(name_layers(layers), layers, strict=True)):
        model.register_child(_build_layer(layer, shapes[index]), name)
    model.cast(next(iter(weights.values())).dtype)
    model.initialize()
    own: Arrays = {}
    for name, array in weights.items():
        layer, _, kind = name.partition(".")
        if isinstance(model._children[layer], mx.gluon.nn.BatchNorm):
            kind = "gamma" if kind == "weight" else "beta"
        # Gluon keeps the matrix of a dense layer as (out, in).
        own[f"{layer}.{kind}"] = array.T if array.ndim == 2 else array
    set_weights(model, own)
    model.hybridize(static_alloc=True)
    return model


def _build_layer(layer: Layer, shape: tuple[int, ...]) -> Any:
    """Make a layer for rows of this shape."""
    nn = mx.gluon.nn
    match layer:
        case Conv(channels, kernel):
            return nn.Conv2D(channels, kernel, padding=kernel // 2, in_channels=shape[0])
        case BatchNorm():
            return nn.BatchNorm(epsilon=1e-5, momentum=0.9, in_channels=shape[0])
        case Relu():
            return nn.Activation("relu")
        case MaxPool(size):
            return nn.MaxPool2D(size)
        case Flatten():
            return nn.Flatten()
        case Dropout(rate):
            return nn.Dropout(rate)
        case Dense(units):
            return nn.Dense(units, in_units=shape[0])
