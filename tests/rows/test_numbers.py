"""Numbers and lengths that a graph computes, and its proof with it: what is believed of them is so in every datatype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.rows.proof import judge_rows
from argosy.signature import Signature, TensorSpec

node = helper.make_node
F4 = np.float32
OPSETS = [helper.make_opsetid(*opset) for opset in (("", 18), ("com.microsoft", 1), ("ai.onnx.ml", 3))]
COUNT = [
    node("Shape", ["x"], ["n"], end=1),
    node("Shape", ["x"], ["shape"]),
    node("Squeeze", ["n"], ["count"]),
    node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
    node("Cast", ["n"], ["d"], to=TensorProto.DOUBLE),
    node("Range", ["none", "count", "step"], ["places"]),
]
"""The number of rows: as a shape, as an integer, as floats, and counted up to."""
WEIGHTS: dict[str, Any] = {
    "none": np.array(0), "step": np.array(1), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
    "three": np.array([3]), "four": np.array([4]), "-1": np.array([-1]), "short -1": np.array([-1], np.int32), "4": np.array(4),
    "2^23+1": np.array([2**23 + 1]), "2^30": np.array([2**30]), "2^62": np.array([2**62]), "2^62+1": np.array([2**62 + 1]),
    "0.0": np.array([0], F4), "0.1": np.array([0.1], F4), "0.2": np.array([0.2], F4), "0.3": np.array([0.3], F4),
    "0.5": np.array([0.5], F4), "1.0": np.array([1], F4), "2.0": np.array([2], F4), "3.0": np.array([3], F4),
    "-1.0": np.array([-1], F4), "1e-30": np.array([1e-30], F4), "1e30": np.array([1e30], F4), "2^24": np.array([2**24], F4),
    "tiny": np.array([2.0**-30], F4), "tiny8": np.array([2.0**-30]), "factors": np.array([2**40, 2**40]),
    "half": np.array(0.5, F4), "nil": np.array(0, F4), "unit": np.array(1, F4), "table": np.ones(4, F4), "9": np.arange(9),
    "values": np.array([0, 1], F4), "true": np.array(True), "scales": np.array([1, 1, 0.7], F4), "2.5": np.array(2.5, F4),
    "sizes": np.array([5, 5]), "grid": np.array([2, 2]), "block": np.array([1, 1]), "flat": np.array([-1, 1, 4]),
    "far": np.array([2**31 - 1]), "ends": np.array([-1, 4]), "twice": np.array([1, 1, 2], F4), "scale": np.array(0.1, F4),
    "byte": np.array(0, np.uint8), "pair": np.array([-1, 2, 2]), "eight": np.array([-1, 8]),
}  # fmt: skip


def graph(op: str, name: str, **attributes: Any) -> Any:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node(op, ["x"], [name], **attributes)], "g", [], [made])


def branch(condition: str, *, mixes_if: bool = False) -> list[Any]:
    """Rows as they are, and mixed where the condition turns out so."""
    mixed, kept = graph("Softmax", "mixed", axis=0), graph("Identity", "kept")
    then, other = (mixed, kept) if mixes_if else (kept, mixed)
    return [node("Squeeze", [condition], ["c"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]


def square(start: str, times: int) -> list[Any]:
    """Its square, the square of that, and so on; the last is `power`."""
    names = [start, *(f"power{index}" for index in range(1, times)), "power"]
    return [node("Mul", [one, one], [other]) for one, other in pairwise(names)]


def cast(source: str, result: str, kind: int = TensorProto.FLOAT) -> Any:
    return node("Cast", [source], [result], to=kind)


def add_length(name: str, axis: int = 0) -> list[Any]:
    return [node("Shape", [name], ["l"], start=axis, end=axis + 1), cast("l", "lf"), node("Add", ["x", "lf"], ["y"])]


def count_turns(item: str) -> Any:
    """Adds 1 for each entry that is scanned."""
    kinds = {"s": TensorProto.FLOAT, "item": TensorProto.INT64, "more": TensorProto.FLOAT, "same": TensorProto.INT64}
    tensors = [helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()]
    nodes = [node("Add", ["s", "unit"], ["more"]), node("Identity", ["item"], ["same"])]
    body = helper.make_graph(nodes, "b", tensors[:2], tensors[2:])
    return node("Scan", ["nil", item], ["turns", "all"], body=body, num_scan_inputs=1)


def cut(bound: str, result: str) -> Any:
    """An inner graph that cuts rows; what it cuts has one name in all of them."""
    nodes = [node("Slice", ["x", "zero", bound, "one"], ["part"]), node("Identity", ["part"], [result])]
    return helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])


def pick(bound: str, result: str) -> Any:
    return node("If", ["true"], [result], then_branch=cut(bound, f"{result}1"), else_branch=cut(bound, f"{result}2"))


INT8 = numpy_helper.from_array(np.array([-128], np.int8))
BY_COUNT: dict[str, list[Any]] = {
    "a quotient of floats beside one of integers": [
        node("Div", ["f", "2.0"], ["p"]), cast("p", "p2"), node("Div", ["n", "two"], ["q"]), cast("q", "q2"),
        node("Equal", ["p2", "q2"], ["b"]), *branch("b"),
    ],
    "a length in 32 bits": [
        node("Mul", ["n", "2^30"], ["m"]), cast("m", "i", TensorProto.INT32), node("Greater", ["i", "short -1"], ["b"]),
        *branch("b"),
    ],
    "a length that a float rounds": [
        node("Mul", ["n", "2^23+1"], ["m"]), cast("m", "r"), cast("r", "i", TensorProto.INT64), node("Equal", ["i", "m"], ["b"]),
        *branch("b"),
    ],
    "a power that begins anew": [*square("n", 4), node("Greater", ["power", "-1"], ["b"]), *branch("b")],
    "a higher power": [
        *square("n", 5), node("Mul", ["power", "power3"], ["p40"]), node("Mul", ["p40", "n"], ["p41"]),
        node("Greater", ["p41", "-1"], ["b"]), *branch("b"),
    ],
    "floats multiplied in another order": [
        node("Mul", ["f", "0.1"], ["p"]), node("Mul", ["p", "0.3"], ["q"]), node("Mul", ["0.1", "0.3"], ["r"]),
        node("Mul", ["f", "r"], ["s"]), node("Equal", ["q", "s"], ["b"]), *branch("b"),
    ],
    "a range up to a fraction": [
        node("Squeeze", ["f"], ["u"]), node("Mul", ["u", "half"], ["h"]), node("Range", ["nil", "h", "unit"], ["r"]),
        node("Shape", ["r"], ["l"]), node("Mul", ["l", "two"], ["m"]), node("Equal", ["m", "n"], ["b"]), *branch("b"),
    ],
    "a root of what is below zero": [
        node("Sub", ["f", "2.0"], ["p"]), node("Sqrt", ["p"], ["q"]), node("Equal", ["q", "q"], ["b"]), *branch("b"),
    ],
    "infinity from itself": [
        node("Sub", ["f", "1.0"], ["p"]), node("Div", ["1.0", "p"], ["q"]), node("Sub", ["q", "q"], ["r"]),
        cast("r", "b", TensorProto.BOOL), *branch("b", mixes_if=True),
    ],
    "turns of a scan": [count_turns("places"), node("Add", ["x", "turns"], ["y"])],
    "length of a range": [node("Clip", ["count"], ["k"]), node("Range", ["none", "k", "step"], ["r"]), *add_length("r")],
    "width of a one-hot": [
        node("Clip", ["count"], ["k"]), cast("x", "i", TensorProto.INT64), node("OneHot", ["i", "k", "values"], ["o"]),
        *add_length("o", 2),
    ],
    "how many are the largest": [
        node("Clip", ["n", "", "4"], ["k"]), node("TopK", ["x", "k"], ["t", "ids"]), *add_length("t", 1),
    ],
    "how many are kept": [
        node("Slice", ["9", "zero", "four"], ["r"]), node("Less", ["r", "n"], ["k"]), node("Compress", ["x", "k"], ["t"], axis=1),
        *add_length("t", 1),
    ],
}  # fmt: skip
BY_ITSELF: dict[str, list[Any]] = {
    "a sum that is rounded": [
        node("Add", ["0.1", "0.2"], ["s"]), node("Equal", ["s", "0.3"], ["b"]), *branch("b", mixes_if=True),
    ],
    "a sum of more than 24 bits": [
        node("Add", ["2^24", "1.0"], ["s"]), node("Equal", ["s", "2^24"], ["b"]), *branch("b", mixes_if=True),
    ],
    "a float beyond integers": [cast("1e30", "i", TensorProto.INT64), node("Greater", ["i", "zero"], ["b"]), *branch("b")],
    "integers beyond floats": [node("Sub", ["2^62+1", "2^62"], ["s"]), node("Equal", ["s", "zero"], ["b"]), *branch("b")],
    "a product below all floats": [
        node("Mul", ["1e-30", "1e-30"], ["p"]), node("Greater", ["p", "0.0"], ["b"]), *branch("b"),
    ],
    "a product beyond integers": [
        node("ReduceProd", ["factors"], ["p"]), node("Greater", ["p", "zero"], ["b"]), *branch("b"),
    ],
    "a root of a number below zero": [node("Sqrt", ["-1.0"], ["q"]), node("Equal", ["q", "q"], ["b"]), *branch("b")],
    "a byte below zero": [
        node("ConstantOfShape", ["one"], ["u"], value=INT8), node("Neg", ["u"], ["v"]), cast("v", "w", TensorProto.INT64),
        node("Greater", ["w", "zero"], ["b"]), *branch("b"),
    ],
    "sums of floats of two widths": [
        node("Add", ["f", "tiny"], ["p"]), node("Add", ["d", "tiny8"], ["q"]), cast("p", "p8", TensorProto.DOUBLE),
        node("Equal", ["p8", "q"], ["b"]), *branch("b"),
    ],
    "quotients of two kinds": [
        node("Div", ["3.0", "2.0"], ["p"]), node("Div", ["three", "two"], ["q"]), cast("q", "r"), cast("p", "s"),
        node("Equal", ["r", "s"], ["b"]), *branch("b"),
    ],
    "inner graphs that name alike what is as long as another": [
        node("ReduceMax", ["four"], ["k4"]), node("ReduceMax", ["two"], ["k2"]), pick("k4", "p"), pick("k2", "q"),
        node("Shape", ["q"], ["l"], start=1), node("Concat", ["-1", "l"], ["t"], axis=0), node("Reshape", ["p", "t"], ["r"]),
        node("Resize", ["r", "", "", "shape"], ["y"], mode="cubic"),
    ],
    "an axis further to the left than was thought": [
        node("Reshape", ["x", "flat"], ["u"]), node("Col2Im", ["u", "grid", "block"], ["v"]),
        node("Softmax", ["v"], ["s"], axis=-4), node("Reshape", ["s", "shape"], ["y"]),
    ],
}  # fmt: skip


def build(nodes: Sequence[Any], shape: Sequence[int] = (4,), extra: Mapping[str, Any] | None = None) -> tuple[Any, Signature]:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name in "xy"]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in {**WEIGHTS, **(extra or {})}.items()]
    model = helper.make_model(
        helper.make_graph([*COUNT, *nodes], "g", infos[:1], infos[1:], made), opset_imports=OPSETS, ir_version=10
    )
    specs = [TensorSpec(name, "FP32", (-1, *shape)) for name in "xy"]
    return model, Signature((specs[0],), (specs[1],))


def run(model: Any, rows: np.ndarray) -> np.ndarray:
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})[0]


@pytest.mark.parametrize("name", BY_COUNT)
def test_a_number_that_depends_on_that_of_the_rows_is_not_taken_for_a_constant(name: str) -> None:
    model, signature = build(BY_COUNT[name])
    assert judge_rows(model, signature)[0].kind != "independent"
    row = np.random.default_rng(0).standard_normal((1, 4)).astype(F4)
    answers = [run(model, np.repeat(row, count, axis=0))[0] for count in (1, 2, 3, 17)]
    # The same row is answered otherwise among others.
    assert max(np.abs(answer - answers[0]).max() for answer in answers[1:]) > 1e-3


@pytest.mark.parametrize("name", BY_ITSELF)
def test_no_branch_is_followed_that_the_runtime_does_not_take(name: str) -> None:
    model, signature = build(BY_ITSELF[name])
    assert judge_rows(model, signature)[0].kind != "independent"


def make_pool(op: str = "MaxPool", **attributes: Any) -> list[Any]:
    return [node(op, ["x"], ["t"], **attributes)]


LENGTHS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "of a pool, rounded up": (make_pool(kernel_shape=[1], strides=[3], ceil_mode=1), (2, 3)),
    "of a pool's window beyond the end": (make_pool("LpPool", kernel_shape=[2], strides=[2], ceil_mode=1, pads=[1, 1]), (2, 3)),
    "of a pool with holes": (make_pool("LpPool", kernel_shape=[3], dilations=[2], auto_pad="SAME_UPPER"), (2, 7)),
    "of a window that is longer": (make_pool("AveragePool", kernel_shape=[3], strides=[3]), (2, 1)),
    "of what is scaled": ([node("Resize", ["x", "", "scales"], ["t"], mode="nearest")], (2, 10)),
    "of what keeps its ratio": (
        [node("Resize", ["x", "", "", "sizes"], ["t"], mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_larger")],
        (1, 4, 6),
    ),
    "of what is turned round": ([node("Slice", ["x", "-1", "far", "two", "-1"], ["t"])], (2, 5)),
    "of a one-hot, a fraction": (
        [cast("x", "i", TensorProto.INT64), node("OneHot", ["i", "2.5", "values"], ["t"])],
        (2,),
    ),
    "of scores": (
        [
            node(
                "LinearClassifier", ["x"], ["label", "t"], domain="ai.onnx.ml", classlabels_ints=[0, 1, 2],
                coefficients=[0.1] * 8, intercepts=[0.0] * 2,
            )
        ],
        (4,),
    ),
    "of channels that come last": (
        [
            node("QuantizeLinear", ["x", "scale", "byte"], ["q"]),
            node("QLinearAveragePool", ["q", "scale", "byte", "scale", "byte"], ["t"], domain="com.microsoft", channels_last=1,
                 kernel_shape=[2, 2]),
        ],
        (4, 5, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_is_what_the_runtime_gives_or_is_not_known(name: str) -> None:
    nodes, shape = LENGTHS[name]
    rows = np.random.default_rng(0).random((1, *shape)).astype(F4)
    model, _ = build([*nodes, node("Shape", ["t"], ["y"])], shape)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [None]))
    real = run(model, rows)
    for axis in range(1, len(real)):
        parts = node("Shape", ["t"], ["l"], start=axis, end=axis + 1)
        graph = [*nodes, parts, node("Equal", ["l", "real"], ["b"]), *branch("b", mixes_if=True)]
        model, signature = build(graph, shape, {"real": real[axis : axis + 1]})
        assert judge_rows(model, signature)[0].kind != "independent", axis


def test_rows_that_are_weighed_by_zero_are_not_independent() -> None:
    nodes = [
        node("Reshape", ["x", "pair"], ["u"]), node("Resize", ["u", "", "twice"], ["v"], mode="linear"),
        node("Reshape", ["v", "eight"], ["r"]), node("Slice", ["r", "zero", "four", "one"], ["y"]),
    ]  # fmt: skip
    model, signature = build(nodes)
    assert judge_rows(model, signature)[0].kind != "independent"
    rows = np.ones((3, 4), F4)
    rows[2] = np.nan
    assert np.isfinite(run(model, rows[:1])).all() and np.isnan(run(model, rows)[:2]).any()
