"""ONNX files of a few hundred bytes that never end, or take gigabytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from tests.graphs import write_graph

_X = [("x", "FP32", ["N", 4])]
_Y = [("y", "FP32", ["N", 4])]


def write_endless(path: Path) -> Path:
    """Write a graph that multiplies its input by itself, 2**62 times."""

    def info(name: str, element: int, shape: list[str | int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, element, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Mul", ["a", "a"], ["b"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("a", TensorProto.FLOAT, ["N", 4])],
        [info("goes", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, ["N", 4])],
    )
    nodes = [helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)]
    return write_graph(path, nodes, _X, _Y, {"times": np.array(2**62), "true": np.array(True)})


def write_large(path: Path, num_bytes: int, *, is_constant: bool = True) -> Path:
    """Write a graph that makes so many zeros and adds one of them: of a constant when it is opened, or when it runs."""
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"], value=zero),
        helper.make_node("Gather", ["zeros", "first"], ["picked"]),
        helper.make_node("Cast", ["picked"], ["zero"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    weights = {"first": np.array(0), "size": np.array([num_bytes])}
    if not is_constant:
        # By the length of an axis, which nothing knows before it runs.
        weights = {"first": np.array(0), "each": np.array([num_bytes // 4])}
        length = helper.make_node("Shape", ["x"], ["length"], start=1, end=2)
        nodes = [length, helper.make_node("Mul", ["length", "each"], ["size"]), *nodes]
        tensors = (("x", "FP32", ["N", "M"]), ("y", "FP32", ["N", "M"]))
        return write_graph(path, nodes, tensors[:1], tensors[1:], weights)
    return write_graph(path, nodes, _X, _Y, weights)
