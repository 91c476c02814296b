"""A neutral description of a network, from which every framework builds the same one.

Rows are channels first: (channels, height, width), or (units,) after `Flatten`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from argosy.signature import Arrays

__all__ = [
    "BatchNorm",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "MaxPool",
    "Relu",
    "draw_weights",
    "list_shapes",
    "name_layers",
]


@dataclass(frozen=True)
class Conv:
    """Convolution over height and width, stride 1, zero-padded so that both stay; with bias."""

    channels: int
    kernel: int = 3
    """Odd."""


@dataclass(frozen=True)
class BatchNorm:
    """Normalise each channel by the batch's mean and variance; when served, by their running means.

    With a learnt scale and shift. 1e-5 is added to the variance; a step moves the running means by a tenth.
    """


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""


@dataclass(frozen=True)
class MaxPool:
    """Largest of each `size` x `size` square; height and width shrink by `size`."""

    size: int = 2


@dataclass(frozen=True)
class Flatten:
    """One axis from all, in row-major order."""


@dataclass(frozen=True)
class Dropout:
    """Zero each value with this probability while training, and scale the others up; nothing when served."""

    rate: float


@dataclass(frozen=True)
class Dense:
    """Matrix product with bias."""

    units: int


Layer = Conv | BatchNorm | Relu | MaxPool | Flatten | Dropout | Dense


def name_layers(layers: Sequence[Layer]) -> list[str]:
    """Name each layer by its kind and its place among its kind: conv1, relu1, conv2 ..."""
    kinds = [type(layer).__name__.lower() for layer in layers]
    return [f"{kind}{kinds[: index + 1].count(kind)}" for index, kind in enumerate(kinds)]


def list_shapes(layers: Sequence[Layer], input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Give the shape of a row before each layer, and after the last."""
    shapes = [input_shape]
    for layer in layers:
        shape = shapes[-1]
        match layer:
            case Conv(channels):
                shapes.append((channels, *shape[1:]))
            case MaxPool(size):
                shapes.append((shape[0], shape[1] // size, shape[2] // size))
            case Flatten():
                shapes.append((math.prod(shape),))
            case Dense(units):
                shapes.append((units,))
            case BatchNorm() | Relu() | Dropout():
                shapes.append(shape)
    return shapes


def draw_weights(layers: Sequence[Layer], input_shape: tuple[int, ...], seed: int) -> Arrays:
    """Draw the first weights of a network, the same ones for every framework.

    Args:
        layers: of the network.
        input_shape: of one row, channels first.
        seed: the same one draws the same weights.

    Returns:
        float32 arrays by `LAYER.weight` and `LAYER.bias`, LAYER as `name_layers` says: of `Conv` (out, in, height,
        width), of `Dense` (in, out), both uniform within sqrt(6 / fan_in) for what is followed by a `Relu`, else within
        sqrt(3 / fan_in); of `BatchNorm` ones; every bias zeros.

    Source: He et al. 2015, arXiv:1502.01852, eq. 10, as a uniform distribution.
    """
    random = np.random.default_rng([seed, 0x1A7E12])
    shapes = list_shapes(layers, input_shape)
    weights: Arrays = {}
    for index, (name, layer) in enumerate(zip(name_layers(layers), layers, strict=True)):
        num_in = shapes[index][0]
        gain = 6.0 if any(isinstance(after, Relu) for after in layers[index + 1 : index + 3]) else 3.0
        match layer:
            case Conv(channels, kernel):
                bound = math.sqrt(gain / (num_in * kernel * kernel))
                weights[f"{name}.weight"] = random.uniform(-bound, bound, (channels, num_in, kernel, kernel)).astype(np.float32)
                weights[f"{name}.bias"] = np.zeros(channels, np.float32)
            case Dense(units):
                bound = math.sqrt(gain / num_in)
                weights[f"{name}.weight"] = random.uniform(-bound, bound, (num_in, units)).astype(np.float32)
                weights[f"{name}.bias"] = np.zeros(units, np.float32)
            case BatchNorm():
                weights[f"{name}.weight"] = np.ones(num_in, np.float32)
                weights[f"{name}.bias"] = np.zeros(num_in, np.float32)
            case Relu() | MaxPool() | Flatten() | Dropout():
                pass
    return weights
