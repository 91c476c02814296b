"""TensorFlow: `tf.Module`s, optimizers and losses of its own, resumption, layers found at fault, export and its runtime."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import onnx
import pytest

import argosy

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("tensorflow")

import keras
import tensorflow as tf

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, count_weights, framework_of, get_framework, loader_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Relu, draw_weights
from argosy.frameworks.onnx import OnnxModel, check_export
from argosy.frameworks.ports import Ports
from argosy.frameworks.tensorflow import FRAMEWORK, RuleOptimizer
from argosy.optim import SGD, Adam, CosineDecay, Momentum, RMSprop, StepDecay
from argosy.runtimes.base import BadInput
from argosy.runtimes.tensorflow import TensorFlowRuntime
from argosy.train.elements import Columns
from argosy.train.losses import LOSSES, get_loss
from argosy.train.run import train
from argosy.train.source import LoaderSource
from tests.frameworks.one_tensor import check_one, export_one, save_one
from tests.frameworks.tensorflow_models import (
    LAYERS,
    ROW,
    Affine,
    Embedded,
    Mlp,
    Recurrent,
    fit,
    make_labels,
    make_network,
    make_rows,
    run_noisy,
)
from tests.scripts import ROOT

# Its optimizers and losses are Keras', which lets TensorFlow be their backend.
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras has another backend here")

HELD = tf.constant([1.0, 2.0, 3.0, 4.0])
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Of float32 over a few steps."""


def assert_same_weights(one, other, **tolerance):
    expected, got = FRAMEWORK.get_weights(one), FRAMEWORK.get_weights(other)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, err_msg=name, **(tolerance or ROUNDING))


# Networks and losses.


def test_model_and_loader_are_found_by_their_classes():
    assert framework_of(Mlp()) is FRAMEWORK
    assert not FRAMEWORK.is_model(tf.Module())
    assert loader_framework(tf.data.Dataset.range(3)) is FRAMEWORK


def test_network_answers_as_the_same_one_in_torch():
    weights = draw_weights(LAYERS, ROW, 0)
    weights["batchnorm1.weight"] = make_rows(3)
    x = make_rows(5, *ROW)
    torch = get_framework("torch")
    expected = torch.predict(torch.build_network(LAYERS, ROW, weights), x)
    model = FRAMEWORK.build_network(LAYERS, ROW, weights)
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), expected, rtol=1e-5, atol=1e-5)
    assert count_weights(FRAMEWORK, model) == sum(w.size for w in weights.values())
    names = FRAMEWORK.list_trainable(model)
    assert names[:4] == ("layers/0/kernel", "layers/0/offset", "layers/1/scale", "layers/1/shift")


def test_images_come_out_channels_first():
    assert FRAMEWORK.predict(make_network((Conv(5), Relu())), make_rows(2, *ROW)).shape == (2, 5, 6, 4)


