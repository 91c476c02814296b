"""Small ONNX models for the tests of V2, and a server of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import argosy
from argosy.datatypes import DATATYPES
from argosy.importers.onnx import import_onnx
from argosy.server import Server
from tests.graphs import Tensor, write_graph
from tests.home import Home

# ONNX Runtime's Python interface has no bfloat16 output for a model that has text among its inputs.
TYPES = {name: dtype for name, dtype in DATATYPES.items() if name != "BF16"}


def publish_graph(
    home: Home,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    weights: Mapping[str, Any] | None = None,
    golden_inputs: dict[str, np.ndarray] | None = None,
) -> argosy.Version:
    """Write an ONNX file and import it."""
    path = write_graph(home.files / f"{name}.onnx", nodes, inputs, outputs, weights)
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
    weights = {"axis": np.array([1]), "zero": np.float32(0)}
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
