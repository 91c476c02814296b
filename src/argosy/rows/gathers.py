"""Operators that pick elements out of a tensor, or write into it, at places that another tensor tells."""

from __future__ import annotations

from typing import NoReturn

from argosy.rows.moves import holds_rows, place_axis
from argosy.rows.values import Node, Value, handles, mixed, rows_of, unknown

__all__: list[str] = []


@handles("Gather")
def _gather(node: Node) -> Value:
    data, indices = node.take(0), node.take(1)
    if data.shape is None and not (data.is_rows or indices.is_rows):
        return Value(None, is_counted=data.is_counted or indices.is_counted)
    axis = place_axis(node.get("axis", 0), data.rank)
    if holds_rows(data, axis):
        _tell_picked(indices)
    if data.is_rows and indices.is_rows:
        mixed("each row picks from all rows")
    if indices.is_counted and not indices.content and data.is_rows:
        unknown("what it picks depends on the number of rows")
    shape = (*data.known_shape[:axis], *indices.known_shape, *data.known_shape[axis + 1 :])
    if indices.is_rows:
        return Value(shape, axis + indices.axis, is_counted=data.is_counted)
    place = data.axis if data.axis < axis else data.axis + indices.rank - 1
    result = rows_of(data, shape, place)._replace(is_counted=data.is_counted or indices.is_counted)
    picked = indices.integers
    if (
        data.content is None
        or data.rank != 1
        or picked is None
        or not all(-len(data.content) <= i < len(data.content) for i in picked)
    ):
        return result
    content = tuple(data.content[index] for index in picked)
    return result._replace(content=content, is_counted=any(dim.is_tainted for dim in content))


def _tell_picked(indices: Value) -> NoReturn:
    """Say what picking from the axis of rows comes to."""
    if indices.is_counted:
        # Made of the rows' own places, as exporters write a row's part of a mask: each may well pick from itself.
        unknown("it picks rows by their places")
    mixed("it picks rows of the batch")


@handles("GatherElements", "GatherND")
def _gather_elements(node: Node) -> Value:
    data, indices = node.take(0), node.take(1)
    if not (data.is_rows or indices.is_rows):
        shape = indices.shape if node.op == "GatherElements" else None
        return Value(shape, is_counted=data.is_counted or indices.is_counted)
    if node.op == "GatherElements":
        if holds_rows(data, place_axis(node.get("axis", 0), data.rank)):
            _tell_picked(indices)
        if not (data.is_rows and indices.is_rows and data.axis == indices.axis):
            unknown("what it picks has other rows than what it picks from")
        return rows_of(indices, indices.known_shape, indices.axis)
    depth, width = node.get("batch_dims", 0), indices.known_shape[-1].value
    if width is None:
        unknown("it is not known what it picks")
    shape = (*indices.known_shape[:-1], *data.known_shape[depth + width :])
    if not data.is_rows and depth <= 0 and indices.axis < indices.rank - 1:
        return rows_of(indices, shape, indices.axis)
    if data.is_rows and indices.is_rows and data.axis == indices.axis < depth:
        return rows_of(indices, shape, indices.axis)
    if data.is_rows and not indices.is_rows and data.axis >= depth + width:
        return rows_of(data, shape, data.axis - depth - width + indices.rank - 1)
    return unknown("what it picks has other rows than what it picks from")


@handles("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Value:
    data = node.take(0)
    values = [node.take(index) for index in range(3)]
    if not any(value.is_rows for value in values):
        return Value(data.shape, is_counted=any(value.is_counted for value in values))
    if len({value.axis for value in values}) > 1 or holds_rows(data, place_axis(node.get("axis", 0), data.rank)):
        unknown("where it writes has other rows than what it writes to")
    return rows_of(data, data.known_shape, data.axis)


@handles("OneHot")
def _one_hot(node: Node) -> Value:
    indices = node.only(0)
    rank = indices.rank + 1
    axis = place_axis(node.get("axis", -1), rank)
    depth = node.take(1).content
    dim = depth[0] if depth and depth[0].is_length else node.fresh(0, axis)
    shape = (*indices.known_shape[:axis], dim, *indices.known_shape[axis:])
    return rows_of(indices, shape, indices.axis + (axis <= indices.axis))


@handles("Compress")
def _compress(node: Node) -> Value:
    value, condition = node.take(0), node.take(1)
    if not (value.is_rows or condition.is_rows):
        return Value(None)
    if condition.is_rows or "axis" not in node.attributes:
        mixed("how many entries it keeps depends on data")
    axis = place_axis(node.get("axis"), value.rank)
    if holds_rows(value, axis):
        mixed("it keeps some rows of the batch")
    shape = (*value.known_shape[:axis], node.fresh(0, axis), *value.known_shape[axis + 1 :])
    return rows_of(value, shape, value.axis)


@handles("NonZero", "NonMaxSuppression", "Unique")
def _select_some(node: Node) -> list[Value]:
    if any(value is not None and value.is_rows for value in node.inputs):
        mixed("how many entries it gives depends on all rows")
    return [Value(None, is_counted=any(value is not None and value.is_counted for value in node.inputs)) for _ in node.outputs]