def test_running_means_follow_a_tenth_of_each_batch():
    model, x = make_network((BatchNorm(), Conv(1))), 3 + 2 * make_rows(7, *ROW)
    fit(model, x, make_rows(7, 1, 6, 4))
    weights = FRAMEWORK.get_weights(model)
    np.testing.assert_allclose(weights["layers/0/running_mean"], 0.1 * x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(weights["layers/0/running_variance"], 0.9 + 0.1 * x.var((0, 2, 3)), rtol=1e-5)


def test_dropout_wants_a_seed_and_follows_it():
    model = FRAMEWORK.build_network((Dropout(0.5), Dense(4), Dropout(0.5)), (50,), draw_weights((Dense(4),), (50,), 0))
    x = make_rows(20, 50)
    with pytest.raises(InputError, match="two integers"):
        model(x, training=True)
    one, same, other = (model(x, training=True, seed=(1, number)).numpy() for number in (2, 2, 3))
    assert (one == same).all()
    assert not (one == other).all()
    np.testing.assert_array_equal(model(x), model(x, seed=(1, 2)))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_step_equals_the_numpy_loss(loss):
    x = 4 * make_rows(9, 6)
    y = {
        "cross_entropy": make_labels(9, 5),
        "binary_cross_entropy": make_labels(45, 2).reshape(9, 5).astype(np.float32),
    }.get(loss, make_rows(9, 5, seed=3))
    ((value, outputs),) = fit(make_network((Dense(5),), (6,)), x, y, loss)
    assert value == pytest.approx(get_loss(loss).compute(outputs, y), rel=1e-5)


def huber(y, outputs):
    return keras.losses.huber(y, outputs, delta=0.5)


@pytest.mark.parametrize("loss", [keras.losses.Huber(0.5), huber], ids=["class", "function"])
def test_own_loss_and_optimizer_run_as_they_are(loss):
    x, y = make_rows(16, 4), make_rows(16, 1, seed=2)
    expected, fitted = Mlp(), Mlp()
    weights = list(expected.trainable_variables)
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5)
    values = []
    for _ in range(4):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(y, expected(x)))
        values.append(float(value))
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
    found = fit(fitted, x, y, loss, keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5), steps=4)
    assert [value for value, _ in found] == pytest.approx(values, rel=1e-5)
    assert_same_weights(expected, fitted)
    assert FRAMEWORK.measure_loss(loss, np.float32([[3.0]]), np.float32([[0.0]])) == pytest.approx(1.375)


def test_losses_and_optimizers_are_described_as_data():
    part = FRAMEWORK.describe_loss(keras.losses.BinaryCrossentropy(from_logits=True))
    assert (part.name, part.takes_logits) == ("BinaryCrossentropy", True)
    assert FRAMEWORK.describe_loss(tf.nn.sigmoid_cross_entropy_with_logits).takes_logits
    assert FRAMEWORK.describe_loss("mse") is None
    assert FRAMEWORK.describe_optimizer(keras.optimizers.SGD(0.5, momentum=0.9))["momentum"] == 0.9
    assert FRAMEWORK.describe_optimizer(object()) is None
    assert FRAMEWORK.get_compiled(Mlp()) == (None, None)


# Argosy's rules as an optimizer.


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(SGD(learning_rate=StepDecay(0.1, steps=2), weight_decay=0.1), id="sgd"),
        pytest.param(Momentum(learning_rate=0.1, nesterov=True, clip_norm=0.3), id="momentum"),
        pytest.param(RMSprop(learning_rate=0.01, form="text"), id="rmsprop"),
        pytest.param(Adam(learning_rate=CosineDecay(0.1, steps=4), weight_decay=0.1, decoupled_decay=True), id="adam"),
    ],
)
@pytest.mark.parametrize("wrap", [tf.function, lambda f: f], ids=["graph", "eager"])
def test_rule_alone_follows_its_numpy_reference(rule, wrap):
    weights = {"a": make_rows(3, 2), "b": make_rows(2, seed=1)}
    variables = [tf.Variable(array) for array in weights.values()]
    optimizer = RuleOptimizer(variables, rule)
    state = rule.init_state(weights)

    @wrap
    def apply(a, b):
        optimizer.apply_gradients(zip([b, a], variables[::-1], strict=True))

    for number in range(5):
        gradients = {name: make_rows(*array.shape, seed=number) for name, array in weights.items()}
        apply(*map(tf.constant, gradients.values()))
        weights, state = rule.update(weights, gradients, state)
    for variable, expected in zip(variables, weights.values(), strict=True):
        np.testing.assert_allclose(variable, expected, **ROUNDING)
    assert int(optimizer.taken) == 5


def test_rule_refuses_a_variable_that_it_does_not_know():
    optimizer = RuleOptimizer([tf.Variable(1.0)], SGD())
    with pytest.raises(InputError, match="those that the optimizer was made with"):
        optimizer.apply_gradients([(tf.constant(1.0), tf.Variable(1.0))])


