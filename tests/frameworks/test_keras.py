"""Keras: its losses, optimizers and compiled models, resumption, layers found at fault, export and its own runtime.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; `test_on_backend` runs what is
marked `backend` on the others, and all of it where slow tests run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

import argosy
from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, count_weights, framework_of, get_framework, loader_framework
from argosy.frameworks.keras import FRAMEWORK, RuleOptimizer
from argosy.frameworks.layers import Conv, Dense, Relu, draw_weights
from argosy.frameworks.onnx import OnnxModel
from argosy.optim import SGD, Adam, CosineDecay, LinearDecay, Momentum, RMSprop, StepDecay
from argosy.runtimes.base import BadInput
from argosy.runtimes.keras import BACKEND_FILE, KerasRuntime
from argosy.store.local import Store
from argosy.train.losses import LOSSES, get_loss
from tests.frameworks.keras_models import (
    LAYERS,
    ROW,
    fit,
    make_embedding,
    make_labels,
    make_lstm,
    make_mlp,
    make_network,
    make_rows,
    run_noisy,
)
from tests.frameworks.one_tensor import check_one, export_one, save_one
from tests.scripts import ROOT

# Keras' own calls that save a model or show weights: NumPy warns of the way in which it converts TensorFlow's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
HAS_DOUBLE = BACKEND != "jax" or os.environ.get("JAX_ENABLE_X64") == "1"
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Of float32 over a few steps."""


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("variables", "tests"),
    [
        # In two parts, as each compiles for half a minute.
        pytest.param({"KERAS_BACKEND": "jax"}, ("-m", "backend", "-k", "not (export or runtime)"), id="jax"),
        pytest.param({"KERAS_BACKEND": "jax"}, ("-m", "backend", "-k", "export or runtime"), id="jax, its files"),
        pytest.param({"KERAS_BACKEND": "torch"}, ("-m", "backend"), id="torch"),
        pytest.param({"KERAS_BACKEND": "jax"}, ("-k", "not on_backend"), marks=SLOW, id="all of jax"),
        pytest.param({"KERAS_BACKEND": "torch"}, ("-k", "not on_backend"), marks=SLOW, id="all of torch"),
        pytest.param({"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"}, ("-k", "float64"), marks=SLOW, id="jax, double precision"),
    ],
)
def test_on_backend(variables, tests):
    if BACKEND != "tensorflow":
        pytest.skip("this is the other run")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *tests, __file__],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def assert_same_weights(one, other, **tolerance):
    expected = FRAMEWORK.get_weights(one)
    got = FRAMEWORK.get_weights(other)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, err_msg=name, **(tolerance or ROUNDING))


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


# Argosy's rules as a Keras optimizer.

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


# A step.


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


# Out of the framework.


MODELS = {
    "mlp": (make_mlp, make_rows(9, 4)),
    "cnn": (make_network, make_rows(9, *ROW)),
    "lstm": (make_lstm, make_rows(9, 6, 5)),
    "embedding": (make_embedding, make_labels(54, 30).reshape(9, 6)),
    "float64": (lambda: make_network((Dense(5), Relu(), Dense(2)), (4,), "float64"), make_rows(9, 4).astype(np.float64)),
}


