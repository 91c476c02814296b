"""The network of a neutral description as a `tf.Module`. Rows come channels first; inside, channels are last."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.signature import Arrays

__all__ = ["Network"]

tf: Any = importlib.import_module("tensorflow")

_EPSILON: Final = 1e-5
_MOMENTUM: Final = 0.1
"""Of the running means; both as `layers.BatchNorm` says."""

_FIRST_TO_LAST: Final = (0, 2, 3, 1)
_LAST_TO_FIRST: Final = (0, 3, 1, 2)
"""TensorFlow's convolutions have no channels-first kernels on the CPU."""


class _Layer(tf.Module):
    """One layer. Names of variables are such that a module's order, the alphabet's, has a weight before its bias."""

    def __init__(self, name: str) -> None:
        super().__init__(name)  # pyright: ignore[reportUnknownMemberType]

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        raise NotImplementedError


class _Conv(_Layer):
    def __init__(self, name: str, weight_OIHW: NDArray[Any], bias: NDArray[Any]) -> None:  # noqa: N803 - a shape
        super().__init__(name)
        self.kernel = tf.Variable(weight_OIHW.transpose(2, 3, 1, 0))
        self.offset = tf.Variable(bias)

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        return tf.nn.conv2d(x, self.kernel, strides=1, padding="SAME") + self.offset


class _Dense(_Layer):
    def __init__(self, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> None:
        super().__init__(name)
        self.kernel = tf.Variable(weight)
        self.offset = tf.Variable(bias)

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        # The gradient of tf.nn.bias_add sums rows one after the other: after 100 steps ten times as far from float64.
        return tf.matmul(x, self.kernel) + self.offset


class _BatchNorm(_Layer):
    def __init__(self, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> None:
        super().__init__(name)
        self.scale = tf.Variable(weight)
        self.shift = tf.Variable(bias)
        self.running_mean = tf.Variable(np.zeros_like(bias), trainable=False)
        self.running_variance = tf.Variable(np.ones_like(bias), trainable=False)

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        mean, variance = self.running_mean, self.running_variance
        if training:
            mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
            self.running_mean.assign_add(_MOMENTUM * (mean - self.running_mean))
            self.running_variance.assign_add(_MOMENTUM * (variance - self.running_variance))
        return tf.nn.batch_normalization(x, mean, variance, self.shift, self.scale, _EPSILON)


class _MaxPool(_Layer):
    def __init__(self, name: str, size: int) -> None:
        super().__init__(name)
        self.size = size

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        return tf.nn.max_pool2d(x, self.size, self.size, "VALID")


class _Relu(_Layer):
    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        return tf.nn.relu(x)


class _Flatten(_Layer):
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(name)
        self.shape = shape
        """Of a row before it, channels first."""

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        if len(self.shape) == 3:
            x = tf.transpose(x, _LAST_TO_FIRST)
        return tf.reshape(x, (-1, int(np.prod(self.shape))))


class _Dropout(_Layer):
    def __init__(self, name: str, rate: float, number: int) -> None:
        super().__init__(name)
        self.rate = rate
        self.number = number
        """Of the layer: two of a network must not drop alike."""

    def __call__(self, x: Any, training: bool, seed: Any) -> Any:
        if not training:
            return x
        if seed is None:
            raise InputError("bad_option", option="seed", got=None, expected="two integers, to train a network with dropout")
        own = tf.random.experimental.stateless_fold_in(tf.convert_to_tensor(seed), self.number)
        return tf.nn.experimental.stateless_dropout(x, self.rate, own)


class Network(tf.Module):
    """A network of `layers.Layer`s.

    `__call__(x, training=False, seed=None)`: x has shape (rows, *input_shape); `seed` is a pair of integers, as the
    operators of `tf.random` whose names begin with `stateless` take it, and decides what dropout drops.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> None:
        """Build it; see `base.Framework.build_network`."""
        super().__init__("network")  # pyright: ignore[reportUnknownMemberType]
        shapes = list_shapes(layers, input_shape)
        self._ranks = len(shapes[0]), len(shapes[-1])
        self.layers = [
            _build_layer(layer, name, shapes[index], weights, index)
            for index, (name, layer) in enumerate(zip(name_layers(layers), layers, strict=True))
        ]

    def __call__(self, x: Any, training: bool = False, seed: Any = None) -> Any:
        """Answer rows, shape (rows, *output_shape)."""
        rank_in, rank_out = self._ranks
        x = tf.convert_to_tensor(x)
        if rank_in == 3:
            x = tf.transpose(x, _FIRST_TO_LAST)
        for layer in self.layers:
            x = layer(x, training, seed)
        return tf.transpose(x, _LAST_TO_FIRST) if rank_out == 3 else x


def _build_layer(layer: Layer, name: str, shape: tuple[int, ...], weights: Arrays, number: int) -> _Layer:
    match layer:
        case Conv():
            return _Conv(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
        case Dense():
            return _Dense(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
        case BatchNorm():
            return _BatchNorm(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
        case MaxPool(size):
            return _MaxPool(name, size)
        case Relu():
            return _Relu(name)
        case Flatten():
            return _Flatten(name, shape)
        case Dropout(rate):
            return _Dropout(name, rate, number)