def test_norm_of_gradients_whose_squares_overflow_is_finite():
    model = Mlp()
    # The gradient of the last offset is 1e25: its square is beyond float32.
    fit(model, make_rows(8, 4), make_rows(8, 1), lambda y, outputs: 1e25 * outputs, SGD(learning_rate=1.0, clip_norm=1.0))
    assert 0.1 < abs(float(model.last.offset[0])) < 1.0


# A step.


def test_weights_that_are_not_trainable_stay():
    model = Mlp()
    assert "scale" not in FRAMEWORK.list_trainable(model)
    fit(model, make_rows(8, 4), make_rows(8, 1))
    assert float(model.scale) == 2.0
    assert float(tf.reduce_max(tf.abs(model.last.offset))) > 0.0


@pytest.mark.parametrize("size", [1, 5, 40])
@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_micro_batches_add_up_to_the_whole_batch(size, own):
    x, y = make_rows(13, 4), make_labels(13)
    found = []
    for micro_batch_size in (None, size):
        model = Mlp(3)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9) if own else Adam(clip_norm=0.1)
        found.append((model, fit(model, x, y, "cross_entropy", optimizer, steps=2, micro_batch_size=micro_batch_size)))
    (whole, expected), (pieces, got) = found
    for (loss, outputs), (want_loss, want_outputs) in zip(got, expected, strict=True):
        assert loss == pytest.approx(want_loss, rel=1e-5)
        np.testing.assert_allclose(outputs, want_outputs, **ROUNDING)
    assert_same_weights(whole, pieces, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [Adam(clip_norm=0.1), keras.optimizers.SGD(0.5)], ids=["ours", "own"])
def test_sparse_gradients_of_an_embedding_are_taken(optimizer):
    x = np.zeros((6, 5), np.int64)  # The same entry many times: its gradients add up.
    x[:, 0] = range(6)
    model = Embedded()
    values = [value for value, _ in fit(model, x, make_rows(6, 3), "half_mse", optimizer, steps=5)]
    assert values[-1] < values[0]


def test_step_is_traced_once_for_all_numbers_of_rows():
    calls = []

    class Counted(Affine):
        def __call__(self, x):
            calls.append(tf.executing_eagerly())
            return super().__call__(x)

    step = FRAMEWORK.build_step(Counted(4, 1), "mse", Adam(), FitOptions())
    for number, num_rows in enumerate((8, 8, 3, 8, 5), start=1):
        step(Batch(make_rows(num_rows, 4), make_rows(num_rows, 1)), number)
    assert calls == [False]


def test_rows_of_changing_length_are_taken():
    model = Recurrent()
    step = FRAMEWORK.build_step(model, "mse", Adam(), FitOptions())
    for number, length in enumerate((3, 7, 5, 3), start=1):
        _, outputs = step(Batch(make_rows(4, length, 5), make_rows(4, 2)), number)
        assert outputs.shape == (4, 2)


def test_same_seed_gives_the_same_bits_and_another_does_not():
    (one, state), (two, again), (other, _) = (run_noisy(seed, range(1, 7)) for seed in (5, 5, 6))
    assert one == two != other
    assert all(np.array_equal(state[name], again[name]) for name in state)


