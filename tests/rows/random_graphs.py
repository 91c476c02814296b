"""ONNX graphs made at random: operators that keep rows apart, and operators that mix them, one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from argosy.signature import Signature, TensorSpec

Shape = list[Any]
"""Lengths of axes; "N" is that of the rows."""
Tensor = tuple[str, Shape]

UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Exp", "Erf", "Softplus", "Ceil", "Floor", "Sign", "Round")


class Graph:
    """A graph on its way.

    Args:
        seed: of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        width = self.random.choice([3, 4, 6])
        rank = self.random.choice([2, 2, 3, 4])
        self.shape: Shape = ["N", *([width] + [self.random.choice([2, 3, 4]) for _ in range(rank - 2)])]
        self.tensors: list[Tensor] = [("x", self.shape)]
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def weight(self, *shape: int) -> str:
        return self.constant(self.numpy.standard_normal(shape).astype(np.float32))

    def constant(self, array: Any) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one output."""
        return self.add_all(op, inputs, 1, **attributes)[0]

    def add_all(self, op: str, inputs: Sequence[str], num_outputs: int, **attributes: Any) -> list[str]:
        outputs = [self.name() for _ in range(num_outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"{op}_{self._count}", **attributes))
        return outputs

    def body(
        self, nodes: list[Any], inputs: list[tuple[str, int]], outputs: list[tuple[str, int]], shape: list[str] | None = None
    ) -> Any:
        """A graph inside an operator."""
        shapes: dict[int, list[str] | None] = {TensorProto.INT64: [], TensorProto.BOOL: []}
        taken, given = (
            [helper.make_tensor_value_info(name, kind, shapes.get(kind, shape)) for name, kind in side]
            for side in (inputs, outputs)
        )
        return helper.make_graph(nodes, "body", taken, given)


def unary(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add(g.random.choice(UNARY), x), s


def weigh(g: Graph, x: str, s: Shape) -> Tensor | None:
    dims = [1 if index == 0 or s[index] == "N" or g.random.random() < 0.5 else s[index] for index in range(len(s))]
    return g.add(g.random.choice(["Add", "Mul", "Sub", "Max"]), x, g.weight(*dims)), s


def meet(g: Graph, x: str, s: Shape) -> Tensor | None:
    other, shape = g.random.choice(g.tensors)
    return (g.add(g.random.choice(["Add", "Mul", "Sub"]), x, other), s) if shape == s else None


def matmul(g: Graph, x: str, s: Shape) -> Tensor | None:
    return (g.add("MatMul", x, g.weight(s[-1], 3)), [*s[:-1], 3]) if s[-1] != "N" else None


def gemm(g: Graph, x: str, s: Shape) -> Tensor | None:
    return (g.add("Gemm", x, g.weight(4, s[1]), g.weight(4), transB=1), [s[0], 4]) if len(s) == 2 and s[1] != "N" else None


def reduce(g: Graph, x: str, s: Shape) -> Tensor | None:
    op = g.random.choice(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2"])
    axis = g.random.choice([*range(len(s)), None])
    found = g.add(op, x, keepdims=1) if axis is None else g.add(op, x, axes=[axis], keepdims=1)
    return g.add(g.random.choice(["Sub", "Add"]), x, found), s


def soften(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add(g.random.choice(["Softmax", "LogSoftmax"]), x, axis=g.random.choice([*range(len(s)), -1, -1])), s


def flatten(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[0] != "N" or len(s) < 3:
        return None
    return g.add("Reshape", x, g.integers(0, -1)), ["N", int(np.prod(s[1:]))]


def fold_and_unfold(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[0] != "N" or len(s) < 3:
        return None
    flat = g.add("Reshape", x, g.integers(-1, s[-1]))
    return g.add("Reshape", g.add("MatMul", flat, g.weight(s[-1], s[-1])), g.integers(-1, *s[1:])), s


def flatten_and_back(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add("Reshape", g.add("Tanh", g.add("Flatten", x, axis=1)), g.add("Shape", x)), s


def transpose(g: Graph, x: str, s: Shape) -> Tensor | None:
    order = list(range(1, len(s)))
    g.random.shuffle(order)
    order = [0, *order]
    if g.random.random() < 0.2:
        g.random.shuffle(order)
    return g.add("Transpose", x, perm=order), [s[axis] for axis in order]


def cut(g: Graph, x: str, s: Shape) -> Tensor | None:
    axis = g.random.randrange(len(s))
    if s[axis] != "N":
        return g.add("Slice", x, *(g.integers(value) for value in (0, 2, axis, 1))), [*s[:axis], min(2, s[axis]), *s[axis + 1 :]]
    start, end, step = g.random.choice([(0, 2**31 - 1, 1), (-1, -(2**31) + 1, -1)])
    return g.add("Slice", x, *(g.integers(value) for value in (start, end, axis, step))), s


def gather(g: Graph, x: str, s: Shape) -> Tensor | None:
    axis = g.random.randrange(len(s))
    found = g.add("Gather", x, g.integers(0), axis=axis)
    return (g.add("Add", x, found), s) if s[axis] == "N" else (found, [*s[:axis], 1, *s[axis + 1 :]])


def threshold(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add("Where", g.add("Greater", x, g.constant(np.float32(0.3))), x, g.add("Neg", x)), s


def scale_by_all(g: Graph, x: str, s: Shape) -> Tensor | None:
    largest = g.add("ReduceMax", x, keepdims=0)
    is_large = g.add("Greater", largest, g.constant(np.float32(g.random.choice([1, 5, 50]))))
    return g.add("Where", is_large, g.add("Div", x, g.constant(np.float32(255))), x), s


def branch(g: Graph, x: str, s: Shape) -> Tensor | None:
    judged = g.add("ReduceMax", x, keepdims=0) if g.random.random() < 0.7 else g.add("Cast", g.add("Size", x), to=1)
    condition = g.add("Greater", judged, g.constant(np.float32(30)))
    names = g.name(), g.name()
    graphs = [
        g.body([helper.make_node(op, [x], [name])], [], [(name, TensorProto.FLOAT)])
        for op, name in zip(("Neg", "Identity"), names, strict=True)
    ]
    return g.add("If", condition, then_branch=graphs[0], else_branch=graphs[1]), s


def loop(g: Graph, x: str, s: Shape) -> Tensor | None:
    turn, goes_on, state, after, ends = (g.name() for _ in range(5))
    nodes = [helper.make_node("Mul", [state, g.constant(np.float32(0.5))], [after])]
    if g.random.random() < 0.5:
        largest = g.name()
        nodes.append(helper.make_node("ReduceMax", [after], [largest], keepdims=0))
        nodes.append(helper.make_node("Greater", [largest, g.constant(np.float32(8))], [ends]))
    else:
        nodes.append(helper.make_node("Identity", [goes_on], [ends]))
    kinds = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
    body = g.body(nodes, list(zip((turn, goes_on, state), kinds, strict=True)), [(ends, kinds[1]), (after, kinds[2])])
    return g.add("Loop", g.constant(np.array(5)), "", x, body=body), s


def scan(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[0] != "N" or len(s) != 2:
        return None
    axis = g.random.choice([0, 1])
    # Zeros of the shape of one item.
    first = g.add("Slice", x, *(g.integers(value) for value in (0, 1, axis, 1)))
    start = g.add("Squeeze", g.add("Sub", first, first), g.integers(axis))
    state, item, after, out = (g.name() for _ in range(4))
    nodes = [helper.make_node("Add", [state, item], [after]), helper.make_node("Identity", [after], [out])]
    kind = TensorProto.FLOAT
    body = g.body(nodes, [(state, kind), (item, kind)], [(after, kind), (out, kind)], ["width"])
    found = g.add_all("Scan", [start, x], 2, body=body, num_scan_inputs=1, scan_input_axes=[axis])[1]
    return (g.add("Transpose", found, perm=[1, 0]) if axis else found), s


def quantise(g: Graph, x: str, s: Shape) -> Tensor | None:
    scale, zero = g.constant(np.float32(0.1)), g.constant(np.int8(0))
    return g.add("DequantizeLinear", g.add("QuantizeLinear", x, scale, zero), scale, zero), s


def quantise_by_range(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add("DequantizeLinear", *g.add_all("DynamicQuantizeLinear", [x], 3)), s


def normalise(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[-1] == "N":
        return None
    if g.random.random() < 0.5:
        return g.add("LayerNormalization", x, g.constant(np.ones(s[-1], np.float32)), axis=-1), s
    return g.add("LpNormalization", x, axis=g.random.choice([0, -1]), p=2), s


def normalise_batch(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[0] != "N":
        return None
    parameters = [g.constant(np.abs(g.numpy.standard_normal((s[1],))).astype(np.float32) + 0.1) for _ in range(4)]
    return g.add("BatchNormalization", x, *parameters), s


def accumulate(g: Graph, x: str, s: Shape) -> Tensor | None:
    return g.add("CumSum", x, g.constant(np.array(g.random.choice([0, len(s) - 1])))), s


def sort(g: Graph, x: str, s: Shape) -> Tensor | None:
    axis = g.random.choice([0, len(s) - 1])
    count = g.add("Slice", g.add("Shape", x), g.integers(axis), g.integers(axis + 1))
    return g.add_all("TopK", [x, count], 2, axis=axis)[0], s


def pick(g: Graph, x: str, s: Shape) -> Tensor | None:
    found = g.add("ArgMax", x, axis=g.random.choice([0, len(s) - 1]), keepdims=1)
    return g.add("Add", x, g.add("Cast", found, to=1)), s


def count_rows(g: Graph, x: str, s: Shape) -> Tensor | None:
    count = g.add("Cast", g.add("Gather", g.add("Shape", x), g.constant(np.array(0))), to=1)
    return g.add(g.random.choice(["Add", "Div"]), x, count), s


def number_rows(g: Graph, x: str, s: Shape) -> Tensor | None:
    if s[0] != "N":
        return None
    count = g.add("Gather", g.add("Shape", x), g.constant(np.array(0)))
    places = g.add("Cast", g.add("Range", g.constant(np.array(0)), count, g.constant(np.array(1))), to=1)
    return g.add("Add", x, g.add("Unsqueeze", places, g.integers(*range(1, len(s))))), s


def expand(g: Graph, x: str, s: Shape) -> Tensor | None:
    half = g.constant(np.full([1] * len(s), 0.5, np.float32))
    return g.add("Mul", x, g.add("Expand", half, g.add("Shape", x))), s


def double(g: Graph, x: str, s: Shape) -> Tensor | None:
    return (g.add("Concat", x, x, axis=-1), [*s[:-1], 2 * s[-1]]) if s[-1] != "N" else None


STEPS: tuple[Callable[[Graph, str, Shape], Tensor | None], ...] = (
    *(unary, weigh, meet, matmul, gemm, reduce, soften, flatten, fold_and_unfold, flatten_and_back, transpose, cut, gather),
    *(threshold, scale_by_all, branch, loop, scan, quantise, quantise_by_range, normalise, normalise_batch, accumulate, sort),
    *(pick, count_rows, number_rows, expand, double),
)


def make_graph(seed: int) -> tuple[Any, Signature] | None:
    """An ONNX model with input `x` and output `y`, and its signature; None where what came of the seed has no rows."""
    g = Graph(seed)
    for _ in range(g.random.randint(1, 6)):
        name, shape = g.random.choice(g.tensors[-2:])
        made = g.random.choice(STEPS)(g, name, shape)
        if made is not None:
            g.tensors.append(made)
    name, shape = g.tensors[-1]
    if name == "x" or shape[0] != "N":
        return None
    g.nodes.append(helper.make_node("Identity", [name], ["y"]))
    infos = [
        helper.make_tensor_value_info(*info) for info in (("x", TensorProto.FLOAT, g.shape), ("y", TensorProto.FLOAT, shape))
    ]
    graph = helper.make_graph(g.nodes, "g", infos[:1], infos[1:], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs, outputs = ((TensorSpec(name, "FP32", (-1, *dims[1:])),) for name, dims in (("x", g.shape), ("y", shape)))
    return model, Signature(inputs, outputs)
