"""JAX out of JAX: ONNX files, and StableHLO programs with the runtime that serves them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from argosy.errors import ModelError
from argosy.frameworks.onnx import OnnxModel
from argosy.runtimes.jax import WEIGHTS_SUFFIX, JaxRuntime
from tests.frameworks.jax_models import (
    FRAMEWORK,
    ROW,
    Branching,
    Embedding,
    Mean,
    Recurrent,
    make_labels,
    make_mlp,
    make_network,
    make_rows,
)
from tests.frameworks.one_tensor import check_one, export_one, save_one
from tests.scripts import ROOT

NAMES = {"inputs": ["x"], "outputs": ["y"]}

EXPORTED = [
    pytest.param(lambda: make_mlp(units=3), make_rows(5, 4), id="mlp"),
    pytest.param(make_network, make_rows(5, *ROW), id="cnn"),
    pytest.param(Recurrent, make_rows(5, 6, 5), id="lstm"),
    pytest.param(Embedding, make_labels(20, 50).reshape(5, 4), id="embedding"),
    pytest.param(lambda: make_mlp("float64", units=3), make_rows(5, 4, dtype="float64"), id="float64"),
]


@pytest.mark.parametrize(("make", "rows"), EXPORTED)
def test_onnx_file_answers_as_the_model(make, rows, tmp_path):
    model, path = make(), tmp_path / "model.onnx"
    # Names that the converter itself would give to something inside.
    export_one(FRAMEWORK, model, rows, path, input_name="const_0", output_name="the out_0")
    exported = OnnxModel(path)
    assert (exported.input_names, exported.output_names) == (["const_0"], ["the out_0"])
    expected = FRAMEWORK.predict(model, rows)
    assert check_one(exported, partial(FRAMEWORK.predict, model), rows).difference < 1e-5
    assert exported.run({"const_0": rows})["the out_0"].dtype == expected.dtype


def test_length_that_is_free_is_taken_in_both_forms(tmp_path):
    model, rows = Embedding(), make_labels(20, 50).reshape(5, 4)
    export_one(FRAMEWORK, model, rows, tmp_path / "model.onnx", input_name="x", output_name="y", free=(1,))
    check_one(OnnxModel(tmp_path / "model.onnx"), partial(FRAMEWORK.predict, model), rows, (1,))
    saved = save_one(FRAMEWORK, model, rows, tmp_path, (1,))
    assert any(kind.startswith("lengths") for kind in saved.evidence.kinds)
    runtime = JaxRuntime()
    runtime.load(tmp_path, saved.entry, NAMES)
    with pytest.raises(ValueError, match="expected at least one row of shape"):
        runtime.infer({"x": rows[:, :, None]})


def test_model_that_cannot_be_traced_is_not_exported(tmp_path):
    for save in (
        lambda: export_one(FRAMEWORK, Branching(), make_rows(2, 4), tmp_path / "m.onnx", input_name="x", output_name="y"),
        lambda: save_one(FRAMEWORK, Branching(), make_rows(2, 4), tmp_path),
    ):
        with pytest.raises(ModelError) as caught:
            save()
        assert caught.value.key in ("export_failed", "save_failed")


def load_saved(model, rows, folder):
    entry = save_one(FRAMEWORK, model, rows, folder).entry
    runtime = JaxRuntime()
    runtime.load(folder, entry, NAMES)
    return runtime


@pytest.mark.parametrize(("make", "rows"), EXPORTED)
def test_saved_program_answers_any_number_of_rows_as_the_model(make, rows, tmp_path):
    model = make()
    runtime = load_saved(model, rows, tmp_path)
    for num_rows in (1, 2, 3, 7, 20):
        x = rows[np.arange(num_rows) % len(rows)]
        answer = runtime.infer({"x": x})["y"]
        np.testing.assert_allclose(answer, FRAMEWORK.predict(model, x), atol=1e-5)
        assert answer.flags.c_contiguous


def test_saved_model_draws_no_random_numbers_and_keeps_odd_weights(tmp_path):
    class Odd(Mean):
        def __init__(self):
            super().__init__()
            self.half = nnx.Param(jnp.ones(2, jnp.bfloat16))
            self.key = nnx.Variable(jax.random.key(3))
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(2))

        def __call__(self, x):
            return self.drop(self.head(x)) * self.half[...] + jax.random.normal(self.key[...], (2,))

    model, x = Odd(), make_rows(3, 4)
    np.testing.assert_allclose(load_saved(model, x, tmp_path).infer({"x": x})["y"], FRAMEWORK.predict(model, x), atol=1e-5)


def test_model_whose_rows_change_each_other_is_not_saved(tmp_path):
    with pytest.raises(ModelError) as caught:
        save_one(FRAMEWORK, Mean(), make_rows(7, 4), tmp_path)
    assert caught.value.key == "save_failed"


def test_runtime_refuses_rows_that_are_not_the_model_s(tmp_path):
    runtime = load_saved(Embedding(), make_labels(8, 50).reshape(2, 4), tmp_path)
    for rows, words in [
        (np.zeros((2, 5), np.int64), "has shape"),
        (np.zeros((0, 4), np.int64), "at least one row"),
        (np.zeros((2, 4), np.float32), "it is float32"),
        (np.full((2, 4), 2**40), "beyond int32"),
    ]:
        with pytest.raises(ValueError, match=words):
            runtime.infer({"x": rows})


def write_program(function, folder):
    target = "lapack_spotrf_ffi"
    allowed = [export.DisabledSafetyCheck.custom_call(target)]
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    (folder / "m").write_bytes(
        export.export(jax.jit(function), platforms=["cpu"], disabled_checks=allowed)([], shape).serialize()
    )
    np.savez(folder / f"m{WEIGHTS_SUFFIX}", *[])


def test_runtime_refuses_a_program_that_calls_out_of_itself(tmp_path):
    def call_out(weights, x):
        return jax.ffi.ffi_call("lapack_spotrf_ffi", (x, jax.ShapeDtypeStruct((), jnp.int32)))(x, uplo=np.uint8(76))[0]

    write_program(call_out, tmp_path)
    with pytest.raises(ValueError, match=r"reaches out of itself by stablehlo\.custom_call lapack_spotrf_ffi"):
        JaxRuntime().load(tmp_path, "m", NAMES)
    write_program(lambda weights, x: (x, x), tmp_path)
    with pytest.raises(ValueError, match="2 outputs"):
        JaxRuntime().load(tmp_path, "m", NAMES)


def test_runtime_refuses_damaged_programs_and_weights(tmp_path):
    model, x = make_mlp(), make_rows(2, 4)
    entry = save_one(FRAMEWORK, model, x, tmp_path).entry
    program, weights = tmp_path / entry, tmp_path / f"{entry}{WEIGHTS_SUFFIX}"
    whole, arrays = program.read_bytes(), list(FRAMEWORK.get_weights(model).values())
    for content in (b"", b"\x00" * 64, whole[: len(whole) // 2]):
        program.write_bytes(content)
        with pytest.raises(ValueError, match=r"no program of jax\.export"):
            JaxRuntime().load(tmp_path, entry, NAMES)
    program.write_bytes(whole)
    for save in (
        lambda: np.savez_compressed(weights, *arrays),
        lambda: np.savez(weights, *arrays[:-1]),
        lambda: np.savez(weights, *[array.T for array in arrays]),
        lambda: np.savez(weights, *[array.view(np.uint32) for array in arrays]),
        lambda: np.savez(weights, *[np.array([object()], object) for _ in arrays], allow_pickle=True),
        lambda: weights.write_bytes(b"PK"),
        weights.unlink,
    ):
        save()
        with pytest.raises(ValueError, match="does not hold the weights"):
            JaxRuntime().load(tmp_path, entry, NAMES)


def test_worker_may_try_more_threads(tmp_path):
    save_one(FRAMEWORK, make_mlp(), make_rows(2, 4), tmp_path)
    code = f"""
import numpy as np
from pathlib import Path
from argosy.runtimes.jax import JaxRuntime, count_threads
for threads in (1, 2):
    runtime = JaxRuntime()
    runtime.load(Path({str(tmp_path)!r}), "model.stablehlo", {NAMES!r} | {{"threads": threads}})
    print(threads, count_threads() >= threads, runtime.infer({{"x": np.ones((3, 4), np.float32)}})["y"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines() == ["1 True (3, 1)", "2 True (3, 1)"]