def test_run_goes_on_in_another_process_bit_for_bit(tmp_path):
    whole, expected = run_noisy(5, range(1, 9))
    _, state = run_noisy(5, range(1, 4))
    np.savez(tmp_path / "state.npz", **state)
    code = f"""
import numpy as np
from tests.frameworks import tensorflow_models as cases
losses, state = cases.run_noisy(5, range(4, 9), dict(np.load({str(tmp_path / "state.npz")!r})))
np.savez({str(tmp_path / "after.npz")!r}, losses=losses, **state)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = dict(np.load(tmp_path / "after.npz"))
    assert list(after.pop("losses")) == whole[3:]
    assert after.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(after[name], expected[name])] == []


def test_state_of_an_own_optimizer_goes_on_too():
    x, y = make_rows(8, 4), make_rows(8, 1)
    steps = [FRAMEWORK.build_step(Mlp(), "mse", keras.optimizers.Adam(0.1), FitOptions()) for _ in range(2)]
    for number in (1, 2, 3):
        steps[0](Batch(x, y), number)
    steps[1].set_state(steps[0].get_state())
    assert steps[0](Batch(x, y), 4)[0] == steps[1](Batch(x, y), 4)[0]
    one, other = (step.get_state() for step in steps)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_checkpoint_of_another_model_or_optimizer_is_refused():
    state = FRAMEWORK.build_step(Mlp(), "mse", Adam(), FitOptions()).get_state()
    for model, rule in ((Mlp(2), Adam()), (Mlp(), SGD())):
        with pytest.raises(InputError, match="does not fit"):
            FRAMEWORK.build_step(model, "mse", rule, FitOptions()).set_state(state)


# What is not finite.


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_layer_whose_output_is_not_finite_is_named_and_no_weight_moves(micro_batch_size):
    model = make_network((Dense(6), Dense(5), Dense(3)), (4,))
    model.layers[1].offset.assign(np.full(5, np.nan, np.float32))
    step = FRAMEWORK.build_step(model, "cross_entropy", Adam(learning_rate=0.5), FitOptions(micro_batch_size=micro_batch_size))
    before = step.get_state()
    with pytest.raises(ModelError, match="step 7: the loss is not finite in layer dense2") as caught:
        step(Batch(make_rows(8, 4), make_labels(8)), 7)
    assert "now 0.5" in caught.value.hint
    after = step.get_state()
    assert all(np.array_equal(after[name], before[name], equal_nan=True) for name in before)


def test_layers_of_a_graph_of_the_users_are_watched_and_left_whole():
    model = Mlp()
    before = Affine.__call__
    with pytest.raises(ModelError, match="the loss is not finite in layer last"):
        fit(model, make_rows(8, 4), np.full((8, 1), np.inf, np.float32))
    assert Affine.__call__ is before
    model.hidden.offset.assign(np.full(8, np.nan, np.float32))
    with pytest.raises(ModelError, match="the loss is not finite in layer hidden"):
        fit(model, make_rows(8, 4), make_rows(8, 1))
    assert not tf.config.functions_run_eagerly()


@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_layer_whose_gradient_is_not_finite_is_named_and_no_weight_moves(own):
    model = Mlp()
    before = FRAMEWORK.get_weights(model)

    def distance(y, outputs):
        # Its gradient at zero is 0 / 0.
        return tf.sqrt(tf.reduce_sum(tf.square(0.0 * outputs)))

    with pytest.raises(ModelError, match="step 1: the gradient is not finite in layer last"):
        fit(model, make_rows(8, 4), make_rows(8, 1), distance, keras.optimizers.SGD(0.25) if own else SGD())
    after = FRAMEWORK.get_weights(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)


# Out of the framework.

MODELS = {
    "mlp": (Mlp, make_rows(9, 4)),
    "cnn": (make_network, make_rows(9, *ROW)),
    "recurrent": (Recurrent, make_rows(9, 6, 5)),
    "embedding": (Embedded, make_labels(54, 30).reshape(9, 6)),
    "float64": (lambda: make_network((Dense(5), Relu(), Dense(2)), (4,), "float64"), make_rows(9, 4).astype(np.float64)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_exported_model_answers_as_the_model(kind, tmp_path):
    make, x = MODELS[kind]
    model, path = make(), tmp_path / "model.onnx"
    expected = FRAMEWORK.predict(model, x)
    export_one(FRAMEWORK, model, x, path, input_name="pixels in", output_name="dense/out:0")
    exported = OnnxModel(path)
    assert (exported.input_names, exported.output_names) == (["pixels in"], ["dense/out:0"])
    assert check_one(exported, partial(FRAMEWORK.predict, model), x).difference < 1e-5
    assert exported.run({"pixels in": x})["dense/out:0"].dtype == expected.dtype


class Choice(tf.Module):
    def __call__(self, x):
        if tf.reduce_mean(x) > 0.5:
            return x * 2.0
        return x * 3.0


def test_exported_model_answers_other_rows_as_itself(tmp_path):
    x = 0.3 * np.abs(make_rows(8, 4))
    export_one(FRAMEWORK, Choice(), x, tmp_path / "model.onnx", input_name="x", output_name="y")
    exported = OnnxModel(tmp_path / "model.onnx")
    for rows in (x, x + 1, -x):
        np.testing.assert_allclose(exported.run({"x": rows})["y"], FRAMEWORK.predict(Choice(), rows), rtol=1e-6)


def test_graph_that_computes_otherwise_than_the_model_is_found(tmp_path):
    class Other(tf.Module):
        def __call__(self, x):
            return tf.abs(x) if tf.executing_eagerly() else x

    x = np.abs(make_rows(8, 4))
    export_one(FRAMEWORK, Other(), x, tmp_path / "model.onnx", input_name="x", output_name="y")
    with pytest.raises(ModelError, match="on sign rows"):
        check_one(OnnxModel(tmp_path / "model.onnx"), partial(FRAMEWORK.predict, Other()), x)
    with pytest.raises(ModelError, match="on sign rows"):
        save_one(FRAMEWORK, Other(), x, tmp_path)


@pytest.mark.parametrize("kind", ["recurrent", "embedding"])
def test_length_that_is_free_is_taken_in_both_forms(kind, tmp_path):
    make, x = MODELS[kind]
    model = make()
    export_one(FRAMEWORK, model, x, tmp_path / "model.onnx", input_name="x", output_name="y", free=(1,))
    exported = OnnxModel(tmp_path / "model.onnx")
    check_one(exported, partial(FRAMEWORK.predict, model), x, (1,))
    saved = save_one(FRAMEWORK, model, x, tmp_path, (1,))
    assert {"lengths 1", "lengths 15"} <= set(saved.evidence.kinds)


@pytest.mark.parametrize("names", [("x", "Identity:0"), ("Identity:0", "x"), ("same__0", "MatMul")])
def test_names_may_be_those_of_other_tensors_of_the_graph(names, tmp_path):
    model, x = Affine(4, 2), make_rows(3, 4)
    export_one(FRAMEWORK, model, x, tmp_path / "model.onnx", input_name=names[0], output_name=names[1])
    exported = OnnxModel(tmp_path / "model.onnx")
    assert (exported.input_names, exported.output_names) == ([names[0]], [names[1]])
    check_one(exported, partial(FRAMEWORK.predict, model), x)


@pytest.mark.parametrize("names", [("x", "y"), ("identity_mul_y:0", "mul/y")])
def test_tensors_that_are_no_variables_are_constants_of_the_file(names, tmp_path):
    model, rows = Unwritable(lambda x: x * HELD + HELD[0]), make_rows(3, 4)
    path = tmp_path / "model.onnx"
    export_one(FRAMEWORK, model, rows, path, input_name=names[0], output_name=names[1])
    exported = OnnxModel(path)
    assert (exported.input_names, exported.output_names) == ([names[0]], [names[1]])
    check_one(exported, partial(FRAMEWORK.predict, model), rows)
    ports = Ports(inputs=names[0], outputs=names[1])
    # Of what else an exporter leaves beside one tensor in and one out, nothing is believed.
    file = onnx.load(path)
    file.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=re.escape(f" and gives {names[1]}, expected {names[0]} and ")):
        check_export(OnnxModel(file.SerializeToString()), ports.run(partial(FRAMEWORK.predict, model)), {names[0]: rows}, ports)


def test_keras_layer_that_holds_tensors_is_published(tmp_path):
    layer = keras.layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[4.0] * 4)
    model, rows = keras.Sequential([keras.Input((4,)), layer]), make_rows(8, 4)
    version = argosy.publish(model, "normalised", argosy.Store(tmp_path / "home"), sample=rows)
    assert (version.manifest.runtime, version.manifest.joining.kind) == ("onnx", "independent")


class Unwritable(tf.Module):
    def __init__(self, change):
        super().__init__()
        self.change, self.weight = change, tf.Variable(1.0)

    def __call__(self, x):
        return self.weight * self.change(x)


def test_operator_that_onnx_has_not_is_named(tmp_path):
    with pytest.raises(ModelError, match="Bessel"):
        export_one(
            FRAMEWORK, Unwritable(tf.math.bessel_i0), make_rows(2, 4), tmp_path / "x.onnx", input_name="a", output_name="b"
        )
    assert save_one(FRAMEWORK, Unwritable(tf.math.bessel_i0), make_rows(2, 4), tmp_path).entry == "saved_model.pb"


@pytest.mark.parametrize("kind", MODELS)
def test_runtime_answers_as_the_model(kind, tmp_path):
    make, x = MODELS[kind]
    model = make()
    entry = save_one(FRAMEWORK, model, x, tmp_path).entry
    assert all(path.is_file() for path in tmp_path.iterdir())
    runtime = TensorFlowRuntime()
    runtime.open(tmp_path, entry, ["rows"], ["answers"])
    expected = FRAMEWORK.predict(model, x)
    for num_rows in (1, 2, 7, 9):
        (got,) = runtime.infer({"rows": x[:num_rows]}).values()
        assert got.flags.c_contiguous
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected[:num_rows], rtol=1e-5, atol=1e-6)


def test_runtime_says_whose_fault_an_index_out_of_range_is(tmp_path):
    class Lookup(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.int64, "x")])
        def __call__(self, x):
            return {"y": tf.gather(tf.eye(4), x)}

    module = Lookup()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.__call__})
    runtime = TensorFlowRuntime()
    runtime.open(tmp_path, "saved_model.pb", ["x"], ["y"])
    with pytest.raises(BadInput, match="not in"):
        runtime.infer({"x": np.array([[0, 9]])})
    assert runtime.infer({"x": np.array([[0, 3]])})["y"].shape == (1, 2, 4)


def test_runtime_serves_from_a_forked_process_of_its_own(tmp_path):
    model, x = Mlp(), make_rows(3, 4)
    entry = save_one(FRAMEWORK, model, x, tmp_path).entry
    np.save(tmp_path / "rows.npy", x)
    # As a worker does it: forked from a process that has only imported the runtime.
    code = f"""
