"""The models that the benchmarks serve, and bodies of requests for them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = (64, 256, 256, 10)


def make_mlp(path: Path) -> Path:
    """A multilayer perceptron 64-256-256-10 with random weights: input `x`, output `y`."""
    random = np.random.default_rng(7)
    nodes, weights, current = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(LAYERS)):
        weights.append(numpy_helper.from_array((random.standard_normal((rows, columns)) / rows**0.5).astype("f4"), f"w{index}"))
        weights.append(numpy_helper.from_array((random.standard_normal(columns) * 0.1).astype("f4"), f"b{index}"))
        is_last = index == len(LAYERS) - 2
        output = "y" if is_last else f"g{index}"
        nodes.append(helper.make_node("Gemm", [current, f"w{index}", f"b{index}"], [output]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [output], [f"r{index}"]))
            current = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", LAYERS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", LAYERS[-1]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def make_bodies(folder: Path, count: int = 16) -> np.ndarray:
    """Write `v2.txt` and `plain.txt`, a JSON body a line; returns the rows."""
    rows = np.random.default_rng(11).standard_normal((count, LAYERS[0])).astype("f4").round(4)
    values = [[float(str(value)) for value in row] for row in rows]

    def dump(item: object) -> str:
        return json.dumps(item, separators=(",", ":"))

    v2 = [{"inputs": [{"name": "x", "shape": [1, LAYERS[0]], "datatype": "FP32", "data": row}]} for row in values]
    (folder / "v2.txt").write_text("".join(dump(body) + "\n" for body in v2))
    (folder / "plain.txt").write_text("".join(dump({"x": row}) + "\n" for row in values))
    return rows
