"""An ONNX graph as a module of torch: its weights are parameters, and go back into the graph when they are trained."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from argosy.frameworks.torch.graph.operators import OPERATORS, Call
from argosy.frameworks.torch.graph.shapes import SHAPE_OPERATORS, to_tensor
from argosy.signature import Arrays

__all__ = ["Network", "list_weights"]

torch: Any = importlib.import_module("torch")
onnx: Any = importlib.import_module("onnx")

_KNOWN: Final = OPERATORS | SHAPE_OPERATORS
_PLACES: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "Gather": (0,),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""At which inputs of an operator weights stand. A single number that is added or multiplied with is a constant of the code."""


def list_weights(model: Any) -> list[str]:
    """Name the constants of a graph that training may change."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, None] = {}
    for node in model.graph.node:
        for place in _PLACES.get(node.op_type, ()):
            tensor = constants.get(node.input[place]) if place < len(node.input) else None
            if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or math.prod(list[int](tensor.dims)) < 2:
                continue
            found[tensor.name] = None
    return list(found)


_Module: Any = torch.nn.Module


class Network(_Module):
    """What a graph computes; as it is served: no dropout, means and variances as they were left.

    Args:
        model: the parsed file; constants are initializers. It is not changed.

    Raises:
        ValueError: it has an operator, or weights, that cannot be trained here.
    """

    def __init__(self, model: Any) -> None:
        _Module.__init__(self)
        self._graph = model.graph
        self._opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        unknown = sorted({node.op_type for node in self._graph.node if node.domain not in ("", "ai.onnx")})
        unknown += sorted({node.op_type for node in self._graph.node} - set(_KNOWN) - set(unknown))
        if unknown:
            raise ValueError(f"operators that cannot be trained here: {', '.join(unknown)}")
        trainable = set(list_weights(model))
        if not trainable:
            raise ValueError("there are no float32 weights to train")
        self._constants: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        """Parameters by the names that they have in the graph."""
        for tensor in self._graph.initializer:
            value = to_tensor(tensor)
            if tensor.name in trainable:
                value = torch.nn.Parameter(value)
                self.register_parameter(f"weight_{len(self.weights)}", value)
                self.weights[tensor.name] = value
            else:
                self._constants[tensor.name] = value
        self._attributes = [
            {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in self._graph.node
        ]
        self._last_use = {name: place for place, node in enumerate(self._graph.node) for name in node.input}
        self._outputs = [value.name for value in self._graph.output]

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Give the outputs by name."""
        return self._run(inputs, None)

    def trace(self, inputs: Arrays) -> dict[str, tuple[int, ...]]:
        """Run it once; gives the shape of every tensor in it by name, constants included."""
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        shapes |= {name: tuple(value.shape) for name, value in (self._constants | self.weights).items()}
        with torch.no_grad():
            self._run({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}, shapes)
        return shapes

    def write_to(self, model: Any) -> None:
        """Write the weights into a graph that has the same ones."""
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                array = self.weights[tensor.name].detach().numpy()
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

    def _run(self, inputs: Mapping[str, Any], shapes: dict[str, tuple[int, ...]] | None) -> dict[str, Any]:
        values: dict[str, Any] = {"": None, **self._constants, **self.weights, **inputs}
        for place, node in enumerate(self._graph.node):
            call = Call([values[name] for name in node.input], self._attributes[place], self._opset, len(node.output))
            made = _KNOWN[node.op_type](call)
            parts: Any = (made,) if torch.is_tensor(made) else made
            for name, part in zip(node.output, parts, strict=False):
                values[name] = part
                if shapes is not None:
                    shapes[name] = tuple(part.shape)
            for name in node.input:
                if self._last_use[name] == place and name not in self._outputs and name in values and name:
                    del values[name]
        return {name: values[name] for name in self._outputs}