import os
import re
from argosy.runtimes.base import load_runtime_class
kind = load_runtime_class("tensorflow")
child = os.fork()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
import numpy as np
from pathlib import Path
folder = Path({str(tmp_path)!r})
runtime = kind()
runtime.load(folder, {entry!r}, {{"threads": 1, "inputs": ["x"], "outputs": ["y"]}})
np.save(folder / "answer.npy", runtime.infer({{"x": np.load(folder / "rows.npy")}})["y"])
try:
    kind().load(folder, {entry!r}, {{"threads": 2, "inputs": ["x"], "outputs": ["y"]}})
except RuntimeError as error:
    assert "runs with 1 threads" in str(error), error
else:
    os._exit(4)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), FRAMEWORK.predict(model, x), **ROUNDING)


def test_several_tensors_are_served_by_their_names(tmp_path):
    holder = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name) for name in ("a", "b")])
    def serve(a, b):
        return {"difference": a - b, "sum": a + b}

    tf.saved_model.save(holder, tmp_path, signatures=serve)
    runtime = TensorFlowRuntime()
    runtime.open(tmp_path, "saved_model.pb", ["b", "a"], ["sum", "difference"])
    a, b = make_rows(2, 3), make_rows(2, 3, seed=1)
    answers = runtime.infer({"a": a, "b": b})
    np.testing.assert_allclose(answers["difference"], a - b)
    np.testing.assert_allclose(answers["sum"], a + b)
    with pytest.raises(RuntimeError, match="has the inputs x, y, the SavedModel a, b"):
        runtime.open(tmp_path, "saved_model.pb", ["x", "y"], ["sum", "difference"])


