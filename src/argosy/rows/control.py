"""Operators that hold graphs: branches, loops, scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from argosy.rows.dims import Dim, combine
from argosy.rows.values import Node, Value, handles, mixed, unknown

__all__: list[str] = []

MAX_TURNS: Final = 6
"""Of a loop, until what is known of its states is the same before and after a turn."""


def _join(a: Value, b: Value, name: str) -> Value:
    """What is known of a tensor that is one of two.

    Raises:
        Fault: their rows are not in the same place.
    """
    for value in (a, b):
        if value.fault is not None:
            raise value.fault
    is_counted = a.is_counted or b.is_counted
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        if a.is_rows or b.is_rows:
            unknown("its branches give different axes")
        return Value(None, is_counted=is_counted)
    if a.axis != b.axis and a.is_rows and b.is_rows:
        unknown("its branches have their rows in different places")
    axis = max(a.axis, b.axis)
    if axis >= 0 and a.shape[axis] != b.shape[axis]:
        unknown("one of its branches has rows, the other has not")
    shape = tuple(
        one if one == other else combine(f"{name}.{index}", *sorted((one, other)))
        for index, (one, other) in enumerate(zip(a.shape, b.shape, strict=True))
    )
    return Value(shape, axis, a.content if a.content == b.content else None, is_counted)


@handles("If")
def _branch(node: Node) -> list[Value]:
    condition = node.take(0)
    if condition.is_rows:
        mixed("it branches on data")
    if condition.is_counted:
        mixed("it branches on the number of rows")
    branches = [node.run(node.get(name), ()) for name in ("then_branch", "else_branch")]
    if condition.integers:
        return branches[0 if condition.integers[0] else 1]
    pairs = zip(branches[0], branches[1], strict=True)
    return [_join(one, other, node.outputs[index]) for index, (one, other) in enumerate(pairs)]


@handles("Loop")
def _loop(node: Node) -> list[Value]:
    count, condition = node.find(0), node.find(1)
    for value in (count, condition):
        if value is not None and value.is_rows:
            mixed("how often it runs depends on data")
        if value is not None and value.is_counted:
            unknown("how often it runs depends on the number of rows")
    states = [node.take(index) for index in range(2, len(node.inputs))]
    for _ in range(MAX_TURNS):
        goes_on, *found = node.run(node.get("body"), [Value(()), Value(()), *(state._replace(content=None) for state in states)])
        if goes_on.fault is not None:
            raise goes_on.fault
        if goes_on.is_rows:
            mixed("how often it runs depends on data")
        if goes_on.depends_on_count:
            unknown("how often it runs depends on the number of rows")
        after = _join_states(states, found)
        if after == states:
            return [*states, *_stack(found[len(states) :], node, len(states), 0)]
        states = after
    return unknown("what its states are after a turn is not found out")


def _join_states(before: Sequence[Value], after: Sequence[Value]) -> list[Value]:
    return [
        _join(one._replace(content=None), other._replace(content=None), f"state{index}")
        for index, (one, other) in enumerate(zip(before, after, strict=False))
    ]


def _stack(values: Sequence[Value], node: Node, first: int, axis: int) -> list[Value]:
    """What a body gives at each turn, one after the other along a new axis."""
    stacked: list[Value] = []
    for index, value in enumerate(values):
        length: Dim = node.fresh(first + index, axis)
        shape = (*value.known_shape[:axis], length, *value.known_shape[axis:]) if value.fault is None else None
        stacked.append(value._replace(shape=shape, axis=value.axis + (value.axis >= axis), content=None))
    return stacked


@handles("Scan")
def _scan(node: Node) -> list[Value]:
    if node.opset < 9:
        unknown("a scan of that version is not looked into")
    num_scanned: int = node.get("num_scan_inputs")
    num_states = len(node.inputs) - num_scanned
    values = [node.take(index) for index in range(len(node.inputs))]
    scanned = values[num_states:]
    given = node.get("scan_input_axes", [0] * num_scanned)
    axes: list[int] = [axis % value.rank for axis, value in zip(given, scanned, strict=True)]
    slices: list[Value] = []
    for value, axis in zip(scanned, axes, strict=True):
        if value.axis == axis:
            mixed("it goes through the rows one after the other", is_ordered=True)
        if value.known_shape[axis].is_tainted or value.depends_on_count:
            unknown("how often it runs depends on the number of rows")
        shape = (*value.known_shape[:axis], *value.known_shape[axis + 1 :])
        slices.append(value._replace(shape=shape, axis=value.axis - (value.axis > axis), content=None))
    states = values[:num_states]
    if any(node.get("scan_output_axes", [0])):
        unknown("it stacks what it gives along another axis than the first")
    for _ in range(MAX_TURNS):
        found = node.run(node.get("body"), [*(state._replace(content=None) for state in states), *slices])
        after = _join_states(states, found)
        if after == states:
            return [*states, *_stack(found[num_states:], node, num_states, 0)]
        states = after
    return unknown("what its states are after a turn is not found out")
