"""Operators that multiply with weights: matrices, convolutions, pooling, recurrent networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from argosy.rows.dims import ONE, Dim, fixed
from argosy.rows.values import Node, Value, broadcast, handles, mixed, rows_of, unknown

__all__: list[str] = []

_SUMMED: Final = "it multiplies and adds across the rows"


def _multiply(a: Value, b: Value) -> Value:
    """The matrix product of two tensors.

    Raises:
        Fault: a row of the product is made of several rows.
    """
    if a.shape is None or b.shape is None:
        if a.is_rows or b.is_rows:
            # Weights whose number of axes is not known; nearly always two.
            unknown("a tensor's number of axes is not known")
        return Value(None, is_counted=a.is_counted or b.is_counted)
    if a.is_rows and a.axis == a.rank - 1:
        mixed(_SUMMED)
    if b.is_rows and b.axis == max(0, b.rank - 2):
        mixed(_SUMMED)
    left, right = _leave(a, -1, ONE), _leave(b, -2, ONE)
    if left.rank == 1 or right.rank == 1:
        if left.is_rows and right.is_rows:
            unknown("it multiplies rows with rows")
        if right.rank == 1:
            # Its one axis is summed over, and so is the last one of the other.
            kept = a._replace(shape=a.shape[:-1], content=None)
            return kept if kept.is_rows else Value(a.shape[:-1], is_counted=a.is_counted or b.is_counted)
        shape = (*b.shape[:-2], b.shape[-1])
        return rows_of(b, shape, b.axis if b.axis < b.rank - 2 else b.rank - 2)
    return broadcast([left, right])


def _leave(value: Value, place: int, dim: Dim) -> Value:
    """The tensor with another length of one axis; of a vector, where it has no such axis, as it is."""
    shape = list(value.known_shape)
    if len(shape) >= -place:
        shape[place] = dim
    return value._replace(shape=tuple(shape), content=None)


@handles("MatMul", "MatMulInteger")
@handles("FusedMatMul", "TransposeMatMul", "MatMulIntegerToFloat", domain="com.microsoft")
def _matmul(node: Node) -> Value:
    node.allow_rows(0, 1)
    if node.get("transBatchA") or node.get("transBatchB"):
        unknown("it moves the axes of its batch")
    a, b = (_turn(node.take(index), node.get(name, 0)) for index, name in ((0, "transA"), (1, "transB")))
    return _multiply(a, b)


@handles("QLinearMatMul")
def _matmul_quantised(node: Node) -> Value:
    node.allow_rows(0, 3)
    return _multiply(node.take(0), node.take(3))


@handles("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", domain="com.microsoft")
def _matmul_packed(node: Node) -> Value:
    value = node.only(0)
    width = fixed(node.get("N")) if node.get("N") else node.fresh(0, value.rank - 1)
    return _multiply(value, Value((value.known_shape[-1], width)))


def _turn(value: Value, is_turned: int) -> Value:
    if not is_turned or value.shape is None:
        return value
    axes = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
    return rows_of(value, tuple(value.shape[axis] for axis in axes), axes.index(value.axis) if value.is_rows else -1)


@handles("Gemm")
@handles("QGemm", domain="com.microsoft")
def _gemm(node: Node) -> Value:
    is_quantised = node.op == "QGemm"
    if is_quantised:
        node.allow_rows(0, 3)
    b, bias = node.take(3 if is_quantised else 1), node.find(6 if is_quantised else 2)
    found = _multiply(_turn(node.take(0), node.get("transA", 0)), _turn(b, node.get("transB", 0)))
    return found if bias is None or is_quantised else broadcast([found, bias])


# windows


def _slide(node: Node, value: Value, sides: Sequence[Dim | int | None]) -> tuple[Dim, ...]:
    """Lengths of what a window gives that slides over the axes from the third on."""
    shape = value.known_shape
    count = len(shape) - 2
    strides, dilations = node.get("strides", [1] * count), node.get("dilations", [1] * count)
    pads, kind = node.get("pads", [0] * 2 * count), node.get("auto_pad", b"NOTSET")
    found: list[Dim] = []
    for index in range(count):
        length, side = shape[2 + index].value, sides[index]
        side = side.value if isinstance(side, Dim) else side
        if length is None or side is None:
            found.append(node.fresh(0, 2 + index))
            continue
        reach = (side - 1) * dilations[index] + 1
        is_same = kind in (b"SAME_UPPER", b"SAME_LOWER")
        around = 0 if kind == b"VALID" else pads[index] + pads[index + count]
        steps, rest = divmod(length + around - reach, strides[index])
        if is_same and dilations[index] == 1:
            found.append(fixed(-(-length // strides[index])))
        elif is_same or steps < 0 or (rest and node.get("ceil_mode", 0)):
            # Operators differ in what they make of windows that reach beyond the end.
            found.append(node.fresh(0, 2 + index))
        else:
            found.append(fixed(steps + 1))
    return tuple(found)


def _check_first(value: Value, what: str, *, is_ordered: bool = False) -> None:
    if value.axis > 0:
        mixed(what, is_ordered=is_ordered)


@handles("Conv", "ConvInteger")
@handles("FusedConv", "NhwcFusedConv", domain="com.microsoft")
def _convolve(node: Node) -> Value:
    value, weights = node.take(0), node.take(1)
    if node.op == "FusedConv" and (added := node.find(3)) is not None and added.axis != value.axis:
        unknown("what it adds has other rows")
    node.allow_rows(0, *((3,) if node.op == "FusedConv" else ()))
    return _convolve_by(node, value, weights)


@handles("QLinearConv")
@handles("QLinearConv", domain="com.microsoft")
def _convolve_quantised(node: Node) -> Value:
    return _convolve_by(node, node.only(0), node.take(3))


def _convolve_by(node: Node, value: Value, weights: Value) -> Value:
    _check_first(value, _SUMMED, is_ordered=value.axis > 1)
    if not value.is_rows:
        return Value(None, is_counted=value.is_counted)
    if weights.shape is None or node.get("channels_last") or node.op == "NhwcFusedConv":
        shape = _make_fresh(node, value)
    else:
        shape = (value.known_shape[0], weights.shape[0], *_slide(node, value, weights.shape[2:]))
    return rows_of(value, shape, value.axis)


def _make_fresh(node: Node, value: Value) -> tuple[Dim, ...]:
    """The shape of what has as many axes, of which the first is the same."""
    return (value.known_shape[0], *[node.fresh(0, axis) for axis in range(1, value.rank)])


@handles("ConvTranspose", "DeformConv", "Col2Im")
def _spread(node: Node) -> Value:
    value = node.take(0)
    node.allow_rows(0, *((2, 4) if node.op == "DeformConv" else ()))
    if any(found is not None and found.axis > 0 for found in node.inputs[1:]):
        unknown("its rows are not the first axis")
    _check_first(value, _SUMMED)
    if not value.is_rows:
        return Value(None, is_counted=value.is_counted)
    rank = value.rank
    if node.op == "Col2Im":
        sides = node.take(1).known_shape[0].value
        rank = 2 + sides if sides is not None else unknown("its number of axes is not known")
    return rows_of(value, (value.known_shape[0], *[node.fresh(0, axis) for axis in range(1, rank)]), 0)


@handles("MaxUnpool")
def _unpool(node: Node) -> Value:
    if any(value is not None and value.is_rows for value in node.inputs):
        mixed("the places that it writes to count from the first row of the batch")
    return Value(None)


@handles("AveragePool", "MaxPool", "LpPool")
@handles("QLinearAveragePool", domain="com.microsoft")
def _pool(node: Node) -> list[Value]:
    value = node.only(0)
    _check_first(value, "its window slides over the rows", is_ordered=value.axis > 1)
    if not value.is_rows:
        return [Value(None, is_counted=value.is_counted)] * len(node.outputs)
    if len([name for name in node.outputs if name]) > 1:
        # The places that it gives count from the first row of the batch.
        unknown("it gives places in the whole batch")
    shape = (
        _make_fresh(node, value)
        if node.get("channels_last")
        else (*value.known_shape[:2], *_slide(node, value, node.get("kernel_shape")))
    )
    return [rows_of(value, shape, 0)]


@handles("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
@handles("QLinearGlobalAveragePool", domain="com.microsoft")
def _pool_all(node: Node) -> Value:
    value = node.only(0)
    _check_first(value, "it takes all rows together")
    shape = _make_fresh(node, value) if node.get("channels_last") else (*value.known_shape[:2], *[ONE] * (value.rank - 2))
    return rows_of(value, shape, value.axis)


@handles("QLinearAdd", "QLinearMul", domain="com.microsoft")
def _add_quantised(node: Node) -> Value:
    node.allow_rows(0, 3)
    return broadcast([node.take(0), node.take(3)])


@handles("QLinearSigmoid", "QLinearLeakyRelu", domain="com.microsoft")
def _map_quantised(node: Node) -> Value:
    return node.only(0)._replace(content=None)


@handles("QLinearSoftmax", domain="com.microsoft")
def _soften_quantised(node: Node) -> Value:
    value = node.only(0)
    axis = node.get("axis", -1)
    axes = [axis] if node.get("opset", 13) >= 13 else list(range(axis, value.rank))
    if value.is_rows and value.axis in {each % value.rank for each in axes}:
        mixed("it takes all rows together")
    return value._replace(content=None)


# equations


@handles("Einsum")
def _sum_products(node: Node) -> Value:
    equation = node.get("equation", b"").decode().replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = terms.split(",")
    if "." in equation or len(letters) != len(node.inputs):
        unknown("its equation is not understood")
    if "->" not in equation:
        counts: Counter[str] = Counter(terms.replace(",", ""))
        result = "".join(sorted(letter for letter, count in counts.items() if count == 1))
    dims: dict[str, Dim] = {}
    rows: set[str] = set()
    values = [node.take(index) for index in range(len(letters))]
    for term, value in zip(letters, values, strict=True):
        if len(term) != len(set(term)) or len(term) != value.rank:
            unknown("its equation is not understood")
        dims |= {letter: dim for letter, dim in zip(term, value.known_shape, strict=True) if dim != ONE or letter not in dims}
        rows |= {term[value.axis]} if value.is_rows else set()
    shape = tuple(dims[letter] for letter in result)
    is_counted = any(value.is_counted for value in values)
    if not rows:
        return Value(shape, is_counted=is_counted)
    if len(rows) > 1:
        mixed("each row meets all rows")
    (letter,) = rows
    if letter not in result:
        mixed(_SUMMED)
    if any(letter in term and not value.is_rows for term, value in zip(letters, values, strict=True)):
        unknown("an axis of rows meets one of another length")
    return Value(shape, result.index(letter), is_counted=is_counted)


# recurrent networks


@handles("LSTM", "GRU", "RNN")
def _recur(node: Node) -> list[Value]:
    value = node.take(0)
    lengths, states = node.find(4), [node.find(5), node.find(6)]
    parameters = [node.find(index) for index in (1, 2, 3, 7)]
    if any(found is not None and found.is_rows for found in parameters):
        unknown("its weights depend on rows")
    is_first = bool(node.get("layout", 0))
    axis = 0 if is_first else 1
    if value.is_rows and value.axis != axis:
        mixed("it goes through the rows one after the other", is_ordered=True)
    if lengths is not None and lengths.is_rows and lengths.axis:
        unknown("its lengths have other rows than its input")
    if any(state is not None and state.is_rows and state.axis != axis for state in states):
        unknown("its states have other rows than its input")
    if any(state is not None and not state.is_rows and state.shape is None for state in states):
        unknown("its states are not known")
    if not value.is_rows:
        if any(found is not None and found.is_rows for found in (lengths, *states)):
            unknown("its states depend on rows, its input does not")
        return [Value(None, is_counted=value.is_counted)] * 3
    directions = fixed(2 if node.get("direction", b"forward") == b"bidirectional" else 1)
    hidden = _hidden(node)
    batch, steps = value.known_shape[axis], value.known_shape[1 - axis]
    if is_first:
        whole, last, place = (batch, steps, directions, hidden), (batch, directions, hidden), (0, 0)
    else:
        whole, last, place = (steps, directions, batch, hidden), (directions, batch, hidden), (2, 1)
    return [rows_of(value, whole, place[0]), rows_of(value, last, place[1]), rows_of(value, last, place[1])]


def _hidden(node: Node) -> Dim:
    size: Any = node.get("hidden_size")
    return fixed(size) if size is not None and math.isfinite(size) else node.fresh(0, 3)
