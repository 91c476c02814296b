"""What is asked of an ONNX file before a step is chosen: which operators it has, and what each of its layers costs."""

from __future__ import annotations

import importlib
from collections import Counter
from math import prod
from typing import Any

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import list_heavy, name_nodes, read_model
from argosy.compress.steps.merge_lora import has_adapters

__all__ = ["look", "weigh_layers"]


def look(artifact: Artifact) -> dict[str, Any]:
    """Count the operators by kind, and say whether there are adapters to merge.

    Raises:
        InputError: `step_failed`, it cannot be read.
    """
    model = read_model(artifact, "search")
    return {"kinds": Counter(node.op_type for node in model.graph.node), "has_adapters": has_adapters(model)}


def weigh_layers(artifact: Artifact) -> list[tuple[float, float]]:
    """Give how many weights each layer has, and how many products it takes for a row, in the graph's order.

    Raises:
        InputError: `step_failed`, it cannot be read.
    """
    model = read_model(artifact, "search")
    name_nodes(model)
    onnx: Any = importlib.import_module("onnx")
    inferred: Any = onnx.shape_inference.infer_shapes(model)
    shapes = {
        info.name: [dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    heavy = set(list_heavy(model))
    found: list[tuple[float, float]] = []
    for node in model.graph.node:
        if node.name in heavy:
            own = float(max(prod(weights[name]) for name in node.input if name in weights))
            shape = shapes.get(node.output[0], [])
            # Places at which the same weights are used: of a convolution all behind the channels, else those before them.
            places = shape[2:] if "Conv" in node.op_type else shape[1:-1]
            found.append((own, own * prod(places)))
    return found
