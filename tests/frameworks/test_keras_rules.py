"""Argosy's rules as a Keras optimizer.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; see `test_keras_backends.py`.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from argosy.frameworks.base import Batch, FitOptions
from argosy.frameworks.keras import FRAMEWORK, RuleOptimizer
from argosy.optim import SGD, Adam, CosineDecay, LinearDecay, Momentum, RMSprop, StepDecay
from tests.frameworks.keras_models import (
    assert_same_weights,
    fit,
    make_mlp,
    make_rows,
)

# Keras' own calls that save a model or show weights: NumPy warns of the way in which it converts TensorFlow's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


RULES = [
    pytest.param(SGD(learning_rate=StepDecay(0.1, steps=2), weight_decay=0.1), id="sgd"),
    pytest.param(Momentum(learning_rate=0.1, nesterov=True, clip_norm=0.3), id="momentum"),
    pytest.param(RMSprop(learning_rate=LinearDecay(0.01, steps=4, warmup_steps=2), form="text"), id="rmsprop"),
    pytest.param(
        Adam(learning_rate=CosineDecay(0.1, steps=4), weight_decay=0.1, decoupled_decay=True, clip_norm=0.5),
        marks=pytest.mark.backend,
        id="adam",
    ),
]


@pytest.mark.parametrize("rule", RULES)
def test_rule_trains_alike_in_a_compiled_model_and_in_a_step(rule):
    x, y = make_rows(16, 4), make_rows(16, 1, seed=2)
    compiled, fitted = make_mlp(), make_mlp()
    compiled.compile(RuleOptimizer(rule), "mse")
    for _ in range(5):
        compiled.train_on_batch(x, y)
    fit(fitted, x, y, optimizer=rule, steps=5)
    assert_same_weights(compiled, fitted)


@pytest.mark.parametrize("rule", RULES)
def test_rule_survives_being_saved_and_loaded(rule, tmp_path):
    model = make_mlp()
    model.compile(RuleOptimizer(rule, name="mine"), "mse")
    model.train_on_batch(make_rows(8, 4), make_rows(8, 1))
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert (optimizer.rule, optimizer.name, int(optimizer.iterations)) == (rule, "mine", 1)
    for one, other in zip(optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


def test_rule_of_a_compiled_model_takes_the_number_of_the_step():
    rule = SGD(learning_rate=StepDecay(1.0, steps=1, factor=0.1))
    model = make_mlp()
    model.compile(RuleOptimizer(rule), "mse")
    before = FRAMEWORK.get_weights(model)["last/bias"]
    step = FRAMEWORK.build_step(model, "mse", model.optimizer, FitOptions())
    _, outputs = step(Batch(make_rows(8, 4), np.zeros((8, 1), np.float32)), 3)
    step.sync()
    moved = FRAMEWORK.get_weights(model)["last/bias"] - before
    np.testing.assert_allclose(moved, [-0.01 * 2 * outputs.mean()], rtol=1e-5)


def test_norm_of_gradients_whose_squares_overflow_is_finite():
    model = make_mlp()
    start = FRAMEWORK.get_weights(model)["last/bias"]
    # The gradient of the last bias is 1e25: its square is beyond float32.
    fit(model, make_rows(8, 4), make_rows(8, 1), lambda y, outputs: 1e25 * outputs, SGD(learning_rate=1.0, clip_norm=1.0))
    moved = float(abs(FRAMEWORK.get_weights(model)["last/bias"] - start)[0])
    assert 0.1 < moved < 1.0
