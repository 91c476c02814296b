"""An answer that depends on how many rows there are is not a row's own, whatever the number goes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.rows.proof import judge_rows
from argosy.signature import Signature, TensorSpec

node = helper.make_node
F4 = np.float32
COUNT = [
    node("Shape", ["x"], ["n"], end=1),
    node("Squeeze", ["n"], ["count"]),
    node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
]
"""The number of rows: as a shape, as an integer, as a float."""
ONES = {"ones": np.ones(4, F4), "zeros": np.zeros(4, F4)}
AXES = {"first": np.array([0]), "second": np.array([1])}
TABLE = {"table": np.arange(64, dtype=F4).reshape(16, 4), **AXES}
UNIT = {"unit": np.ones((1, 1, 1), F4), **AXES}


def make_body() -> Any:
    """Doubles a, and goes on while there are rows left."""
    kinds = {
        "i": TensorProto.INT64,
        "goes": TensorProto.BOOL,
        "a": TensorProto.FLOAT,
        "on": TensorProto.BOOL,
        "b": TensorProto.FLOAT,
    }
    shapes = {"a": ["N", 4], "b": ["N", 4]}
    tensors = [helper.make_tensor_value_info(name, kind, shapes.get(name, [])) for name, kind in kinds.items()]
    nodes = [node("Add", ["a", "a"], ["b"]), node("Less", ["i", "count"], ["on"])]
    return helper.make_graph(nodes, "b", tensors[:3], tensors[3:])


def around(op: str, *inputs: str, axis: str = "second", **attributes: Any) -> list[Any]:
    """An operator on rows with one more axis, of one entry."""
    return [
        node("Unsqueeze", ["x", axis], ["u"]),
        node(op, ["u", *inputs], ["v"], **attributes),
        node("Squeeze", ["v", axis], ["y"]),
    ]


CASES: dict[str, tuple[list[Any], Mapping[str, Any]]] = {
    "turns of a loop": ([node("Loop", ["", "true", "x"], ["y"], body=make_body())], {"true": np.array(True)}),
    "what a table is cut to": (
        [node("Slice", ["table", "first", "n"], ["t"]), node("ReduceSum", ["t", "first"], ["s"]), node("Add", ["x", "s"], ["y"])],
        TABLE,
    ),
    "length of what a table is cut to": (
        [
            node("Slice", ["table", "first", "n"], ["t"]),
            node("Shape", ["t"], ["l"], end=1),
            node("Cast", ["l"], ["f"], to=TensorProto.FLOAT),
            node("Add", ["x", "f"], ["y"]),
        ],
        TABLE,
    ),
    "scale of a quantisation": (
        [node("QuantizeLinear", ["x", "number"], ["q"]), node("DequantizeLinear", ["q", "number"], ["y"])],
        {},
    ),
    "scale of a layer's normalisation": (
        [node("Mul", ["ones", "number"], ["s"]), node("LayerNormalization", ["x", "s"], ["y"])],
        ONES,
    ),
    "scale of a batch's normalisation": (
        [node("Mul", ["ones", "number"], ["s"]), node("BatchNormalization", ["x", "s", "zeros", "zeros", "ones"], ["y"])],
        ONES,
    ),
    "weight of a convolution": ([node("Mul", ["unit", "number"], ["w"]), *around("Conv", "w")], UNIT),
    "weight of a convolution turned round": ([node("Mul", ["unit", "number"], ["w"]), *around("ConvTranspose", "w")], UNIT),
    "what rows are filled up with": (
        [
            node("Pad", ["x", "pads", "number"], ["p"]),
            node("ReduceSum", ["p", "second"], ["s"]),
            node("Mul", ["x", "s"], ["y"]),
        ],
        {"pads": np.array([0, 0, 0, 1]), **AXES},
    ),
    "depth of a one-hot": (
        [
            node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            node("OneHot", ["i", "n", "ones2"], ["o"]),
            node("ReduceSum", ["o", "last"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        {"ones2": np.ones(2, F4), "last": np.array([2])},
    ),
    "scales of a resize": (
        [
            node("Concat", ["second", "n"], ["s"], axis=0),
            node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            node("Resize", ["x", "", "f"], ["r"], mode="nearest"),
            node("ReduceSum", ["r", "second"], ["t"]),
            node("Add", ["x", "t"], ["y"]),
        ],
        AXES,
    ),
    "halves of two rows": (
        [
            node("Reshape", ["x", "wide"], ["w"]),
            node("Softmax", ["w"], ["s"], axis=1),
            node("Reshape", ["s", "narrow"], ["y"]),
        ],
        {"wide": np.array([-1, 8]), "narrow": np.array([-1, 4])},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_depends_on_the_number_of_rows_is_not_independent(case: str) -> None:
    nodes, weights = CASES[case]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph([*COUNT, *nodes], "g", infos[:1], infos[1:], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    # It does depend on it: two rows are answered otherwise together than alone, or only so.
    session: Any = onnxruntime.InferenceSession(model.SerializeToString())
    rows = np.random.default_rng(0).random((2, 4)).astype(F4) * 3
    (together,) = session.run(None, {"x": rows})
    if case != "halves of two rows":
        alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in rows])
        assert np.abs(together - alone).max() > 0.1
    verdict, _ = judge_rows(model, Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),)))
    assert verdict.kind != "independent"
