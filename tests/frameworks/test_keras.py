"""Keras: its networks, losses and compiled models, what users have in hand, and options that are refused.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; see `test_keras_backends.py`.
"""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

import argosy
from argosy.errors import InputError
from argosy.frameworks.base import Batch, FitOptions, count_weights, framework_of, get_framework, loader_framework
from argosy.frameworks.keras import FRAMEWORK, RuleOptimizer
from argosy.frameworks.layers import Conv, Dense, Relu, draw_weights
from argosy.optim import SGD, Adam
from argosy.train.losses import LOSSES, get_loss
from tests.frameworks.keras_models import (
    BACKEND,
    HAS_DOUBLE,
    LAYERS,
    ROW,
    assert_same_weights,
    fit,
    make_embedding,
    make_labels,
    make_mlp,
    make_network,
    make_rows,
)

# Keras' own calls that save a model or show weights: NumPy warns of the way in which it converts TensorFlow's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# Networks and losses.


@pytest.mark.backend
@pytest.mark.skipif(HAS_DOUBLE, reason="this backend has float64")
def test_float64_is_refused_where_it_would_be_cut():
    with pytest.raises(InputError, match="jax_enable_x64"):
        make_network(dtype="float64")


def test_model_is_found_by_its_class():
    assert framework_of(make_mlp()) is FRAMEWORK
    assert not FRAMEWORK.is_model(keras.layers.Dense(1))


@pytest.mark.backend
def test_network_answers_as_the_same_one_in_torch():
    weights = draw_weights(LAYERS, ROW, 0)
    weights["batchnorm1.weight"] = make_rows(3)
    x = make_rows(5, *ROW)
    torch = get_framework("torch")
    expected = torch.predict(torch.build_network(LAYERS, ROW, weights), x)
    model = FRAMEWORK.build_network(LAYERS, ROW, weights)
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), expected, rtol=1e-5, atol=1e-5)
    assert count_weights(FRAMEWORK, model) == sum(w.size for w in weights.values())
    assert FRAMEWORK.list_trainable(model)[:4] == ("conv1/kernel", "conv1/bias", "batchnorm1/gamma", "batchnorm1/beta")


def test_images_come_out_channels_first():
    assert FRAMEWORK.predict(make_network((Conv(5), Relu())), make_rows(2, *ROW)).shape == (2, 5, 6, 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_step_equals_the_numpy_loss(loss):
    x = 4 * make_rows(9, 6)
    y = {
        "cross_entropy": make_labels(9, 5),
        "binary_cross_entropy": make_labels(45, 2).reshape(9, 5).astype(np.float32),
    }.get(loss, make_rows(9, 5, seed=3))
    ((value, outputs),) = fit(make_network((Dense(5),), (6,)), x, y, loss)
    assert value == pytest.approx(get_loss(loss).compute(outputs, y), rel=1e-5)


@pytest.mark.backend
def test_own_loss_and_optimizer_are_those_of_train_on_batch():
    x, y = make_rows(16, 4), make_labels(16)
    models = [make_mlp(3, kernel_regularizer="l2") for _ in range(2)]
    for model in models:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5), loss)
    expected = [models[0].train_on_batch(x, y) for _ in range(4)]
    assert FRAMEWORK.get_compiled(models[1]) == (models[1].loss, models[1].optimizer)
    found = fit(models[1], x, y, *FRAMEWORK.get_compiled(models[1]), steps=4)
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)
    assert_same_weights(models[0], models[1])


def test_strings_of_a_compiled_model_are_resolved():
    model = make_mlp()
    model.compile("rmsprop", "mse")
    loss, optimizer = FRAMEWORK.get_compiled(model)
    assert loss is keras.losses.get("mse")
    assert isinstance(optimizer, keras.optimizers.RMSprop)
    x, y = make_rows(8, 4), make_rows(8)
    # Targets of shape (rows,) are not broadcast against outputs of shape (rows, 1).
    ((value, outputs),) = fit(model, x, y, loss, optimizer)
    assert value == pytest.approx(np.mean((outputs[:, 0] - y) ** 2), rel=1e-5)
    assert FRAMEWORK.get_compiled(make_mlp()) == (None, None)


@pytest.mark.parametrize(
    ("compiled", "words"),
    [
        pytest.param({"loss": "crossentropy"}, "the full name", id="ambiguous"),
    ],
)
def test_compiled_losses_that_would_be_ignored_are_refused(compiled, words):
    model = make_mlp()
    model.compile("sgd", **compiled)
    with pytest.raises(InputError, match=words):
        FRAMEWORK.get_compiled(model)


