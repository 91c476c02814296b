"""Small flax.nnx models that the tests of JAX share."""

from __future__ import annotations

import hashlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from argosy.frameworks.base import Batch, FitOptions, get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.optim import Adam, CosineDecay

FRAMEWORK = get_framework("jax")
LAYERS = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(7), Relu(), Dense(3))
ROW = (2, 6, 4)


class Embedding(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(50, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.embed(x).mean(axis=1))


class Recurrent(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.lstm = nnx.RNN(nnx.LSTMCell(5, 8, rngs=rngs))
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.lstm(x)[:, -1])


class Deep(nnx.Module):
    """Layers in a list, more than ten; a value that is sown; variables that no optimizer may change."""

    def __init__(self, num_layers=12):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(num_layers)])
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.fixed = nnx.Variable(jnp.ones(4))
        self.table = nnx.Param(jnp.arange(4))
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.tanh(block(x)) * self.fixed[...]
        self.count[...] += 1
        return self.head(x)


class Mean(nnx.Module):
    """Its rows change each other's answers."""

    def __init__(self):
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(x - x.mean(axis=0))


class Branching(Mean):
    def __call__(self, x):
        return self.head(x) if float(x.sum()) > 0 else x


class Apply(nnx.Module):
    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


class Scaled(nnx.Module):
    def __init__(self, function):
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.middle = Apply(function)
        self.last = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(self.middle(self.first(x)))


def make_network(layers=LAYERS, row=ROW, dtype="float32"):
    return FRAMEWORK.build_network(layers, row, {name: w.astype(dtype) for name, w in draw_weights(layers, row, 0).items()})


def make_mlp(dtype="float32", units=1):
    return make_network((Dense(8), Relu(), Dense(units)), (4,), dtype)


def make_rows(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def make_labels(num_rows, num_classes=3):
    return np.random.default_rng(1).integers(0, num_classes, num_rows)


def digest(arrays):
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def build_resumed(micro_batch_size=None):
    rule = Adam(learning_rate=CosineDecay(0.05, steps=8), clip_norm=1.0, weight_decay=1e-3)
    return FRAMEWORK.build_step(make_network(), "cross_entropy", rule, FitOptions(seed=5, micro_batch_size=micro_batch_size))


def take_steps(step, numbers, x, y):
    return [step(Batch(x[: 16 if number % 3 else 11], y[: 16 if number % 3 else 11]), number)[0] for number in numbers]


def go_on(path):
    """Run in another process: go on from a state for three steps, and print what comes of it."""
    step = build_resumed()
    with np.load(path) as file:
        step.set_state(dict(file))
    losses = take_steps(step, (4, 5, 6), make_rows(16, *ROW), make_labels(16))
    print(digest(step.get_state()), losses)