KINDS = [
    pytest.param("mlp", marks=pytest.mark.backend),
    "cnn",
    "lstm",
    "embedding",
    pytest.param("float64", marks=pytest.mark.skipif(not HAS_DOUBLE, reason="this backend cuts it")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_exported_model_answers_as_the_model(kind, tmp_path):
    make, x = MODELS[kind]
    model, path = make(), tmp_path / "model.onnx"
    expected = FRAMEWORK.predict(model, x)
    export_one(FRAMEWORK, model, x, path, input_name="pixels in", output_name="dense/out:0")
    if (BACKEND, kind) == ("jax", "cnn"):
        # The converter writes a pooling that ONNX Runtime refuses.
        with pytest.raises(ModelError, match="pooling"):
            check_one(OnnxModel(path), partial(FRAMEWORK.predict, model), x)
        return
    exported = OnnxModel(path)
    assert (exported.input_names, exported.output_names) == (["pixels in"], ["dense/out:0"])
    assert check_one(exported, partial(FRAMEWORK.predict, model), x).difference < 1e-5
    assert exported.run({"pixels in": x})["dense/out:0"].dtype == expected.dtype


class Choice(keras.layers.Layer):
    def call(self, x):
        return keras.ops.cond(keras.ops.mean(x) > 0.5, lambda: x * 2, lambda: x * 3)


@pytest.mark.backend
def test_exported_model_answers_other_rows_as_itself_or_is_refused(tmp_path):
    model, x = keras.Sequential([keras.Input((4,)), Choice()]), 0.3 * np.abs(make_rows(8, 4))
    if BACKEND == "torch":
        # There the layer looks at a number, which a tracer does not follow.
        with pytest.raises(ModelError, match="looks at numbers from Python"):
            argosy.publish(model, "choice", Store(tmp_path), sample=x)
        return
    store = Store(tmp_path)
    version = argosy.publish(model, "choice", store, sample=x)
    exported = OnnxModel(store.open_artifact(version) / "model.onnx")
    for rows in (x, x + 1, -x):
        np.testing.assert_allclose(exported.run({"input": rows})["output"], FRAMEWORK.predict(model, rows), rtol=1e-6)


@pytest.mark.backend
def test_exported_model_keeps_the_lengths_free_that_it_leaves_open(tmp_path):
    layers = [keras.Input((None,), dtype="int32"), keras.layers.Embedding(30, 4), keras.layers.GlobalAveragePooling1D()]
    model, store = keras.Sequential([*layers, keras.layers.Dense(2)]), Store(tmp_path)
    version = argosy.publish(model, "ids", store, sample=make_labels(48, 30).reshape(4, 12).astype(np.int32))
    assert version.manifest.signature.inputs[0].shape == (-1, -1)
    exported = OnnxModel(store.open_artifact(version) / "model.onnx")
    for length in (1, 12, 40):
        ids = make_labels(2 * length, 30).reshape(2, length).astype(np.int32)
        np.testing.assert_allclose(exported.run({"input": ids})["output"], FRAMEWORK.predict(model, ids), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_runtime_answers_as_the_model(kind, tmp_path):
    make, x = MODELS[kind]
    model = make()
    model.compile("adam")
    entry = save_one(FRAMEWORK, model, x, tmp_path).entry
    assert {path.name for path in tmp_path.iterdir()} == {entry, BACKEND_FILE}
    runtime = KerasRuntime()
    runtime.open(tmp_path, entry, ["rows"], ["answers"])
    expected = FRAMEWORK.predict(model, x)
    for num_rows in (1, 2, 7, 9):
        (got,) = runtime.infer({"rows": x[:num_rows]}).values()
        assert got.flags.c_contiguous
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected[:num_rows], rtol=1e-5, atol=1e-6)


@pytest.mark.backend
def test_runtime_says_whose_fault_an_index_out_of_range_is(tmp_path):
    rows = np.arange(10, dtype="int32").reshape(2, 5)
    model = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(50, 4), keras.layers.Flatten()])
    entry = save_one(FRAMEWORK, model, rows, tmp_path).entry
    runtime = KerasRuntime()
    runtime.open(tmp_path, entry, ["x"], ["y"])
    if BACKEND != "jax":
        with pytest.raises(BadInput):
            runtime.infer({"x": rows + 100})
    elif not HAS_DOUBLE:
        # JAX gives something for any index; what it cannot take are integers beyond 32 bits.
        with pytest.raises(BadInput, match="integers beyond int32"):
            runtime.infer({"x": rows.astype("int64") + 2**40})
    assert runtime.infer({"x": rows})["y"].shape == (2, 20)


