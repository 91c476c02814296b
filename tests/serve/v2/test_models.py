"""Small ONNX models for the V2 tests, and that a server describes each as it was built.

Other tests of V2 take their models from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import argosy
from argosy.datatypes import DATATYPES
from argosy.importers.onnx import import_onnx
from argosy.server import Server
from tests.conftest import Home

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

# ONNX Runtime's Python interface has no bfloat16 output for a model that has text among its inputs.
TYPES = {name: dtype for name, dtype in DATATYPES.items() if name != "BF16"}

Tensor = tuple[str, str, Sequence[int | str]]
"""Name, datatype and shape, whose free axes are words."""


def publish_graph(
    home: Home,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    weights: Sequence[onnx.TensorProto] = (),
    golden_inputs: dict[str, np.ndarray] | None = None,
) -> argosy.Version:
    """Write an ONNX file and import it."""

    def infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(each, ELEMENT_TYPES[datatype], shape) for each, datatype, shape in tensors]

    graph = helper.make_graph(nodes, name, infos(inputs), infos(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = home.files / f"{name}.onnx"
    onnx.save(model, str(path))
    return import_onnx(home.store, path, name, golden_inputs=golden_inputs)


def publish_same(home: Home, datatype: str) -> argosy.Version:
    """Publish a model that answers y = x, of any width."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return publish_graph(home, f"same-{datatype}", nodes, [("x", datatype, ("N", "K"))], [("y", datatype, ("N", "K"))])


def publish_all_types(home: Home) -> argosy.Version:
    """Publish a model with an input and an output of every datatype but BF16; each output is its input."""
    nodes = [helper.make_node("Identity", [f"in-{datatype}"], [f"out-{datatype}"]) for datatype in TYPES]
    inputs = [(f"in-{datatype}", datatype, ("N", "K")) for datatype in TYPES]
    outputs = [(f"out-{datatype}", datatype, ("N", "K")) for datatype in TYPES]
    return publish_graph(home, "types", nodes, inputs, outputs)


def publish_pair(home: Home) -> argosy.Version:
    """Publish two inputs and three outputs: joined = (a, b) as FP64, total = sum of b, positive = a > 0."""
    nodes = [
        helper.make_node("Cast", ["a"], ["a64"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["b"], ["b64"], to=TensorProto.DOUBLE),
        helper.make_node("Concat", ["a64", "b64"], ["joined"], axis=1),
        helper.make_node("ReduceSum", ["b", "axis"], ["total"], keepdims=0),
        helper.make_node("Greater", ["a", "zero"], ["positive"]),
    ]
    weights = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    ]
    inputs = [("a", "FP32", ("N", 2)), ("b", "INT64", ("N", 3))]
    outputs = [("joined", "FP64", ("N", 5)), ("total", "INT64", ("N",)), ("positive", "BOOL", ("N", 2))]
    return publish_graph(home, "pair", nodes, inputs, outputs, weights=weights)


def publish_turn(home: Home) -> argosy.Version:
    """Publish a model without an axis of rows: y is the transposed x."""
    nodes = [helper.make_node("Transpose", ["x"], ["y"])]
    return publish_graph(home, "turn", nodes, [("x", "FP32", (2, 3))], [("y", "FP32", (3, 2))])


def publish_scalar(home: Home) -> argosy.Version:
    """Publish a model of numbers without any axis: y = -x."""
    return publish_graph(home, "scalar", [helper.make_node("Neg", ["x"], ["y"])], [("x", "FP32", ())], [("y", "FP32", ())])


def publish_log(home: Home) -> argosy.Version:
    """Publish y = log(x), which is not finite for x <= 0."""
    golden = {"x": np.arange(1, 9, dtype=np.float32).reshape(4, 2)}
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    return publish_graph(home, "log", nodes, [("x", "FP32", ("N", 2))], [("y", "FP32", ("N", 2))], golden_inputs=golden)


PUBLISHERS = {
    "scale": Home.publish_scale,
    "types": publish_all_types,
    "pair": publish_pair,
    "turn": publish_turn,
    "scalar": publish_scalar,
    "log": publish_log,
    **{f"same-{datatype}": lambda home, datatype=datatype: publish_same(home, datatype) for datatype in DATATYPES},
}


@contextmanager
def serve_models(folder: Path, *names: str, **settings: Any) -> Iterator[Server]:
    """Publish models by name, and serve them."""
    home = Home(folder)
    for name in names:
        PUBLISHERS[name](home)
    with home.serve(*names, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = ("types", "pair", "turn", "scalar", "same-BYTES")
    with serve_models(tmp_path_factory.mktemp("models"), *names) as running:
        yield running


EXPECTED = {
    "pair": (
        [("a", "FP32", [-1, 2]), ("b", "INT64", [-1, 3])],
        [("joined", "FP64", [-1, 5]), ("total", "INT64", [-1]), ("positive", "BOOL", [-1, 2])],
    ),
    "turn": ([("x", "FP32", [2, 3])], [("y", "FP32", [3, 2])]),
    "scalar": ([("x", "FP32", [])], [("y", "FP32", [])]),
    "same-BYTES": ([("x", "BYTES", [-1, -1])], [("y", "BYTES", [-1, -1])]),
    "types": (
        [(f"in-{datatype}", datatype, [-1, -1]) for datatype in TYPES],
        [(f"out-{datatype}", datatype, [-1, -1]) for datatype in TYPES],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("suffix", ["", "/versions/1"], ids=["without-version", "with-version"])
def test_metadata_is_the_graphs(server: Server, name: str, suffix: str) -> None:
    inputs, outputs = EXPECTED[name]
    answer = httpx.get(f"{server.url}/v2/models/{name}{suffix}")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": each, "datatype": datatype, "shape": shape} for each, datatype, shape in inputs],
        "outputs": [{"name": each, "datatype": datatype, "shape": shape} for each, datatype, shape in outputs],
    }


def test_rows_are_joined_only_where_there_is_an_axis_of_rows(server: Server) -> None:
    with server.admin() as admin:
        refusals = {
            deployment["spec"]["name"]: lane["join_refusal"]
            for deployment in admin.status()["deployments"]
            for lane in deployment["lanes"]
        }
    assert refusals["turn"] == refusals["scalar"] == "the signature has no axis of rows"
    assert refusals["types"] == refusals["pair"] == refusals["same-BYTES"] == ""
