"""Whether rows of a batch may influence one another, told by the graph: what is called independent is so in any batch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.rows.axis import settle_rows
from argosy.rows.proof import judge_rows
from argosy.serve.worker.agreement import choose_measure
from argosy.serve.worker.row_trials import find_influence
from argosy.signature import Signature, TensorSpec
from tests.rows.random_graphs import make_graph

NUM_GRAPHS = int(os.environ.get("ARGOSY_TEST_GRAPHS", "300"))
ALLOWED = 1e-3
"""Of an answer's own largest element; kernels for other numbers of rows round otherwise, wrong rows differ by far more."""
node = helper.make_node
NONE: Mapping[str, Any] = {}


def build(
    nodes: list[Any], x: list[Any], y: list[Any], weights: Mapping[str, Any] = NONE, *, kind: str = "FP32", opset: int = 17
) -> tuple[Any, Signature]:
    """A model with input x and output y, whose first axis is N where it has rows."""
    element = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "UINT8": TensorProto.UINT8}[kind]
    infos = helper.make_tensor_value_info("x", element, x), helper.make_tensor_value_info("y", TensorProto.FLOAT, y)
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [infos[0]], [infos[1]], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    shapes = [tuple(-1 if isinstance(dim, str) else dim for dim in dims) for dims in (x, y)]
    return model, Signature((TensorSpec("x", kind, shapes[0]),), (TensorSpec("y", "FP32", shapes[1]),))


F4 = np.float32
W = {"w": np.ones((4, 4), F4)}
NORMAL = {"s": np.ones(4, F4), "b": np.zeros(4, F4), "m": np.zeros(4, F4), "v": np.ones(4, F4)}
LSTM = {"w": np.zeros((1, 12, 4), F4), "r": np.zeros((1, 12, 3), F4)}

