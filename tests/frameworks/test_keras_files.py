"""Keras models out of the framework: exported to ONNX, or in Keras' own file, which its runtime serves.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; see `test_keras_backends.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

import argosy
from argosy.errors import ModelError
from argosy.frameworks.keras import FRAMEWORK
from argosy.frameworks.layers import Dense, Relu
from argosy.frameworks.onnx import OnnxModel
from argosy.runtimes.base import BadInput
from argosy.runtimes.keras import BACKEND_FILE, KerasRuntime
from argosy.store.local import Store
from tests.frameworks.keras_models import (
    BACKEND,
    HAS_DOUBLE,
    ROW,
    make_embedding,
    make_labels,
    make_lstm,
    make_mlp,
    make_network,
    make_rows,
)
from tests.frameworks.one_tensor import check_one, export_one, save_one
from tests.scripts import ROOT

# Keras' own calls that save a model or show weights: NumPy warns of the way in which it converts TensorFlow's variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