def reads(x):
    return x + tf.strings.to_number(tf.strings.substr(tf.io.read_file("/etc/hostname"), 0, 0) + "1")


def calls_python(x):
    return tf.numpy_function(lambda y: y, [x], tf.float32)


@pytest.mark.parametrize(("change", "operator"), [(reads, "ReadFile"), (calls_python, "PyFunc")])
def test_runtime_refuses_operators_that_reach_outside(change, operator, tmp_path):
    with pytest.raises(ModelError, match=operator):
        save_one(FRAMEWORK, Unwritable(change), make_rows(2, 4), tmp_path)


def test_runtime_finds_them_in_a_branch_of_a_function_too(tmp_path):
    def lazy(x):
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: reads(x), lambda: x)

    with pytest.raises(ModelError, match="ReadFile"):
        save_one(FRAMEWORK, Unwritable(lazy), make_rows(2, 4), tmp_path)


def test_variable_that_the_module_does_not_hold_is_explained(tmp_path):
    outside = tf.Variable(2.0)
    with pytest.raises(ModelError, match="untracked"):
        save_one(FRAMEWORK, Unwritable(lambda x: outside * x), make_rows(2, 4), tmp_path)


# What users have in hand.


def test_dataset_gives_one_epoch_of_arrays_that_may_be_written():
    x, y = make_rows(5, 2), make_labels(5)
    (one, _), (two, labels) = FRAMEWORK.read_loader(tf.data.Dataset.from_tensor_slices((x, y)).batch(3))
    assert (np.concatenate([one, two]) == x).all()
    assert (labels.numpy() == y[3:]).all()
    given = one.numpy()
    given += 1


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


