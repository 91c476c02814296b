"""The network of a neutral description, of Keras' own layers. Rows come channels first; inside, channels are last."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.keras.arrays import to_numpy
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.signature import Arrays

__all__ = ["build_network"]

keras: Any = importlib.import_module("keras")

_FIRST_TO_LAST: Final = (2, 3, 1)
_LAST_TO_FIRST: Final = (3, 1, 2)
"""Of a row's axes, counted from 1. The convolutions of most backends have no channels-first kernels on the CPU."""


def build_network(layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
    """Build a functional model; see `base.Framework.build_network`.

    Raises:
        InputError: `bad_option`, float64 weights on JAX, which has it only if JAX_ENABLE_X64 is set.
    """
    dtype = next(iter(weights.values())).dtype
    check_precision(dtype)
    inputs = keras.Input(input_shape, dtype=dtype.name, name="input")
    outputs = inputs
    if len(input_shape) == 3:
        outputs = keras.layers.Permute(_FIRST_TO_LAST, dtype=dtype.name, name="channels_last")(outputs)
    shapes = list_shapes(layers, input_shape)
    made: dict[str, Any] = {}
    for index, (name, layer) in enumerate(zip(name_layers(layers), layers, strict=True)):
        if isinstance(layer, Flatten) and len(shapes[index]) == 3:
            # Row-major over channels first, so that the weights after it mean the same in every framework.
            outputs = keras.layers.Permute(_LAST_TO_FIRST, dtype=dtype.name, name=f"{name}_channels_first")(outputs)
        made[name] = _build_layer(layer, name, dtype.name)
        outputs = made[name](outputs)
    if len(shapes[-1]) == 3:
        outputs = keras.layers.Permute(_LAST_TO_FIRST, dtype=dtype.name, name="channels_first")(outputs)
    for name, layer in made.items():
        if f"{name}.weight" in weights:
            weight = weights[f"{name}.weight"]
            own = [weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight, weights[f"{name}.bias"]]
            # After them, BatchNormalization has its running mean and variance.
            layer.set_weights([*own, *map(to_numpy, layer.weights[2:])])
    return keras.Model(inputs, outputs, name="network")


def check_precision(dtype: np.dtype[Any]) -> None:
    """See that the backend has this type.

    Raises:
        InputError: `bad_option`, float64 on JAX, which would take it for float32 unless JAX_ENABLE_X64 is set.
    """
    if dtype == np.float64 and keras.backend.backend() == "jax":
        jax: Any = importlib.import_module("jax")
        if not jax.config.jax_enable_x64:
            expected = "float32, or jax.config.update('jax_enable_x64', True) before the first model"
            raise InputError("bad_option", option="weights", got="float64", expected=expected)


def _build_layer(layer: Layer, name: str, dtype: str) -> Any:
    kinds = keras.layers
    match layer:
        case Conv(channels, kernel):
            return kinds.Conv2D(channels, kernel, padding="same", data_format="channels_last", name=name, dtype=dtype)
        case BatchNorm():
            return kinds.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name, dtype=dtype)
        case Relu():
            return kinds.ReLU(name=name, dtype=dtype)
        case MaxPool(size):
            return kinds.MaxPooling2D(size, data_format="channels_last", name=name, dtype=dtype)
        case Flatten():
            return kinds.Flatten(data_format="channels_last", name=name, dtype=dtype)
        case Dropout(rate):
            return kinds.Dropout(rate, name=name, dtype=dtype)
        case Dense(units):
            return kinds.Dense(units, name=name, dtype=dtype)
