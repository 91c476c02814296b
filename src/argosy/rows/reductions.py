"""Operators that take several elements together: sums, extremes, normalisation, quantisation, sorting."""

from __future__ import annotations

from typing import Final

from argosy.rows.arithmetic import compute_all
from argosy.rows.dims import ONE, Dim, fixed, product
from argosy.rows.moves import place_axis
from argosy.rows.values import Node, Value, broadcast, handles, mixed, rows_of, unknown

__all__: list[str] = []

_REDUCTIONS: Final = [
    f"Reduce{kind}" for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
]


def _refuse_rows(value: Value, axes: list[int], what: str, *, is_ordered: bool = False) -> None:
    if value.is_rows and value.axis in {place_axis(axis, value.rank) for axis in axes}:
        mixed(what, is_ordered=is_ordered)


@handles(*_REDUCTIONS)
def _reduce(node: Node) -> Value:
    value = node.only(0)
    if value.shape is None:
        return Value(None, is_counted=value.is_counted)
    axes = node.list_integers("axes", 1)
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return value._replace(content=None)
        axes = list(range(value.rank))
    gone = {place_axis(axis, value.rank) for axis in axes}
    _refuse_rows(value, axes, "it takes all rows together")
    content: tuple[Dim, ...] | None = None
    if node.op == "ReduceProd" and value.rank == 1 and value.content:
        content = compute_all("Mul", value.content)
    if node.get("keepdims", 1):
        shape = tuple(ONE if axis in gone else dim for axis, dim in enumerate(value.shape))
        return rows_of(value, shape, value.axis)._replace(content=content)
    shape = tuple(dim for axis, dim in enumerate(value.shape) if axis not in gone)
    return rows_of(value, shape, value.axis - sum(axis < value.axis for axis in gone))._replace(content=content)


@handles("ArgMax", "ArgMin")
def _pick(node: Node) -> Value:
    value = node.take(0)
    axis = place_axis(node.get("axis", 0), value.rank)
    _refuse_rows(value, [axis], "it compares all rows")
    left = (ONE,) if node.get("keepdims", 1) else ()
    shape = (*value.known_shape[:axis], *left, *value.known_shape[axis + 1 :])
    return rows_of(value, shape, value.axis - (axis < value.axis and not left))


@handles("TopK")
def _top(node: Node) -> list[Value]:
    value = node.only(0)
    axis = place_axis(node.get("axis", -1), value.rank)
    _refuse_rows(value, [axis], "it sorts the rows")
    count = node.find(1)
    number = node.get("k") if count is None else (count.content or (None,))[0]
    dim = number if isinstance(number, Dim) else fixed(number) if number is not None else node.fresh(0, axis)
    if dim.is_tainted:
        unknown("how many it takes depends on the number of rows")
    shape = (*value.known_shape[:axis], dim, *value.known_shape[axis + 1 :])
    return [rows_of(value, shape, value.axis)] * 2


@handles("CumSum", "CumProd")
def _accumulate(node: Node) -> Value:
    value = node.only(0)
    axes = node.take(1).integers
    if axes is None:
        unknown("its axis is not known")
    _refuse_rows(value, axes, "it adds each row to those before", is_ordered=True)
    return value._replace(content=None)


@handles("Softmax", "LogSoftmax", "Hardmax")
def _soften(node: Node) -> Value:
    value = node.take(0)
    # Old versions take all axes from this one on together.
    old = range(place_axis(node.get("axis", 1), value.rank), value.rank)
    axes = [node.get("axis", -1)] if node.opset >= 13 else list(old)
    _refuse_rows(value, axes, "it takes all rows together")
    return value._replace(content=None)


@handles("LpNormalization")
def _normalise_lp(node: Node) -> Value:
    value = node.take(0)
    _refuse_rows(value, [node.get("axis", -1)], "it normalises over the rows")
    return value._replace(content=None)


@handles("MeanVarianceNormalization")
def _normalise(node: Node) -> Value:
    value = node.take(0)
    _refuse_rows(value, list(node.get("axes", (0, 2, 3))), "it normalises over the rows")
    return value._replace(content=None)