def ragged(x, y):
    return tf.RaggedTensor.from_tensor(x), y


def test_dataset_is_not_seeded_between_its_batches(monkeypatch):
    # To set TensorFlow's seed empties its caches, which makes the next small step five times as long.
    seeds, set_seed = [], tf.random.set_seed
    monkeypatch.setattr(tf.random, "set_seed", lambda seed: (seeds.append(seed), set_seed(seed)))
    x = make_rows(40, 4)
    results = [
        train(Mlp(), slices(x, x[:, :1]).batch(4), loss="mse", epochs=2, seed=3, validation_data=(x, x[:, :1]), progress=False)
        for _ in range(2)
    ]
    assert len(seeds) < 2 * 10
    assert results[0].history[-1].loss == results[1].history[-1].loss


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda x: slices(x, x[:, 0]), r"use .batch\(32\)", id="not batched"),
        pytest.param(lambda x: slices(x, x).batch(2).repeat(), "never ends", id="endless"),
        pytest.param(lambda x: slices(x, x).batch(2).map(ragged), "RaggedTensorSpec", id="ragged"),
    ],
)
def test_dataset_of_something_else_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        list(FRAMEWORK.read_loader(make(make_rows(4, 2))))


def test_dataset_is_validated_on_as_its_rows_are_whatever_its_length_is_known():
    x = make_rows(50, 4)
    rows = slices(x, x[:, :1])
    scores = [
        train(Mlp(), (x, x[:, :1]), loss="mse", epochs=2, shuffle=False, validation_data=given, progress=False).history
        for given in ((x, x[:, :1]), rows.batch(8), rows.filter(lambda x, y: True).batch(8))
    ]
    losses = [[epoch.validation_loss for epoch in history] for history in scores]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-6)
    train(Mlp(), rows.filter(lambda x, y: True).batch(8), loss="mse", epochs=2, progress=False)


def order_of(source, epoch, start=0):
    return [value for batch in source.iterate(epoch, start) for value in batch.inputs.ravel().tolist()]


def read_ahead(rows):
    return rows.shuffle(24, seed=3).map(lambda x: x + 1, num_parallel_calls=2).batch(4).prefetch(2)


