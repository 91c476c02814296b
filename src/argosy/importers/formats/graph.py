"""Build and finish small ONNX graphs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ML_DOMAIN", "ML_OPSET", "OPSET", "Graph", "Output", "finish_outputs"]

OPSET: Final = 17
"""Read by every ONNX Runtime that Argosy knows."""
ML_OPSET: Final = 3
"""Of the domain ai.onnx.ml: the one with `TreeEnsembleRegressor` in doubles."""

_IR_VERSION: Final = 8
ML_DOMAIN: Final = "ai.onnx.ml"
_PROBABILITIES: Final = "probabilities"
"""The output that is clipped to [0, 1]."""
_PREFIX: Final = "argosy."
"""Of the names inside a graph, so that they are no input's or output's."""


class Output(NamedTuple):
    """A tensor that a graph gives: one row for each row that goes in."""

    tensor: str
    """Its name inside the graph."""
    dtype: np.dtype[Any]
    """Object stands for text."""
    row_shape: tuple[int, ...]


class Graph:
    """Nodes in the order in which they run. A tensor is known by the name that `add` and `constant` give it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._helper: Any = importlib.import_module("onnx.helper")

    def add(self, kind: str, *inputs: str, is_ml: bool = False, **attributes: object) -> str:
        """Add an operator with one output."""
        name = f"{_PREFIX}{kind}_{len(self.nodes)}"
        domain = ML_DOMAIN if is_ml else None
        self.nodes.append(self._helper.make_node(kind, inputs, [name], domain=domain, **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant."""
        numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
        name = f"{_PREFIX}constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def save(self, path: Path, *, input_name: str, dtype: np.dtype[Any], width: int, outputs: dict[str, Output]) -> None:
        """Write the graph as a model whose one input has shape (-1, width)."""
        helper = self._helper
        given = helper.make_tensor_value_info(input_name, helper.np_dtype_to_tensor_dtype(dtype), [None, width])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML_DOMAIN, ML_OPSET)]
        model = helper.make_model(helper.make_graph([], "model", [given], []), opset_imports=opsets, ir_version=_IR_VERSION)
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self.weights)
        finish_outputs(model, outputs)
        path.write_bytes(model.SerializeToString())


def finish_outputs(model: Any, outputs: dict[str, Output]) -> None:
    """Give a model exactly these outputs, each in the type and shape that its framework answers in, for any number of rows."""
    helper: Any = importlib.import_module("onnx.helper")
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    graph = model.graph
    moved = {name: f"{_PREFIX}{name}" for name in outputs}
    _rename(graph, moved)
    del graph.output[:]
    for name, output in outputs.items():
        shape = numpy_helper.from_array(np.array([-1, *output.row_shape], np.int64), f"{_PREFIX}shape_of_{name}")
        graph.initializer.append(shape)
        element = helper.np_dtype_to_tensor_dtype(output.dtype)
        source = moved.get(output.tensor, output.tensor)
        if output.dtype.kind != "O":
            # What converters declare and what they compute is not always of one type.
            graph.node.append(helper.make_node("Cast", [source], [f"{_PREFIX}cast_of_{name}"], to=element))
            source = f"{_PREFIX}cast_of_{name}"
        if name == _PROBABILITIES:
            # A sum of hundreds of float32 shares passes 1 by a few units of its last place.
            for kind, bound in (("Max", 0), ("Min", 1)):
                limit = numpy_helper.from_array(np.array(bound, output.dtype), f"{_PREFIX}{bound}_of_{name}")
                graph.initializer.append(limit)
                graph.node.append(helper.make_node(kind, [source, limit.name], [f"{_PREFIX}{kind}_of_{name}"]))
                source = f"{_PREFIX}{kind}_of_{name}"
        graph.node.append(helper.make_node("Reshape", [source, shape.name], [name]))
        graph.output.append(helper.make_tensor_value_info(name, element, [None, *output.row_shape]))


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename tensors where they are made and used, but not the graph's inputs."""
    for tensor in (*graph.initializer, *graph.value_info):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for attribute in node.attribute:
            # Bodies of loops and branches use what stands outside of them.
            for body in (attribute.g, *attribute.graphs):
                _rename(body, names)
