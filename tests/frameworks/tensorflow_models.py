"""Small TensorFlow models that its tests share, and their training."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from argosy.frameworks.base import Batch, FitOptions
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.frameworks.tensorflow import FRAMEWORK
from argosy.optim import SGD, Adam

LAYERS = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.5), Dense(7), Relu(), Dense(3))
NOISY = (Conv(2), BatchNorm(), Flatten(), Dropout(0.5), Dense(3))
"""What a step changes beside weights, and draws, in few operations, as compiling them takes most of the time."""
ROW = (2, 6, 4)


def make_rows(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_labels(num_rows, num_classes=3, seed=1):
    return np.random.default_rng(seed).integers(0, num_classes, num_rows)


def make_network(layers=LAYERS, row=ROW, dtype="float32"):
    return FRAMEWORK.build_network(layers, row, {name: w.astype(dtype) for name, w in draw_weights(layers, row, 0).items()})


class Affine(tf.Module):
    def __init__(self, num_in, num_out, seed=0, name=None):
        super().__init__(name)
        self.kernel = tf.Variable(make_rows(num_in, num_out, seed=seed) / num_in)
        self.offset = tf.Variable(np.zeros(num_out, np.float32))

    def __call__(self, x):
        return x @ self.kernel + self.offset


class Mlp(tf.Module):
    """Takes no `training`; its `__call__` is a graph of its own."""

    def __init__(self, units=1):
        super().__init__()
        self.hidden, self.last = Affine(4, 8), Affine(8, units, seed=1)
        self.scale = tf.Variable(2.0, trainable=False)

    @tf.function
    def __call__(self, x):
        return self.last(self.scale * tf.tanh(self.hidden(x)))


class Recurrent(tf.Module):
    """A loop over time, written as Python's."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.head = Affine(5, 6), Affine(6, 6, seed=1), Affine(6, 2, seed=2)

    def __call__(self, x):
        state = tf.zeros((tf.shape(x)[0], 6))
        for step in tf.range(tf.shape(x)[1]):
            state = tf.tanh(self.inner(x[:, step]) + self.outer(state))
        return self.head(state)


class Embedded(tf.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = tf.Variable(make_rows(30, 4)), Affine(4, 3)

    def __call__(self, x):
        return self.head(tf.reduce_mean(tf.gather(self.table, x), axis=1))


def fit(model, x, y, loss="mse", optimizer=None, steps=1, **options):
    step = FRAMEWORK.build_step(model, loss, optimizer or SGD(learning_rate=0.1), FitOptions(**options))
    return [step(Batch(x, y), number) for number in range(1, steps + 1)]


def run_noisy(seed, numbers, state=None):
    """Train the network with dropout and batch normalisation over some steps; gives losses and the state after them."""
    with FRAMEWORK.session(0, None):
        x, y = make_rows(48, *ROW), make_labels(48)
        step = FRAMEWORK.build_step(make_network(NOISY), "cross_entropy", Adam(clip_norm=1.0), FitOptions(seed=seed))
        if state:
            step.set_state(state)
        batches = [(number, slice(number % 3 * 16, number % 3 * 16 + (16 if number % 4 else 11))) for number in numbers]
        return [step(Batch(x[rows], y[rows]), number)[0] for number, rows in batches], step.get_state()