@pytest.mark.parametrize(
    "pipe",
    [
        pytest.param(read_ahead, id="ahead"),
        pytest.param(lambda rows: rows.cache().shuffle(7, seed=3).batch(4), id="cached"),
        pytest.param(lambda rows: rows.shuffle(24, seed=3, reshuffle_each_iteration=False).batch(4), id="once"),
    ],
)
def test_shuffled_dataset_gives_an_epoch_in_its_order_whenever_it_is_opened(pipe):
    def open_source():
        return LoaderSource(pipe(slices(np.arange(24.0))), FRAMEWORK, Columns(), 0)

    source = open_source()
    first, second, third = (order_of(source, epoch) for epoch in (1, 2, 3))
    assert [order_of(source, epoch) for epoch in (3, 1, 2)] == [third, first, second]
    for start in (0, 2):
        resumed = open_source()
        assert order_of(resumed, 2, start) == second[4 * start :]
        assert order_of(resumed, 3) == third


def test_run_on_a_shuffled_dataset_is_resumed_bit_for_bit(tmp_path):
    x = make_rows(40, 4)

    def run(folder, num_epochs, resume=False):
        model = Mlp()
        tf.random.set_seed(1)  # As in a new process: a dataset takes its seed from this, too.
        train(
            model,
            slices(x, x[:, :1]).shuffle(40, seed=5).batch(4),
            loss="mse",
            epochs=num_epochs,
            checkpoints=tmp_path / folder,
            resume=resume,
            progress=False,
        )
        return FRAMEWORK.get_weights(model)

    expected = run("whole", 3)
    run("cut", 1)
    for name, weight in run("cut", 3, resume=True).items():
        np.testing.assert_array_equal(weight, expected[name])


def test_prediction_joins_pieces_and_leaves_the_rows_alone():
    model, x = Mlp(), make_rows(600, 4)
    x.flags.writeable = False
    pieces = np.concatenate([FRAMEWORK.predict(model, part) for part in np.split(x, 4)])
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), pieces, **ROUNDING)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        pytest.param(Mlp(), make_rows(2, 5), "fails on rows of shape", id="shape"),
        pytest.param(Unwritable(tf.reduce_sum), make_rows(2, 4), r"a tensor of shape \(\)", id="no rows"),
    ],
)
def test_prediction_of_bad_rows_is_explained(model, x, words):
    with pytest.raises(InputError, match=words):
        FRAMEWORK.predict(model, x)


def make_stranger():
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(list(Mlp().trainable_variables))
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "loss", "options", "words"),
    [
        pytest.param(make_stranger, "mse", {}, "made for this model's weights", id="another model's"),
        pytest.param(lambda: keras.optimizers.SGD(use_ema=True), "mse", {}, "without use_ema", id="ema"),
        pytest.param(SGD, "mse", {"precision": "bfloat16"}, "the type of its variables", id="precision"),
        pytest.param(
            SGD, keras.losses.MeanSquaredError(reduction="sum"), {"micro_batch_size": 2}, "a mean, with micro-batches", id="sum"
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(optimizer, loss, options, words):
    with pytest.raises(InputError, match=words):
        FRAMEWORK.build_step(Mlp(), loss, optimizer(), FitOptions(**options))


def test_model_that_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="weights to train"):
        FRAMEWORK.build_step(make_network((Relu(),), (4,)), "mse", SGD(), FitOptions())
    with pytest.raises(InputError, match="a number without a gradient"):
        fit(Mlp(), make_rows(2, 4), make_rows(2, 1), lambda y, outputs: y)


def test_session_goes_on_from_the_callers_random_numbers_and_holds_the_number_of_threads():
    drawn = []
    for seed in (3, 3, 4):
        tf.random.set_seed(11)
        with FRAMEWORK.session(seed, None):
            inside = float(tf.random.uniform(()))
        drawn.append((inside, float(tf.random.uniform(()))))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] == drawn[2][1]
    with pytest.raises(InputError, match="has started"), FRAMEWORK.session(3, 61):
        pass