@pytest.mark.parametrize("method", FRAMEWORK.training_methods)
def test_model_that_says_itself_how_it_is_trained_is_refused(method):
    kind = type("Own", (keras.Sequential,), {method: lambda self, *args, **options: None})
    with pytest.raises(InputError, match=f"says by `{method}` how it is trained, which `train` does not call"):
        argosy.train(kind([keras.Input((4,)), keras.layers.Dense(1)]), (make_rows(8, 4), make_rows(8)), loss="mse")
    model = make_mlp()
    setattr(model, method, lambda *args: None)
    with pytest.raises(InputError, match="which `train` does not call"):
        argosy.train(model, (make_rows(8, 4), make_rows(8)), loss="mse")


@pytest.mark.backend
def test_metrics_that_a_model_was_compiled_with_are_measured_and_told():
    x, y = make_rows(40, 4), make_labels(40, 3)
    model = make_mlp(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")
    model.compile(
        "sgd", loss, metrics=["acc", top], weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True)]
    )
    result = argosy.train(model, (x, y), epochs=1, validation_data=(x, y), batch_size=16, progress=False)
    names = ("accuracy", "top", "sparse_categorical_crossentropy")
    assert result.settings.metrics == tuple(result.describe_lineage()["training"]["metrics"]) == names
    assert result.history[-1].metrics.keys() == result.history[-1].validation_metrics.keys() == set(names)
    measured = result.evaluate(x, y)
    order = np.argsort(result.predict(x), axis=1)
    assert measured["top"] == pytest.approx(np.mean((order[:, 1:] == y[:, None]).any(axis=1)))
    assert measured["sparse_categorical_crossentropy"] == pytest.approx(measured["loss"], rel=1e-5)
    assert argosy.train(model, (x, y), epochs=1, metrics=(), progress=False).settings.metrics == ()


def test_metric_that_is_no_mean_is_measured_on_validation_rows_alone():
    x, y = make_rows(40, 4), make_labels(40, 2).astype(np.float32)
    model = make_mlp()
    model.compile(
        "sgd", keras.losses.BinaryCrossentropy(from_logits=True), metrics=[keras.metrics.AUC(from_logits=True, name="auc")]
    )
    result = argosy.train(model, (x, y), epochs=1, validation_data=(x, y), progress=False)
    assert result.history[-1].metrics == {}
    assert 0 < result.history[-1].validation_metrics["auc"] < 1
    with pytest.raises(InputError, match="Unknown metric 'nonsense'"):
        argosy.train(model, (x, y), metrics=["nonsense"], progress=False)


def make_settings(rate=0.2, activation="relu", function=keras.ops.softplus):
    class Scaled(keras.layers.Layer):
        def __init__(self, rate):
            super().__init__()
            self._rate = rate

        def call(self, x):
            return x * self._rate

    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(3, activation), keras.layers.Lambda(function), Scaled(0.1 * rate)])
    return keras.Model(inputs, keras.layers.Dropout(rate)(inner(inputs)))


def test_program_is_that_of_any_process_and_holds_every_setting():
    program = FRAMEWORK.describe_program(make_settings())
    make_mlp()  # Keras numbers its layers on.
    model = make_settings()
    assert FRAMEWORK.describe_program(model) == program
    FRAMEWORK.predict(model, make_rows(2, 4))
    assert FRAMEWORK.describe_program(model) == program
    assert json.loads(json.dumps(program)) == program
    for change in ({"rate": 0.3}, {"activation": "tanh"}, {"function": keras.ops.tanh}, {"function": lambda x: 2 * x}):
        assert FRAMEWORK.describe_program(make_settings(**change)) != program


def test_losses_and_optimizers_are_described_as_data():
    part = FRAMEWORK.describe_loss(keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1))
    assert (part.name, part.parameters["label_smoothing"], part.takes_logits) == ("BinaryCrossentropy", 0.1, True)
    assert not FRAMEWORK.describe_loss(keras.losses.mean_squared_error).takes_logits
    assert FRAMEWORK.describe_loss("mse") is None
    described = FRAMEWORK.describe_optimizer(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 10), momentum=0.9))
    assert described["momentum"] == 0.9
    assert described["learning_rate"]["config"]["initial_learning_rate"] == 0.5
    assert FRAMEWORK.describe_optimizer(RuleOptimizer(Adam())) == Adam().describe()
    json.dumps(described)
    assert FRAMEWORK.describe_optimizer("adam") is None
    loss = keras.losses.Huber()
    assert FRAMEWORK.measure_loss(loss, np.float32([[3.0]]), np.float32([[0.0]])) == pytest.approx(2.5)


# What users have in hand.


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, num_batches=2):
        super().__init__()
        self.batches, self.count, self.ends = batches, num_batches, 0

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_end(self):
        self.ends += 1


@pytest.mark.backend
def test_dataset_gives_one_epoch_of_arrays():
    x, y = make_rows(5, 2), make_labels(5)
    data = Batches([(x[:3], y[:3]), (keras.ops.convert_to_tensor(x[3:]), y[3:])])
    assert loader_framework(data) is FRAMEWORK
    (one, _), (two, labels) = FRAMEWORK.read_loader(data)
    assert (np.concatenate([one, keras.ops.convert_to_numpy(two)]) == x).all()
    assert (labels == y[3:]).all()
    assert data.ends == 1


