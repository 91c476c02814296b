"""Small Keras models that its tests share, and their training."""

from __future__ import annotations

import os
import random

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from argosy.frameworks.base import Batch, FitOptions
from argosy.frameworks.keras import FRAMEWORK
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.optim import SGD, Adam

BACKEND = keras.backend.backend()
HAS_DOUBLE = BACKEND != "jax" or os.environ.get("JAX_ENABLE_X64") == "1"
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Of float32 over a few steps."""
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


def make_mlp(units=1, **options):
    random.seed(3)  # Keras draws the seeds of its initialisers from it.
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh", name="hidden", **options), keras.layers.Dense(units, name="last")]
    )


def make_lstm():
    random.seed(4)
    return keras.Sequential([keras.Input((6, 5)), keras.layers.LSTM(8), keras.layers.Dense(2)])


def make_embedding():
    random.seed(5)
    layers = [keras.Input((6,), dtype="int32"), keras.layers.Embedding(30, 4), keras.layers.GlobalAveragePooling1D()]
    return keras.Sequential([*layers, keras.layers.Dense(3)])


def fit(model, x, y, loss="mse", optimizer=None, steps=1, **options):
    step = FRAMEWORK.build_step(model, loss, optimizer or SGD(learning_rate=0.1), FitOptions(**options))
    found = [step(Batch(x, y), number) for number in range(1, steps + 1)]
    step.sync()
    return found


def run_noisy(seed, numbers, state=None):
    """Train the network with dropout and batch normalisation over some steps; gives losses and the state after them."""
    with FRAMEWORK.session(0, None):
        x, y = make_rows(48, *ROW), make_labels(48)
        step = FRAMEWORK.build_step(make_network(NOISY), "cross_entropy", Adam(clip_norm=1.0), FitOptions(seed=seed))
        if state:
            step.set_state(state)
        batches = [(number, slice(number % 3 * 16, number % 3 * 16 + (16 if number % 4 else 11))) for number in numbers]
        return [step(Batch(x[rows], y[rows]), number)[0] for number, rows in batches], step.get_state()


def assert_same_weights(one, other, **tolerance):
    expected = FRAMEWORK.get_weights(one)
    got = FRAMEWORK.get_weights(other)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, err_msg=name, **(tolerance or ROUNDING))