@pytest.mark.backend
def test_runtime_begins_in_a_process_of_its_own(tmp_path):
    model, x = make_mlp(), make_rows(3, 4)
    entry = save_one(FRAMEWORK, model, x, tmp_path).entry
    code = f"""
import numpy as np, sys
from pathlib import Path
from argosy.runtimes.base import load_runtime_class
kind = load_runtime_class("keras")
assert "keras" not in sys.modules
runtime = kind()
runtime.load(Path({str(tmp_path)!r}), {entry!r}, {{"threads": 1, "inputs": ["x"], "outputs": ["y"]}})
np.save({str(tmp_path / "answer.npy")!r}, runtime.infer({{"x": np.load({str(tmp_path / "rows.npy")!r})}})["y"])
try:
    kind().load(Path({str(tmp_path)!r}), {entry!r}, {{"threads": 2, "inputs": ["x"], "outputs": ["y"]}})
except (RuntimeError, ValueError) as error:
    print(error)
"""
    np.save(tmp_path / "rows.npy", x)
    env = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("2" in done.stdout and "threads in this process" in done.stdout) == (BACKEND != "torch")
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), FRAMEWORK.predict(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.timeout(240)
def test_slow_model_is_served_with_as_many_threads_as_pay(home):
    """A row takes longer than one thread is thought enough for, and the backend does not change their number."""
    model = keras.Sequential([keras.Input((2048,)), *[keras.layers.Dense(2048) for _ in range(4)]])
    x = make_rows(3, 2048)
    argosy.publish(model, "slow", home.store, sample=x, native=True)
    with home.serve("slow") as server, server.client() as client:
        (got,) = client.predict("slow", {"input": x}).values()
    np.testing.assert_allclose(got, FRAMEWORK.predict(model, x), rtol=1e-4, atol=1e-4)


def test_several_inputs_and_outputs_are_served_in_order(tmp_path):
    one, two = keras.Input((3,), name="one"), keras.Input((3,), name="two")
    model = keras.Model({"one": one, "two": two}, [keras.layers.Subtract()([one, two]), keras.layers.Add()([one, two])])
    model.save(tmp_path / "model.keras")
    (tmp_path / BACKEND_FILE).write_text(json.dumps({"backend": BACKEND}))
    runtime = KerasRuntime()
    runtime.open(tmp_path, "model.keras", ["a", "b"], ["difference", "sum"])
    a, b = make_rows(3, 3), make_rows(3, 3, seed=1)
    answers = runtime.infer({"b": b, "a": a})
    np.testing.assert_allclose(answers["difference"], a - b, rtol=1e-6)
    np.testing.assert_allclose(answers["sum"], a + b, rtol=1e-6)
    with pytest.raises(RuntimeError, match="1 inputs and 2 outputs, the model 2 and 2"):
        runtime.open(tmp_path, "model.keras", ["a"], ["difference", "sum"])


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x


@pytest.mark.parametrize("layer", [Doubled(), keras.layers.Lambda(lambda x: 2.0 * x)], ids=["class", "lambda"])
def test_model_with_code_of_its_own_is_not_saved(layer, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ModelError, match="cannot be saved"):
        save_one(FRAMEWORK, model, make_rows(2, 4), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"module": "os", "class_name": "system"}, "system of os", id="module"),
        pytest.param({"registered_name": "evil>Dense"}, "whose code a file cannot bring", id="registered"),
        pytest.param({"class_name": "TFSMLayer"}, "TFSMLayer", id="file"),
    ],
)
def test_runtime_refuses_a_file_that_asks_for_foreign_code(change, words, tmp_path):
    save_one(FRAMEWORK, make_mlp(), make_rows(2, 4), tmp_path)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1].update(change)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, data in (members | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(RuntimeError, match=words):
        KerasRuntime().open(tmp_path, "model.keras", ["x"], ["y"])


@pytest.mark.backend
def test_runtime_refuses_another_backend(tmp_path):
    save_one(FRAMEWORK, make_mlp(), make_rows(2, 4), tmp_path)
    (tmp_path / BACKEND_FILE).write_text(json.dumps({"backend": "torch" if BACKEND == "jax" else "jax"}))
    with pytest.raises(RuntimeError, match=f"this process has started with {BACKEND}"):
        KerasRuntime().open(tmp_path, "model.keras", ["x"], ["y"])
    (tmp_path / BACKEND_FILE).write_text(json.dumps({"backend": "os"}))
    with pytest.raises(RuntimeError, match="known: jax, tensorflow, torch"):
        KerasRuntime().open(tmp_path, "model.keras", ["x"], ["y"])


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
