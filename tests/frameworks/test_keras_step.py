"""A step of training on a Keras model: penalties, pieces, resumption, and what is not finite.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; see `test_keras_backends.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions
from argosy.frameworks.keras import FRAMEWORK
from argosy.optim import SGD, Adam
from tests.frameworks.keras_models import (
    ROUNDING,
    assert_same_weights,
    fit,
    make_labels,
    make_mlp,
    make_rows,
    run_noisy,
)
from tests.scripts import ROOT

# Keras' own calls that save a model or show weights: NumPy warns of the way in which it converts TensorFlow's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_penalties_are_added_as_keras_does():
    x, y = make_rows(8, 4), make_rows(8, 1)
    plain, penalised = make_mlp(), make_mlp(kernel_regularizer=keras.regularizers.L2(0.1))
    (one, _), (other, _) = fit(plain, x, y)[0], fit(penalised, x, y)[0]
    kernel = FRAMEWORK.get_weights(make_mlp())["hidden/kernel"]
    assert other - one == pytest.approx(0.1 * np.square(kernel).sum(), rel=1e-4)
    assert np.abs(FRAMEWORK.get_weights(plain)["hidden/kernel"] - FRAMEWORK.get_weights(penalised)["hidden/kernel"]).max() > 1e-4


@pytest.mark.backend
def test_weights_that_are_not_trainable_stay_and_constraints_hold():
    model = make_mlp(kernel_constraint=keras.constraints.MaxNorm(0.5))
    model.layers[1].trainable = False
    before = FRAMEWORK.get_weights(model)
    assert FRAMEWORK.list_trainable(model) == ("hidden/kernel", "hidden/bias")
    fit(model, make_rows(8, 4), make_rows(8, 1), steps=2)
    after = FRAMEWORK.get_weights(model)
    np.testing.assert_array_equal(after["last/kernel"], before["last/kernel"])
    assert np.linalg.norm(after["hidden/kernel"], axis=0).max() < 0.5 + 1e-6
    assert not np.array_equal(after["hidden/kernel"], before["hidden/kernel"])


@pytest.mark.parametrize("size", [1, pytest.param(5, marks=pytest.mark.backend), 40])
@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_micro_batches_add_up_to_the_whole_batch(size, own):
    x, y = make_rows(13, 4), make_labels(13)
    found = []
    for micro_batch_size in (None, size):
        model = make_mlp(3, kernel_regularizer="l2")
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9) if own else Adam(clip_norm=0.1)
        found.append((model, fit(model, x, y, "cross_entropy", optimizer, steps=2, micro_batch_size=micro_batch_size)))
    (whole, expected), (pieces, got) = found
    for (loss, outputs), (want_loss, want_outputs) in zip(got, expected, strict=True):
        assert loss == pytest.approx(want_loss, rel=1e-5)
        np.testing.assert_allclose(outputs, want_outputs, **ROUNDING)
    assert_same_weights(whole, pieces, rtol=1e-4, atol=1e-5)


def test_integers_of_an_embedding_are_trained():
    model = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(50, 4), keras.layers.Flatten()])
    model.add(keras.layers.Dense(1))
    x = make_labels(30, 50).reshape(6, 5)
    for optimizer in (keras.optimizers.SGD(0.1), Adam(clip_norm=0.1)):
        values = [value for value, _ in fit(model, x, make_rows(6, 1), "half_mse", optimizer, steps=5)]
        assert values[-1] < values[0]


@pytest.mark.backend
def test_same_seed_gives_the_same_bits_and_another_does_not():
    (one, state), (two, again), (other, _) = (run_noisy(seed, range(1, 7)) for seed in (5, 5, 6))
    assert one == two != other
    assert all(np.array_equal(state[name], again[name]) for name in state)


def test_run_goes_on_in_another_process_bit_for_bit(tmp_path):
    whole, expected = run_noisy(5, range(1, 9))
    _, state = run_noisy(5, range(1, 4))
    np.savez(tmp_path / "state.npz", **state)
    # Another process has made other layers before, by which Keras numbers them.
    code = f"""
import numpy as np
from tests.frameworks import keras_models as cases
cases.make_mlp(), cases.make_network()
losses, state = cases.run_noisy(5, range(4, 9), dict(np.load({str(tmp_path / "state.npz")!r})))
np.savez({str(tmp_path / "after.npz")!r}, losses=losses, **state)
"""
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    after = dict(np.load(tmp_path / "after.npz"))
    assert list(after.pop("losses")) == whole[3:]
    assert after.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(after[name], expected[name])] == []


@pytest.mark.backend
def test_state_of_an_own_optimizer_goes_on_too():
    x, y = make_rows(8, 4), make_rows(8, 1)
    steps = [FRAMEWORK.build_step(make_mlp(), "mse", keras.optimizers.Adam(0.1), FitOptions()) for _ in range(2)]
    for number in (1, 2, 3):
        steps[0](Batch(x, y), number)
    steps[1].set_state(steps[0].get_state())
    assert steps[0](Batch(x, y), 4)[0] == steps[1](Batch(x, y), 4)[0]
    one, other = (step.get_state() for step in steps)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_checkpoint_of_another_model_is_refused():
    state = FRAMEWORK.build_step(make_mlp(), "mse", Adam(), FitOptions()).get_state()
    with pytest.raises(InputError, match="does not fit"):
        FRAMEWORK.build_step(make_mlp(2), "mse", Adam(), FitOptions()).set_state(state)
    with pytest.raises(InputError, match="does not fit"):
        FRAMEWORK.build_step(make_mlp(), "mse", SGD(), FitOptions()).set_state(state)


# What is not finite.


@pytest.mark.parametrize("micro_batch_size", [pytest.param(None, marks=pytest.mark.backend), 3])
def test_layer_whose_output_is_not_finite_is_named_and_no_weight_moves(micro_batch_size):
    model = make_mlp(3)
    model.layers[0].bias.assign(np.full(8, np.nan))
    step = FRAMEWORK.build_step(model, "cross_entropy", Adam(learning_rate=0.5), FitOptions(micro_batch_size=micro_batch_size))
    before = step.get_state()
    with pytest.raises(ModelError, match="step 7: the loss is not finite in layer hidden") as caught:
        step(Batch(make_rows(8, 4), make_labels(8)), 7)
    assert "now 0.5" in caught.value.hint
    after = step.get_state()
    assert all(np.array_equal(after[name], before[name], equal_nan=True) for name in before)


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.backend, id="ours"), pytest.param(True, id="own")])
def test_layer_whose_gradient_is_not_finite_is_named_and_no_weight_moves(own):
    model = make_mlp()
    before = FRAMEWORK.get_weights(model)

    def distance(y, outputs):
        # Its gradient at zero is 0 / 0.
        return keras.ops.sqrt(keras.ops.sum(keras.ops.square(0.0 * outputs)))

    with pytest.raises(ModelError, match="step 1: the gradient is not finite in layer last"):
        fit(model, make_rows(8, 4), make_rows(8, 1), distance, keras.optimizers.SGD(0.25) if own else SGD())
    after = FRAMEWORK.get_weights(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.backend
def test_layers_are_whole_after_a_search_for_the_fault():
    model = make_mlp()
    with pytest.raises(ModelError, match="in layer last"):
        fit(model, make_rows(8, 4), np.full((8, 1), np.inf, np.float32))
    assert np.isfinite(fit(model, make_rows(8, 4), make_rows(8, 1))[0][0])
