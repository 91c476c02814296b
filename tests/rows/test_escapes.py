"""Graphs whose rows influence one another by ways that only their numbers, lengths or names tell: none is called independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.rows.proof import judge_rows
from argosy.signature import Signature, TensorSpec

node = helper.make_node
F4 = np.float32
OPSETS = [helper.make_opsetid(*opset) for opset in (("", 18), ("com.microsoft", 1), ("own", 1))]
MICROSOFT: Mapping[str, Any] = {"domain": "com.microsoft"}
WEIGHTS: dict[str, Any] = {
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4]), "six": np.array([6]),
    "100": np.array([100]), "many": np.array([2**62]), "-1": np.array([-1]), "-7": np.array([-7]), "three": np.array([3]),
    "true": np.array([True]), "2.0": np.array([2], F4), "3.0": np.array([3], F4), "1.0": np.array([1], F4),
    "unknown": np.array([0, 0]),
    "ones": np.ones(4, F4), "zeros": np.zeros(4, F4), "table": np.zeros((4, 4), F4), "pads": np.array([1, 0]),
    "flat": np.array([-1, 1]), "fold2": np.array([-1, 2]), "fold4": np.array([-1, 4]), "fold44": np.array([-1, 4, 4]),
    "22": np.array([2, 2]), "143": np.array([1, 4, 4]), "scale": np.array(0.1, F4), "none": np.array(0, np.uint8),
    "bytes": np.ones((4, 4), np.uint8), "mix": np.random.default_rng(0).random((4, 12)).astype(F4), "twelve": np.zeros(12, F4),
}  # fmt: skip
COUNT = [node("Shape", ["x"], ["n"], end=1), node("Shape", ["x"], ["shape"])]
"""The number of rows, and the shape of x."""
SOFT = [node("Softmax", ["r"], ["s"], axis=1), node("Reshape", ["s", "shape"], ["y"])]
"""Over the last axis of what x was given another shape for."""
BACK = [node("Resize", ["r", "", "", "shape"], ["y"], mode="cubic")]
"""As many rows again as x has."""


def branch(condition: str, then: str = "Identity", other: str = "Neg") -> list[Any]:
    over_rows: dict[str, Any] = {"axis": 0}
    graphs = [
        helper.make_graph(
            [node(op, ["x"], [op], **(over_rows if op == "Softmax" else {}))],
            "g",
            [],
            [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)],
        )
        for op in (then, other)
    ]
    return [node("Squeeze", [condition], ["c"]), node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])]


def function(op: str, inputs: Sequence[str], nodes: Sequence[Any], domain: str = "own", overload: str = "") -> Any:
    made = helper.make_function(domain, op, list(inputs), ["b"], list(nodes), OPSETS[:1])
    made.overload = overload
    return made


def cut() -> Any:
    constants = [node("Constant", [], [name], value=numpy_helper.from_array(WEIGHTS[name])) for name in ("zero", "one")]
    return function("cut", ["a", "k"], [*constants, node("Slice", ["a", "zero", "k", "one"], ["b"])])


class Case(NamedTuple):
    nodes: list[Any]
    ids: tuple[int, ...] = ()
    """Of the input i, in each row; there is none where these are none."""
    functions: tuple[Any, ...] = ()
    width: int = 4
    rows: int = 4
    """In the batch."""
    is_told_apart: bool = True
    """By every ONNX Runtime: older ones take the last of two functions of one name, whatever the node says."""


CALL = node("f", ["x"], ["y"], domain="own")
CALL.overload = "mixed"
CASES = {
    # numbers
    "a difference of lengths below zero": Case(
        [node("Sub", ["two", "n"], ["d"]), node("Greater", ["d", "-1"], ["b"]), *branch("b")]
    ),
    "a root that is no whole number": Case(
        [
            node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            node("Sqrt", ["f"], ["root"]),
            node("Floor", ["root"], ["whole"]),
            node("Equal", ["root", "whole"], ["b"]),
            *branch("b"),
        ],
        rows=3,
    ),
    "a length as a truth": Case(
        [
            node("Cast", ["n"], ["b"], to=TensorProto.BOOL),
            node("Cast", ["b"], ["i"], to=TensorProto.INT64),
            node("Concat", ["i", "-1"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["r"]),
            *SOFT,
        ]
    ),
    "a length as a truth, like another": Case(
        [
            node("CastLike", ["n", "true"], ["b"]),
            node("Cast", ["b"], ["i"], to=TensorProto.INT64),
            node("Concat", ["i", "-1"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["r"]),
            *SOFT,
        ]
    ),
    "a length in a byte": Case(
        [
            node("Mul", ["n", "100"], ["m"]),
            node("Cast", ["m"], ["u"], to=TensorProto.UINT8),
            node("Cast", ["u"], ["i"], to=TensorProto.INT64),
            node("Equal", ["m", "i"], ["b"]),
            *branch("b"),
        ]
    ),
    "an integer that begins anew": Case(
        [
            node("Mul", ["many", "four"], ["m"]),
            node("Cast", ["m"], ["b"], to=TensorProto.BOOL),
            *branch("b", "Identity", "Softmax"),
        ]
    ),
    "a remainder below zero": Case(
        [
            node("Mod", ["-7", "three"], ["m"], fmod=1),
            node("Add", ["m", "one"], ["a"]),
            node("Cast", ["a"], ["b"], to=TensorProto.BOOL),
            *branch("b", "Identity", "Softmax"),
        ]
    ),
    "an absolute value": Case(
        [
            node("ReduceL1", ["-1"], ["l"], noop_with_empty_axes=1),
            node("Add", ["l", "one"], ["a"]),
            node("Cast", ["a"], ["b"], to=TensorProto.BOOL),
            *branch("b", "Softmax", "Identity"),
        ]
    ),
    "a fraction of floats": Case(
        [
            node("Div", ["3.0", "2.0"], ["half"]),
            node("Concat", ["half", "1.0"], ["scales"], axis=0),
            node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
            *BACK,
        ]
    ),
    # lengths
    "a length that is zero, and means another's": Case(
        [
            node("Unsqueeze", ["x", "one"], ["u"]),
            node("Expand", ["u", "143"], ["v"]),
            node("Transpose", ["v"], ["w"], perm=[1, 0, 2]),
            node("Mul", ["n", "zero"], ["z"]),
            node("Concat", ["22", "z", "-1"], ["t"], axis=0),
            node("Reshape", ["w", "t"], ["r"]),
            node("Softmax", ["r"], ["s"], axis=3),
            node("Concat", ["four", "n", "four"], ["back"], axis=0),
            node("Reshape", ["s", "back"], ["q"]),
            node("ReduceSum", ["q", "zero"], ["y"], keepdims=0),
        ]
    ),
    "a width by the number of rows": Case(
        [
            node("Min", ["n", "four"], ["w"]),
            node("Concat", ["-1", "w"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["r"]),
            *SOFT,
        ]
    ),
    "a size by the number of rows": Case(
        [
            node("Unsqueeze", ["x", "one"], ["u"]),
            node("Concat", ["n", "one", "n"], ["sizes"], axis=0),
            node("Resize", ["u", "", "", "sizes"], ["r"], mode="linear"),
            node("ReduceMean", ["r", "two"], ["m"], keepdims=0),
            node("Mul", ["x", "m"], ["y"]),
        ]
    ),
    "a size that keeps its ratio to the others": Case(
        [
            node("Concat", ["n", "six"], ["sizes"], axis=0),
            node("Resize", ["x", "", "", "sizes"], ["r"], mode="nearest", keep_aspect_ratio_policy="not_smaller"),
            *BACK,
        ]
    ),
    "pads of axes that are not known": Case(
        [
            node("ReduceMax", ["unknown"], ["axis"], keepdims=1),
            node("Pad", ["x", "pads", "", "axis"], ["r"], mode="edge"),
            *BACK,
        ]
    ),
    "picked where others have more entries": Case(
        [
            node("Reshape", ["x", "flat"], ["d"]),
            node("Reshape", ["i", "flat"], ["k"]),
            node("GatherElements", ["d", "k"], ["g"], axis=1),
            node("Reshape", ["g", "fold2"], ["p"]),
            node("Concat", ["p", "p"], ["y"], axis=1),
        ],
        (0, 0),
    ),
    "written where others have more entries": Case(
        [
            node("Reshape", ["x", "flat"], ["d"]),
            node("Reshape", ["i", "flat"], ["k"]),
            node("Slice", ["x", "zero", "two", "one"], ["h"]),
            node("Reshape", ["h", "flat"], ["u"]),
            node("ScatterElements", ["d", "k", "u"], ["w"], axis=1),
            node("Reshape", ["w", "fold4"], ["y"]),
        ],
        (0, 0),
    ),
    "a function's lengths, which differ from call to call": Case(
        [
            node("ReduceMax", ["four"], ["k4"]),
            node("ReduceMax", ["two"], ["k2"]),
            node("cut", ["x", "k4"], ["a"], domain="own"),
            node("cut", ["x", "k2"], ["b"], domain="own"),
            node("Shape", ["b"], ["w"], start=1),
            node("Concat", ["-1", "w"], ["t"], axis=0),
            node("Reshape", ["a", "t"], ["r"]),
            *BACK,
        ],
        functions=(cut(),),
    ),
    # what an input is to its operator
    "places in the whole batch": Case(
        [
            node("Unsqueeze", ["x", "one"], ["u"]),
            node("Unsqueeze", ["i", "one"], ["k"]),
            node("MaxUnpool", ["u", "k"], ["v"], kernel_shape=[1]),
            node("Squeeze", ["v", "one"], ["y"]),
        ],
        (2, 0, 3, 1),
    ),
    "a table of rows": Case(
        [
            node("Cast", ["i"], ["k"], to=TensorProto.INT32),
            node("EmbedLayerNormalization", ["k", "", "x", "table", "", "ones", "zeros"], ["e", "m"], **MICROSOFT),
            node("ReduceSum", ["e", "one"], ["s"], keepdims=0),
            node("ReduceMax", ["e", "one"], ["y"], keepdims=0),
        ],
        (0, 0),
    ),
    "a bias of rows": Case(
        [
            node("QuantizeLinear", ["x", "scale", "none"], ["q"]),
            node("ReduceSum", ["x", "one"], ["s"], keepdims=0),
            node("Cast", ["s"], ["b"], to=TensorProto.INT32),
            node("QGemm", ["q", "scale", "none", "bytes", "scale", "none", "b"], ["y"], **MICROSOFT),
        ]
    ),
    "ends and starts of rows in one": Case(
        [
            node("Cast", ["i"], ["k"], to=TensorProto.INT32),
            node("Reshape", ["k", "-1"], ["m"]),
            node("Reshape", ["x", "fold44"], ["h"]),
            node("Attention", ["h", "mix", "twelve", "m"], ["a"], num_heads=1, **MICROSOFT),
            node("Reshape", ["a", "shape"], ["y"]),
        ],
        (3, 1),
        width=16,
    ),
    # names
    "an operator that the file defines anew": Case(
        [node("Softmax", ["x"], ["y"], axis=0)], functions=(function("Softmax", ["a"], [node("Relu", ["a"], ["b"])], ""),)
    ),
    "another operator that the file defines anew": Case(
        [node("DynamicQuantizeMatMul", ["x", "bytes", "scale", "none"], ["y"], **MICROSOFT)],
        functions=(
            function("DynamicQuantizeMatMul", ["a", "w", "s", "z"], [node("Relu", ["a"], ["b"])], MICROSOFT["domain"]),
        ),
    ),
    "a function of several": Case(
        [CALL],
        functions=(
            function("f", ["a"], [node("Softmax", ["a"], ["b"], axis=0)], overload="mixed"),
            function("f", ["a"], [node("Relu", ["a"], ["b"])], overload="apart"),
        ),
        is_told_apart=False,
    ),
}  # fmt: skip


def build(case: Case) -> tuple[Any, Signature]:
    kinds = [("x", "FP32", case.width), *([("i", "INT64", len(case.ids))] if case.ids else [])]
    elements = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, elements[kind], ["N", width]) for name, kind, width in kinds]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", case.width])
    used = {name for each in case.nodes for name in each.input}
    weights = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in used]
    graph = helper.make_graph([*COUNT, *case.nodes], "g", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=OPSETS, functions=list(case.functions), ir_version=10)
    specs = tuple(TensorSpec(name, kind, (-1, width)) for name, kind, width in kinds)
    return model, Signature(specs, (TensorSpec("y", "FP32", (-1, case.width)),))


@pytest.mark.parametrize("name", CASES)
def test_rows_that_influence_one_another_are_not_called_independent(name: str) -> None:
    case = CASES[name]
    model, signature = build(case)
    verdict, _ = judge_rows(model, signature)
    assert verdict.kind != "independent"
    # They do: rows are answered otherwise together than alone.
    session: Any = onnxruntime.InferenceSession(model.SerializeToString())
    inputs: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal((case.rows, case.width)).astype(F4) * 3}
    if case.ids:
        inputs["i"] = np.tile(np.array(case.ids), (case.rows, 1))
    (together,) = session.run(None, inputs)
    alone = [session.run(None, {key: array[row : row + 1] for key, array in inputs.items()})[0] for row in range(case.rows)]
    is_apart = np.abs(together - np.concatenate(alone)).max() > 1e-3
    assert is_apart or not case.is_told_apart
