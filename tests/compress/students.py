"""Programs with a network of each framework: of 16 numbers to 4, over a hidden layer."""

from __future__ import annotations

from typing import Any

__all__ = ["make_jax", "make_keras", "make_mxnet", "make_tensorflow", "make_torch"]


def make_torch(width: int = 16) -> Any:
    """Linear layers of torch."""
    import torch

    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))


def make_jax(width: int = 16) -> Any:
    """The same in flax.nnx."""
    from flax import nnx

    rngs = nnx.Rngs(1)
    return nnx.Sequential(nnx.Linear(16, width, rngs=rngs), nnx.relu, nnx.Linear(width, 4, rngs=rngs))


def make_keras(width: int = 16) -> Any:
    """The same in Keras."""
    import keras

    keras.utils.set_random_seed(1)
    dense: Any = keras.layers.Dense
    return keras.Sequential([keras.layers.Input((16,)), dense(width, activation="relu"), dense(4)])


def make_tensorflow(width: int = 16) -> Any:
    """The same as a module of TensorFlow."""
    import tensorflow

    tf: Any = tensorflow
    tf.random.set_seed(1)

    class Network(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bias = tf.Variable(tf.random.normal((16, width), stddev=0.3)), tf.Variable(tf.zeros(width))
            self.second = tf.Variable(tf.random.normal((width, 4), stddev=0.3))

        def __call__(self, x: Any) -> Any:
            return tf.nn.relu(x @ self.first + self.bias) @ self.second

    return Network()


def make_mxnet(width: int = 16) -> Any:
    """The same in Gluon."""
    import mxnet

    mx: Any = mxnet
    mx.random.seed(1)
    network = mx.gluon.nn.HybridSequential()
    network.add(mx.gluon.nn.Dense(width, activation="relu", in_units=16), mx.gluon.nn.Dense(4, in_units=width))
    network.initialize(mx.init.Xavier())
    return network


def publish_native(name: str, home: str) -> None:
    """Publish a wide network as its framework saves it; as a script: python -m tests.compress.students NAME HOME."""
    import numpy as np

    import argosy

    rows = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    argosy.publish(globals()[f"make_{name}"](256), "teacher", argosy.Store(home), sample=rows, native=True)


if __name__ == "__main__":
    import sys

    publish_native(*sys.argv[1:])
