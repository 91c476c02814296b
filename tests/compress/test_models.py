"""Versions of any form are compressed: weights in files of their own, no axis of rows, states, answers of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper

from argosy.bench.artifact import Artifact
from argosy.compress import Guard, compress
from argosy.compress.recipe import get_recipe, run_recipe
from argosy.compress.steps.base import Step, Workshop, read_model, write_model
from argosy.errors import ConflictError, FaultError
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store
from tests.compress.artifacts import answer, make_artifact, make_perceptron, name_operators

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(64, 64)).astype(np.float32) / 8


def test_weights_may_lie_in_files_of_their_own(store: Store, tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "model", 256)
    place: dict[str, Any] = {"save_as_external_data": True, "location": "model.weights", "size_threshold": 0}
    onnx.save(onnx.load(str(artifact.path)), str(artifact.path), **place)
    parent = import_onnx(store, artifact.path, "large")
    assert (store.open_artifact(parent) / "model.weights").exists()
    rows = RANDOM.normal(size=(120, 16)).astype(np.float32)
    result = compress(parent, method="float16", data=rows, store=store)
    assert result.version is not None and result.score.after > 0.999 and result.after.size_bytes < 0.6 * result.before.size_bytes


def test_requests_without_rows_and_with_states_are_compressed_and_their_golden_examples_kept(
    store: Store, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["moved"]),
        helper.make_node("Add", ["moved", "state"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["next"]),
        helper.make_node("ReduceSum", ["next"], ["y"], keepdims=0),
    ]
    inputs, outputs = [("x", "FP32", (1, 64)), ("state", "FP32", (1, 64))], [("y", "FP32", ()), ("next", "FP32", (1, 64))]
    parent = import_onnx(store, make_artifact(tmp_path / "model", nodes, inputs, outputs, {"w": WEIGHTS}).path, "states")
    assert not parent.manifest.signature.is_batched and parent.manifest.num_golden
    rows = [{name: RANDOM.normal(size=(1, 64)).astype(np.float32) for name in ("x", "state")} for _ in range(60)]
    result = compress(parent, method="float16", data=rows, store=store)
    assert result.version is not None
    old, new = store.load_golden(parent), store.load_golden(result.version)
    assert {name: array.shape for name, array in old.outputs.items()} == {
        name: array.shape for name, array in new.outputs.items()
    }
    np.testing.assert_allclose(new.outputs["next"], old.outputs["next"], atol=2e-2)


@pytest.mark.parametrize("name", ["dynamic-int8", "int8", "weights", "float16"])
def test_weights_may_be_written_as_nodes(name: str, tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "model", 256)
    model = onnx.load(str(artifact.path))
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(artifact.path))
    rows = [{"x": row[None]} for row in RANDOM.normal(size=(32, 16)).astype(np.float32)]
    made = run_recipe(get_recipe(name), artifact, Workshop(tmp_path / "made", rows))
    assert made.size_bytes < 0.7 * artifact.size_bytes or name == "weights"
    assert not {"Constant", "MatMul"} & set(name_operators(made).values()) or name in ("int8", "float16")
    np.testing.assert_allclose(answer(made, **rows[0])["y"], answer(artifact, **rows[0])["y"], atol=0.1)


def test_weights_may_be_listed_among_the_inputs_of_an_old_opset(tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "model", 256)
    model = onnx.load(str(artifact.path))
    model.graph.node[-1].output[0] = "z"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4], np.int64), "size"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["zeros"]))
    model.graph.node.append(helper.make_node("Add", ["z", "zeros"], ["y"]))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version, model.opset_import[0].version = 3, 9
    onnx.save(model, str(artifact.path))
    rows = [{"x": row[None]} for row in RANDOM.normal(size=(32, 16)).astype(np.float32)]
    made = run_recipe(get_recipe("int8"), artifact, Workshop(tmp_path / "made", rows))
    np.testing.assert_allclose(answer(made, **rows[0])["y"], answer(artifact, **rows[0])["y"], atol=0.1)


def test_what_is_in_8_bits_stays_so_in_float16(tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "model", 256)
    made = run_recipe(get_recipe("dynamic-int8+float16"), artifact, Workshop(tmp_path / "made"))
    assert "DynamicQuantizeLinear" in name_operators(made).values()
    row = RANDOM.normal(size=(1, 16)).astype(np.float32)
    np.testing.assert_allclose(answer(made, x=row)["y"], answer(artifact, x=row)["y"], atol=0.1)


class Divide(Step, frozen=True, kw_only=True):
    """Give x * (x + 1) / x for x + 1, which is as good but at 0."""

    name: ClassVar[str] = "divide"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        model = read_model(artifact, self.name)
        model.graph.node[0].output[0] = "sum"
        model.graph.node.append(helper.make_node("Mul", ["x", "sum"], ["product"]))
        model.graph.node.append(helper.make_node("Div", ["product", "x"], ["y"]))
        return write_model(model, artifact, workshop)


def test_candidate_that_answers_golden_examples_with_no_numbers_is_refused(store: Store, tmp_path: Path) -> None:
    graph = [helper.make_node("Add", ["x", "one"], ["y"])], [("x", "FP32", ("n", 4))], [("y", "FP32", ("n", 4))]
    artifact = make_artifact(tmp_path / "model", *graph, {"one": np.ones(4, np.float32)})
    golden = {"x": np.eye(4, dtype=np.float32)[:3]}
    parent = import_onnx(store, artifact.path, "sum", golden_inputs=golden, has_rows=True)
    rows = RANDOM.normal(size=(60, 4)).astype(np.float32)
    with pytest.raises(ConflictError, match="the answers to 3 of 3 golden examples are no numbers"):
        compress(parent, method=Divide(), data=rows, guard=Guard("cosine"), store=store, needs_gain=False)


class Late(Step, frozen=True, kw_only=True):
    """Cut what a graph cuts two numbers later."""

    name: ClassVar[str] = "late"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        model = read_model(artifact, self.name)
        for tensor in model.graph.initializer:
            if tensor.name in ("start", "end"):
                number = onnx.numpy_helper.to_array(tensor) + 2
                tensor.CopyFrom(onnx.numpy_helper.from_array(number, tensor.name))
        return write_model(model, artifact, workshop)


@pytest.mark.parametrize(("width", "golden_width", "told"), [(16, 4, "golden example"), (4, 16, "evaluation row")])
def test_candidate_that_answers_in_another_shape_is_refused(
    width: int, golden_width: int, told: str, store: Store, tmp_path: Path
) -> None:
    cut = helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])
    weights = {name: np.array([number], np.int64) for name, number in (("start", 0), ("end", 8), ("axis", 1))}
    artifact = make_artifact(tmp_path / "model", [cut], [("x", "FP32", ("n", "k"))], [("y", "FP32", ("n", "m"))], weights)
    golden = {"x": RANDOM.normal(size=(3, golden_width)).astype(np.float32)}
    parent = import_onnx(store, artifact.path, "cut", golden_inputs=golden, has_rows=True)
    rows = np.repeat(RANDOM.normal(size=(60, 1)), width, axis=1).astype(np.float32)
    with pytest.raises(FaultError, match=rf"late made .* 'y' of {told} 0 has shape \(1, 2\), of the original \(1, 4\)"):
        compress(parent, method=Late(), data=rows, guard=Guard("cosine"), store=store)
