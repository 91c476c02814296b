"""Small artifacts, written as lists of nodes, and what ONNX Runtime answers with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from argosy.bench.artifact import Artifact
from argosy.frameworks.onnx import OnnxModel
from argosy.signature import Signature, TensorSpec
from tests.graphs import Tensor, write_graph

__all__ = ["answer", "make_artifact", "make_dense", "make_perceptron", "name_operators", "read_constants"]


def make_artifact(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weights: Mapping[str, Any] | None = None,
    *,
    has_rows: bool = True,
) -> Artifact:
    """An ONNX file alone in a folder; a free axis is a word."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / "model.onnx", nodes, inputs, outputs, weights)
    specs = [
        tuple(TensorSpec(name, kind, tuple(-1 if isinstance(n, str) else n for n in shape)) for name, kind, shape in tensors)
        for tensors in (inputs, outputs)
    ]
    return Artifact(folder, "model.onnx", "onnx", Signature(specs[0], specs[1], has_rows=has_rows))


def make_dense(folder: Path, w: NDArray[Any], b: NDArray[Any]) -> Artifact:
    """softmax(x @ w + b), with any number of rows; w has shape (in, out)."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], name="gemm"),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1, name="softmax"),
    ]
    rows = [("x", "FP32", ("rows", w.shape[0]))], [("y", "FP32", ("rows", w.shape[1]))]
    return make_artifact(folder, nodes, *rows, {"w": w, "b": b})


def make_perceptron(folder: Path, width: int = 64, *, outlier: float = 1.0) -> Artifact:
    """x of 16 numbers to y of 4 over `first`, Relu and `second`, both MatMul with random weights.

    Args:
        folder: for the file.
        width: of the hidden layer.
        outlier: by which one hidden unit is larger than the others, and counts less.
    """
    random = np.random.default_rng(7)
    first = (random.normal(size=(16, width)) / 4).astype(np.float32)
    second = (random.normal(size=(width, 4)) / width**0.5).astype(np.float32)
    first[:, 0] *= outlier
    second[0] /= outlier
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "second"], ["y"], name="second"),
    ]
    weights = {"first": first, "second": second}
    return make_artifact(folder, nodes, [("x", "FP32", ("rows", 16))], [("y", "FP32", ("rows", 4))], weights)


def answer(artifact: Artifact, **inputs: Any) -> dict[str, NDArray[Any]]:
    """Of ONNX Runtime, on one thread."""
    return OnnxModel(artifact.path).run(inputs)


def read_constants(artifact: Artifact) -> dict[str, NDArray[Any]]:
    """The weights in a file, as float64."""
    graph = onnx.load(str(artifact.path)).graph
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}


def name_operators(artifact: Artifact) -> dict[str, str]:
    """The kind of each node by its name."""
    return {node.name: node.op_type for node in onnx.load(str(artifact.path)).graph.node}
