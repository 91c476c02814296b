"""A neutral description of a network, from which every framework builds the same one.

Rows are channels first: (channels, height, width), or (units,) after `Flatten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BatchNorm", "Conv", "Dense", "Dropout", "Flatten", "Layer", "MaxPool", "Relu", "name_layers"]


@dataclass(frozen=True)
class Conv:
    """Convolution over height and width, stride 1, zero-padded so that both stay; with bias."""

    channels: int
    kernel: int = 3
    """Odd."""


@dataclass(frozen=True)
class BatchNorm:
    """Normalise each channel by the batch's mean and variance; when served, by their running means."""


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