# Operators of a graph from x to y, and what is said of it.
CASES = {
    "product": (build([node("MatMul", ["x", "w"], ["y"])], ["N", 4], ["N", 4], W), "independent", ""),
    "product on the other side": (
        build(
            [node("Transpose", ["x"], ["t"]), node("MatMul", ["w", "t"], ["p"]), node("Transpose", ["p"], ["y"])],
            ["N", 4],
            ["N", 4],
            W,
        ),
        "independent",
        "",
    ),
    "rows times rows": (
        build(
            [node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["p"]), node("MatMul", ["p", "x"], ["y"])],
            ["N", 4],
            ["N", 4],
        ),
        "dependent",
        "MatMul",
    ),
    "attention": (
        build(
            [
                node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
                node("MatMul", ["x", "k"], ["a"]),
                node("Softmax", ["a"], ["p"], axis=-1),
                node("MatMul", ["p", "x"], ["y"]),
            ],
            ["N", "length", 4],
            ["N", "length", 4],
        ),
        "independent",
        "",
    ),
    "heads of attention": (
        build(
            [
                node("Shape", ["x"], ["shape"]),
                node("Gather", ["shape", "zero"], ["rows"]),
                node("Gather", ["shape", "one"], ["length"]),
                node("Concat", ["rows", "length", "heads"], ["target"], axis=0),
                node("Reshape", ["x", "target"], ["h"]),
                node("Transpose", ["h"], ["y"], perm=[0, 2, 1, 3]),
            ],
            ["N", "length", 4],
            ["N", 2, "length", 2],
            {"zero": np.array([0]), "one": np.array([1]), "heads": np.array([2, 2])},
        ),
        "independent",
        "",
    ),
    "all rows and steps in one axis": (
        build(
            [
                node("Reshape", ["x", "flat"], ["f"]),
                node("MatMul", ["f", "w"], ["p"]),
                node("Shape", ["x"], ["s"]),
                node("Reshape", ["p", "s"], ["y"]),
            ],
            ["N", "length", 4],
            ["N", "length", 4],
            {**W, "flat": np.array([-1, 4])},
        ),
        "independent",
        "",
    ),
    "largest of all": (
        build([node("ReduceMax", ["x"], ["m"]), node("Div", ["x", "m"], ["y"])], ["N", 4], ["N", 4]),
        "dependent",
        "ReduceMax",
    ),
    "largest of each": (
        build([node("ReduceMax", ["x"], ["m"], axes=[1]), node("Div", ["x", "m"], ["y"])], ["N", 4], ["N", 4]),
        "independent",
        "",
    ),
    "largest of all pixels": (
        build(
            [node("Cast", ["x"], ["f"], to=1), node("ReduceMax", ["f"], ["m"]), node("Div", ["f", "m"], ["y"])],
            ["N", 4],
            ["N", 4],
            kind="UINT8",
        ),
        "dependent",
        "ReduceMax",
    ),
    "embedding": (
        build([node("Gather", ["w", "x"], ["y"])], ["N", "length"], ["N", "length", 4], W, kind="INT64"),
        "independent",
        "",
    ),
    "each row's own part of a flat tensor": (
        build(
            [
                node("Shape", ["x"], ["n"], end=1),
                node("Squeeze", ["n"], ["count"]),
                node("Range", ["zero", "count", "one"], ["places"]),
                node("Unsqueeze", ["places", "last"], ["column"]),
                node("Mul", ["column", "width"], ["starts"]),
                node("Add", ["starts", "steps"], ["i"]),
                node("Reshape", ["x", "flat"], ["f"]),
                node("Gather", ["f", "i"], ["y"]),
            ],
            ["N", 4],
            ["N", 4],
            {"zero": 0, "one": 1, "last": [1], "width": 4, "steps": np.arange(4), "flat": [-1]},
        ),
        "unknown",
        "by their places",
    ),
    "picked of what is constant": (
        build(
            [node("GatherElements", ["w", "i"], ["g"], axis=1), node("Add", ["x", "g"], ["y"])],
            ["N", 4],
            ["N", 4],
            {"w": np.ones((1, 9), F4), "i": np.array([[0, 8, 2, 1]])},
        ),
        "independent",
        "",
    ),
    "first row": (
        build([node("Gather", ["x", "i"], ["f"]), node("Sub", ["x", "f"], ["y"])], ["N", 4], ["N", 4], {"i": np.array([0])}),
        "dependent",
        "Gather",
    ),
    "old softmax over all axes": (
        build([node("Softmax", ["x"], ["y"], axis=0)], ["N", 4], ["N", 4], opset=12),
        "dependent",
        "Softmax",
    ),
    "old softmax": (build([node("Softmax", ["x"], ["y"])], ["N", 4, 2], ["N", 4, 2], opset=12), "independent", ""),
    "normalised as trained": (
        build([node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])], ["N", 4, 2], ["N", 4, 2], NORMAL),
        "independent",
        "",
    ),
    "normalised over the batch": (
        build([node("MeanVarianceNormalization", ["x"], ["y"])], ["N", 4, 2, 2], ["N", 4, 2, 2]),
        "dependent",
        "MeanVarianceNormalization",
    ),
    "network over steps": (
        build(
            [
                node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
                node("LSTM", ["t", "w", "r"], ["", "h"], hidden_size=3),
                node("Squeeze", ["h", "z"], ["y"]),
            ],
            ["N", "length", 4],
            ["N", 3],
            {**LSTM, "z": np.array([0])},
        ),
        "independent",
        "",
    ),
    "network over rows": (
        build(
            [node("LSTM", ["x", "w", "r"], ["h"], hidden_size=3), node("Squeeze", ["h", "z"], ["y"])],
            ["N", "length", 4],
            ["N", "length", 3],
            {**LSTM, "z": np.array([1])},
        ),
        "dependent",
        "LSTM",
    ),
    "convolution": (
        build(
            [node("Conv", ["x", "k"], ["c"]), node("Flatten", ["c"], ["y"])],
            ["N", 3, 8, 8],
            ["N", 72],
            {"k": np.ones((2, 3, 3, 3), F4)},
        ),
        "independent",
        "",
    ),
    "quantised by its own range": (
        build(
            [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            ["N", 4],
            ["N", 4],
        ),
        "dependent",
        "DynamicQuantizeLinear",
    ),
    "quantised by a known range": (
        build(
            [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            ["N", 4],
            ["N", 4],
            {"s": F4(0.1), "z": np.uint8(3)},
        ),
        "independent",
        "",
    ),
    "drawn at random": (
        build([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], ["N", 4], ["N", 4]),
        "unknown",
        "random",
    ),
    "operator of its own": (
        build([node("Own", ["x"], ["y"], domain="com.example")], ["N", 4], ["N", 4]),
        "unknown",
        "nothing is known of this operator",
    ),
    "part that is not used": (
        build([node("ReduceMax", ["x"], ["unused"]), node("Neg", ["x"], ["y"])], ["N", 4], ["N", 4]),
        "independent",
        "",
    ),
    "number of rows": (
        build([node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["y"], to=1)], ["N", 4], ["N"]),
        "dependent",
        "number of rows",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_graph_tells_whether_rows_influence_one_another(case: str) -> None:
    (model, signature), kind, reason = CASES[case]
    verdict, _ = judge_rows(model, signature)
    assert verdict.kind == kind, verdict
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("nodes", "x", "y", "weights", "has_rows"),
    [
        pytest.param([node("Neg", ["x"], ["y"])], ["N", 4], ["M", 4], {}, True, id="independent, whatever the names"),
        pytest.param([node("CumSum", ["x", "a"], ["y"])], ["samples"], ["samples"], {"a": np.array(0)}, False, id="waveform"),
        pytest.param([node("CumSum", ["x", "a"], ["y"])], ["steps", 4], ["steps", 4], {"a": np.array(0)}, False, id="sequence"),
        pytest.param(
            [node("Compress", ["x", "c"], ["y"], axis=0)], ["N", 4], ["M", 4], {"c": np.array([True])}, False, id="selection"
        ),
        pytest.param([node("Softmax", ["x"], ["y"], axis=0)], ["N", 4], ["N", 4], {}, True, id="dependent rows"),
        pytest.param([node("MatMul", ["x", "x"], ["y"])], ["N", "N"], ["N", "N"], {}, False, id="neighbours of nodes"),
    ],
)
def test_first_axis_counts_rows_or_does_not(nodes: list[Any], x: list[Any], y: list[Any], weights: Any, has_rows: bool) -> None:
    model, signature = build(nodes, x, y, weights)
    found, _ = settle_rows(model, signature)
    assert (found.has_rows, found.is_batched) == (has_rows, has_rows)


def draw_rows(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Rows of many sizes, some of zeros, NaN and infinities."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((1, *shape)).astype(F4) * scale for scale in (1, 100, 1e-3, 0, -10, 300, 1, 1e-6)]
    return [*rows, np.full_like(rows[0], np.nan), np.full_like(rows[0], np.inf)]


def differs(run: Callable[[np.ndarray], np.ndarray], rows: list[np.ndarray], seed: int) -> bool:
    """Whether a row answers otherwise in batches drawn at random than alone; those of numbers that are none do not count."""
    alone: list[np.ndarray] = [run(row) for row in rows]
    rng = np.random.default_rng(seed)
    for _ in range(8):
        places: list[int] = rng.integers(0, len(rows), int(rng.integers(2, 9))).tolist()
        together = run(np.concatenate([rows[place] for place in places]))
        for index, place in enumerate(places):
            expected, got = alone[place], together[index : index + 1]
            if place < len(rows) - 2 and not is_close(got, expected):
                return True
    return False


def is_close(got: np.ndarray, expected: np.ndarray) -> bool:
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return False
    scale = np.abs(expected[finite]).max(initial=1e-6)
    return bool(np.abs(got[finite].astype("f8") - expected[finite]).max(initial=0.0) <= ALLOWED * scale)


def run_session(session: Any, x: np.ndarray) -> np.ndarray:
    return session.run(None, {"x": x})[0]


def infer(session: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": run_session(session, inputs["x"])}


def test_no_joined_row_of_a_random_graph_answers_otherwise_than_alone() -> None:
    found: Counter[str] = Counter()
    for seed in range(NUM_GRAPHS):
        made = make_graph(seed)
        if made is None:
            continue
        model, signature = made
        session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        run = partial(run_session, session)
        shape = signature.inputs[0].shape[1:]
        verdict, _ = judge_rows(model, signature)
        is_joined = False
        if verdict.kind != "dependent":
            examples = {"x": np.random.default_rng(seed).standard_normal((8, *shape)).astype(F4)}
            is_joined = not find_influence(
                partial(infer, session), examples, choose_measure(""), is_brief=verdict.kind == "independent"
            )
        is_wrong = differs(run, draw_rows(shape, seed), seed)
        assert not (is_joined and is_wrong), (seed, verdict, [each.op_type for each in model.graph.node])
        found[f"{verdict.kind}, {'joined' if is_joined else 'not joined'}"] += 1
    independent = found["independent, joined"] + found["independent, not joined"]
    assert independent > NUM_GRAPHS / 10 and found["dependent, not joined"] > NUM_GRAPHS / 10, found
    assert found["independent, joined"] >= 0.95 * independent, found


def test_whatever_a_graph_holds_it_is_judged() -> None:
    model, signature = build([node("Neg", ["x"], ["y"])], ["N", 4], ["N", 4])
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    damaged.graph.node[0].input[0] = "nowhere"
    assert judge_rows(damaged, signature)[0].kind == "unknown"
    flat = helper.make_graph(
        [node("Identity", ["x"], ["y"])], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )
    deep = node("Identity", ["x"], ["y"])
    for _ in range(28):
        inner = helper.make_graph([deep], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        deep = node("If", ["c"], ["y"], then_branch=inner, else_branch=flat)
    model, signature = build([deep], ["N", 4], ["N", 4], {"c": np.array(True)})
    assert judge_rows(model, signature)[0].kind == "unknown"
    model, signature = build([node("f0", ["x"], ["y"], domain="own")], ["N", 4], ["N", 4])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for level in range(25):
        op, domain = (f"f{level + 1}", "own") if level < 24 else ("Neg", "")
        calls = [node(op, ["a"], ["b"], domain=domain), node(op, ["b"], ["c"], domain=domain)]
        model.functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], calls, opsets))
    assert "too large" in judge_rows(model, signature)[0].reason


@pytest.mark.parametrize("op", ["Mul", "Add", "Concat", "Gather"])
def test_shapes_that_double_at_each_step_are_given_up_at_once(op: str) -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Slice", ["s", "one", "two"], ["t0"])]
    for step in range(60):
        last, new = f"t{step}", f"t{step + 1}"
        if op == "Concat":
            nodes.append(node("Concat", [last, last], [new], axis=0))
        elif op == "Gather":
            nodes.append(node("Gather", [last, last], [new]))
        elif op == "Mul":
            nodes.append(node("Mul", [last, last], [new]))
        else:
            nodes += [node("Mul", [last, last], [f"m{step}"]), node("Add", [last, f"m{step}"], [new])]
    nodes += [node("Cast", ["t60"], ["f"], to=1), node("ReduceSum", ["f"], ["r"], keepdims=0), node("Mul", ["x", "r"], ["y"])]
    model, signature = build(nodes, ["N", "length"], ["N", "length"], {"one": np.array([1]), "two": np.array([2])})
    before = time.process_time()
    judge_rows(model, signature)
    # Without a bound it has no end, or takes all memory.
    assert time.process_time() - before < 5.0