@handles("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@handles("SimplifiedLayerNormalization", domain="com.microsoft")
def _normalise_layer(node: Node) -> list[Value]:
    value = node.only(0)
    axis = place_axis(node.get("axis", -1), value.rank)
    _refuse_rows(value, list(range(axis, value.rank)), "it normalises over the rows")
    shape = (*value.known_shape[:axis], *[ONE] * (value.rank - axis))
    return [value._replace(content=None), rows_of(value, shape, value.axis), rows_of(value, shape, value.axis)]


@handles("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def _normalise_sum(node: Node) -> list[Value]:
    values = [value for index in (0, 1) if (value := node.find(index)) is not None]
    node.allow_rows(0, 1)
    total = broadcast(values)
    _refuse_rows(total, [-1], "it normalises over the rows")
    left = (*total.known_shape[:-1], ONE)
    return [total, *[rows_of(total, left, total.axis)] * 2, total]


@handles("BatchNormalization")
def _normalise_batch(node: Node) -> list[Value]:
    value = node.only(0)
    if node.get("training_mode", 0) or (node.opset < 14 and len([name for name in node.outputs if name]) > 1):
        mixed("it normalises over the rows")
    if value.is_rows and value.axis == 1 and value.rank > 1:
        unknown("its channels are the rows")
    return [value._replace(content=None)]


@handles("InstanceNormalization", "LRN", "GroupNormalization")
@handles("GroupNorm", domain="com.microsoft")
def _normalise_channels(node: Node) -> Value:
    value = node.only(0)
    if value.is_rows and value.axis:
        mixed("it normalises over the rows")
    return value._replace(content=None)


# quantisation


@handles("QuantizeLinear", "DequantizeLinear")
@handles("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def _quantise(node: Node) -> Value:
    value = node.only(0)
    scale = node.find(1)
    is_per_axis = scale is not None and (scale.shape is None or product(scale.shape) != ONE)
    if is_per_axis and value.is_rows and place_axis(node.get("axis", 1), value.rank) == value.axis:
        unknown("each row has a scale of its own")
    return value._replace(content=None)


@handles("DynamicQuantizeLinear")
def _quantise_by_range(node: Node) -> list[Value]:
    value = node.take(0)
    if value.is_rows:
        mixed("its scale is that of all rows together")
    return [value._replace(content=None), Value(()), Value(())]


@handles(
    *("Attention", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QOrderedAttention"), domain="com.microsoft"
)
def _multiply_by_range(node: Node) -> list[Value]:
    value = node.take(0)
    if node.op == "Attention":
        return _attend(node)
    if any(found is not None and found.is_rows for found in node.inputs):
        mixed("its scale is that of all rows together")
    return [Value(None, is_counted=value.is_counted) for _ in node.outputs]


def _attend(node: Node) -> list[Value]:
    value, mask = node.take(0), node.find(3)
    node.allow_rows(0, 3)
    past = node.find(4)
    if past is not None or len([name for name in node.outputs if name]) > 1:
        unknown("it keeps a state")
    if value.axis > 0 or (mask is not None and mask.axis > 0):
        unknown("its rows are not the first axis")
    if mask is not None and mask.is_rows != value.is_rows:
        unknown("its mask has other rows than its input")
    shape = (*value.known_shape[:-1], node.fresh(0, value.rank - 1))
    return [rows_of(value, shape, value.axis)]


@handles("EmbedLayerNormalization", domain="com.microsoft")
def _embed(node: Node) -> list[Value]:
    ids = node.take(0)
    node.allow_rows(0, 1, 7, 8)
    if any(value is not None and value.axis > 0 for value in node.inputs):
        unknown("its rows are not the first axis")
    shape = (*ids.known_shape, node.fresh(0, ids.rank))
    return [rows_of(ids, shape, ids.axis), rows_of(ids, ids.known_shape[:1], ids.axis), rows_of(ids, shape, ids.axis)]