def test_endless_dataset_is_refused():
    with pytest.raises(InputError, match="never ends"):
        list(FRAMEWORK.read_loader(Batches([], None)))


class Late(keras.Model):
    """Built by its first rows; its `call` takes no `training`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = keras.layers.Dense(5), keras.layers.Dense(2)

    def call(self, x):
        return self.last(self.hidden(x))


def test_model_is_built_by_its_first_rows():
    model, x = Late(), make_rows(6, 4)
    with pytest.raises(InputError, match="built by a call with rows"):
        FRAMEWORK.build_step(model, "mse", SGD(), FitOptions())
    assert FRAMEWORK.float_dtype(model) == np.float32
    assert FRAMEWORK.predict(model, x).shape == (6, 2)
    assert set(FRAMEWORK.get_weights(model)) == {f"{part}/{w}" for part in ("hidden", "last") for w in ("kernel", "bias")}
    values = [value for value, _ in fit(model, x, make_rows(6, 2), steps=3)]
    assert values[2] < values[0]


@pytest.mark.backend
@pytest.mark.skipif(HAS_DOUBLE, reason="this backend has int64")
def test_integers_that_would_be_cut_are_refused():
    x = make_labels(12, 30).reshape(2, 6)
    step = FRAMEWORK.build_step(make_embedding(), "mse", SGD(), FitOptions())
    x[1, 2] = 2**32
    for use in (lambda: FRAMEWORK.predict(make_embedding(), x), lambda: step(Batch(x, make_rows(2, 3)), 1)):
        with pytest.raises(InputError, match="integers beyond"):
            use()


def test_prediction_joins_pieces_and_leaves_the_rows_alone():
    model, x = make_mlp(), make_rows(600, 4)
    x.flags.writeable = False
    pieces = np.concatenate([FRAMEWORK.predict(model, part) for part in np.split(x, 4)])
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), pieces, rtol=1e-5, atol=1e-6)


@pytest.mark.backend
def test_mixed_precision_of_the_layers_is_kept_and_answers_are_float32():
    model = make_mlp(dtype="mixed_bfloat16")
    model.pop()
    x = make_rows(8, 4)
    assert FRAMEWORK.predict(model, x).dtype == np.float32
    ((value, outputs),) = fit(model, x, make_rows(8, 8), "half_mse")
    assert outputs.dtype == np.float32
    assert value == pytest.approx(get_loss("half_mse").compute(outputs, make_rows(8, 8)), rel=1e-2)  # bfloat16 has 8 bits.


@pytest.mark.backend
@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        pytest.param(make_mlp, make_rows(2, 5), "fails on rows of shape", id="shape"),
        pytest.param(
            lambda: keras.Model(inputs := keras.Input((4,)), [inputs, inputs[0]]), make_rows(2, 4), "shape", id="no rows"
        ),
    ],
)
def test_prediction_of_bad_rows_is_explained(model, x, words):
    with pytest.raises(InputError, match=words):
        FRAMEWORK.predict(model(), x)


def make_stranger():
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(make_mlp().trainable_variables)
    return optimizer


@pytest.mark.backend
@pytest.mark.parametrize(
    ("optimizer", "loss", "options", "words"),
    [
        pytest.param(make_stranger, "mse", {}, "made for this model's weights", id="another model's"),
        pytest.param(lambda: keras.optimizers.SGD(use_ema=True), "mse", {}, "without use_ema", id="ema"),
        pytest.param(
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse", {}, "without loss scaling", id="scaling"
        ),
        pytest.param(SGD, "mse", {"precision": "bfloat16"}, "mixed_bfloat16", id="precision"),
        pytest.param(
            SGD, keras.losses.MeanSquaredError(reduction="sum"), {"micro_batch_size": 2}, "a mean, with micro-batches", id="sum"
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(optimizer, loss, options, words):
    with pytest.raises(InputError, match=words):
        FRAMEWORK.build_step(make_mlp(), loss, optimizer(), FitOptions(**options))


def test_model_without_weights_to_train_is_refused():
    model = make_mlp()
    model.trainable = False
    with pytest.raises(InputError, match="weights to train"):
        FRAMEWORK.build_step(model, "mse", SGD(), FitOptions())


@pytest.mark.backend
def test_session_restores_random_numbers_and_holds_the_number_of_threads():
    FRAMEWORK.predict(make_mlp(), make_rows(1, 4))
    before = random.getstate(), np.random.get_state()[1].copy()
    drawn = []
    for _ in range(2):
        with FRAMEWORK.session(3, None):
            drawn.append((random.random(), float(np.random.random())))
    assert drawn[0] == drawn[1]
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    if BACKEND != "torch":
        with pytest.raises(InputError, match="has started"), FRAMEWORK.session(3, 61):
            pass
