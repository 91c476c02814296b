"""Operators that move elements: to other axes, out of a tensor, beside those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from argosy.importers.rows.dims import ONE, ROWS, Dim, combine, fixed, named, product
from argosy.importers.rows.elementwise import content_of, spread_to
from argosy.importers.rows.values import Node, Shape, Value, handles, mixed, rows_of, unknown

__all__ = ["reshape"]

_BEYOND: Final = 1 << 24
"""A bound that stands for the end of an axis: no batch has as many rows."""


def _place(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _is_of_rows(value: Value, axis: int) -> bool:
    """True for the axis that holds the rows."""
    return value.is_rows and value.axis == axis


def reshape(value: Value, shape: Shape) -> Value:
    """The elements in another shape.

    Raises:
        Fault: the parts of the rows would not lie one after the other along an axis.
    """
    if not value.is_rows:
        if any(dim.is_tainted for dim in shape):
            return spread_to(shape)._replace(is_counted=value.is_counted)
        return Value(shape, content=value.content, is_counted=value.is_counted)
    before = product(value.known_shape[: value.axis])
    for axis, dim in enumerate(shape):
        if dim.has_rows:
            if product(shape[:axis]) == before:
                return rows_of(value, shape, axis)
            break
    unknown("it is not known where the rows are in its new shape")


@handles("Reshape")
def _reshape(node: Node) -> Value:
    value = node.take(0)
    target = node.find(1)
    wanted = content_of(target, "shape") if target is not None else tuple(fixed(dim) for dim in node.get("shape", ()))
    if value.shape is None:
        return Value(wanted if all((dim.value or 0) > 0 for dim in wanted) else None, is_counted=value.is_counted)
    old = value.shape
    shape = [
        old[index] if dim.value == 0 and not node.get("allowzero", 0) and index < len(old) else dim
        for index, dim in enumerate(wanted)
    ]
    if (open_axes := [index for index, dim in enumerate(shape) if dim.value == -1]) and len(open_axes) == 1:
        rest = product(dim for index, dim in enumerate(shape) if index != open_axes[0])
        total = product(old)
        if value.is_rows and not rest.has_rows and total.over(rest) is None:
            # Lengths that are no products of one another; but what holds the rows has them as a factor.
            per_row = total.over(named(ROWS))
            found = combine("div", per_row or ONE, rest).times(named(ROWS))
        else:
            found = total.over(rest) or combine("div", total, rest)
        shape[open_axes[0]] = found
    return reshape(value, tuple(shape))


@handles("Flatten")
def _flatten(node: Node) -> Value:
    value = node.take(0)
    axis = _place(node.get("axis", 1), value.rank)
    shape = value.known_shape
    return reshape(value, (product(shape[:axis]), product(shape[axis:])))


@handles("Squeeze")
def _squeeze(node: Node) -> Value:
    value = node.take(0)
    axes = node.list_integers("axes", 1)
    shape = value.known_shape
    if axes is None:
        if any(dim.value is None for index, dim in enumerate(shape) if not _is_of_rows(value, index)):
            unknown("it is not known which axes it takes away")
        axes = [index for index, dim in enumerate(shape) if dim.value == 1]
        if value.is_rows and value.axis not in axes:
            # A batch of one row would lose this axis, too.
            unknown("it takes away all axes of one entry, with that of the rows where there is one row")
    gone = {_place(axis, len(shape)) for axis in axes}
    if value.axis in gone:
        unknown("it takes away the axis of the rows")
    left = tuple(dim for index, dim in enumerate(shape) if index not in gone)
    return rows_of(value, left, value.axis - sum(axis < value.axis for axis in gone))._replace(content=value.content)


@handles("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    value = node.take(0)
    axes = node.list_integers("axes", 1) or []
    rank = value.rank + len(axes)
    new = {_place(axis, rank) for axis in axes}
    rest = iter(range(value.rank))
    old = [-1 if index in new else next(rest) for index in range(rank)]
    shape = tuple(ONE if index < 0 else value.known_shape[index] for index in old)
    return rows_of(value, shape, old.index(value.axis) if value.is_rows else -1)._replace(content=value.content)


@handles("Transpose")
def _transpose(node: Node) -> Value:
    value = node.take(0)
    if value.shape is None:
        return Value(None, is_counted=value.is_counted)
    order = list(node.get("perm", range(value.rank)[::-1]))
    shape = tuple(value.shape[axis] for axis in order)
    return rows_of(value, shape, order.index(value.axis) if value.is_rows else -1)


@handles("Concat")
def _concat(node: Node) -> Value:
    values = [value for value in node.inputs if value is not None]
    if not any(value.is_rows for value in values):
        return _concat_same(values, node.get("axis", 0))
    rank = values[0].rank
    axis = _place(node.get("axis", 0), rank)
    axes = {value.axis for value in values}
    if len(axes) > 1:
        unknown("it sets rows beside what has none")
    if axis in axes:
        unknown("it sets further rows after those of the batch")
    if any(value.rank != rank for value in values) or len({value.known_shape[values[0].axis] for value in values}) > 1:
        unknown("it sets rows beside others")
    shape = list(values[0].known_shape)
    shape[axis] = _sum([value.known_shape[axis] for value in values])
    return Value(tuple(shape), values[0].axis, is_counted=any(value.is_counted for value in values))


def _concat_same(values: list[Value], axis: int) -> Value:
    is_counted = any(value.is_counted for value in values)
    if any(value.shape is None for value in values):
        return Value(None, is_counted=is_counted)
    if all(value.rank == 1 and value.content is not None for value in values):
        content = tuple(dim for value in values for dim in value.content or ())
        return Value((fixed(len(content)),), content=content, is_counted=is_counted)
    shape = list(values[0].known_shape)
    place = _place(axis, len(shape))
    shape[place] = _sum([value.known_shape[place] for value in values])
    return Value(tuple(shape), is_counted=is_counted)


def _sum(dims: list[Dim]) -> Dim:
    if all(dim.names == dims[0].names for dim in dims):
        return Dim(sum((dim.number for dim in dims), start=fixed(0).number), dims[0].names)
    return combine("sum", *dims)


@handles("Split")
def _split(node: Node) -> list[Value]:
    value = node.take(0)
    axis = _place(node.get("axis", 0), value.rank)
    if _is_of_rows(value, axis):
        mixed("it divides the batch")
    parts = node.list_integers("split", 1)
    count = len(node.outputs)
    length = value.known_shape[axis]
    if parts is None:
        even = length.over(fixed(count))
        whole = even if even is not None and even.number.denominator == 1 else None
        dims = [whole or node.fresh(index, axis) for index in range(count)]
    else:
        dims = [fixed(part) for part in parts]
    shapes = [(*value.known_shape[:axis], dim, *value.known_shape[axis + 1 :]) for dim in dims]
    return [rows_of(value, shape, value.axis) for shape in shapes]


@handles("Slice")
def _slice(node: Node) -> Value:
    value = node.take(0)
    if value.shape is None:
        return Value(None, is_counted=value.is_counted)
    given = [node.find(index) for index in range(1, 5)]
    if any(item is not None and item.is_rows for item in given):
        unknown("what it takes depends on data")
    starts, ends, axes, steps = (None if item is None else item.integers for item in given)
    if given[0] is None:
        starts, ends, axes = (node.get(name) for name in ("starts", "ends", "axes"))
    if axes is None and given[2] is None and (first := starts or ends) is not None:
        axes = list(range(len(first)))
    if axes is None:
        unknown("the axes that it cuts are not known")
    places = [_place(axis, value.rank) for axis in axes]
    bounds = [(_at(found, i, given[k]), i) for i in range(len(places)) for k, found in ((0, starts),)]
    shape = list(value.shape)
    content = value.content
    for (start, index), place in zip(bounds, places, strict=True):
        end, step = _at(ends, index, given[1]), _at(steps, index, given[3]) if given[3] is not None else 1
        if _is_of_rows(value, place):
            if start != 0 or step != 1 or not _is_end(given[1], end, index, shape[place]):
                mixed("it takes a part of the batch, or turns it round")
            continue
        length = shape[place].value
        if length is None or start is None or end is None or not step:
            if (start, step) != (0, 1) or not _is_end(given[1], end, index, shape[place]):
                shape[place] = node.fresh(0, place)
            content = None
            continue
        taken = range(length)[slice(start, end, step)]
        shape[place] = fixed(len(taken))
        content = tuple(content[item] for item in taken) if content is not None and value.rank == 1 else None
    if any(item is not None and item.is_counted for item in given) and value.is_rows:
        unknown("what it takes depends on the number of rows")
    return rows_of(value, tuple(shape), value.axis)._replace(content=content)


def _is_end(given: Value | None, end: int | None, index: int, length: Dim) -> bool:
    """True for a bound that is the end of an axis, or beyond that of any."""
    if end is not None:
        return end >= _BEYOND
    return given is not None and given.content is not None and given.content[index] == length


def _at(found: Sequence[int] | None, index: int, given: Value | None) -> int | None:
    """A bound that is known, also where others of the same tensor are not."""
    if found is not None:
        return found[index]
    return given.content[index].value if given is not None and given.content is not None else None


@handles("Pad")
def _pad(node: Node) -> Value:
    value = node.take(0)
    pads = node.list_integers("pads", 1) or node.get("paddings")
    if pads is None:
        unknown("its pads are not known")
    given = node.find(3)
    axes = [_place(axis, value.rank) for axis in (given.integers or ())] if given is not None else list(range(value.rank))
    shape = list(value.known_shape)
    for index, axis in enumerate(axes):
        around = pads[index] + pads[index + len(axes)]
        if not around and not pads[index]:
            continue
        if _is_of_rows(value, axis):
            unknown("it adds rows")
        shape[axis] = _sum([shape[axis], fixed(around)]) if shape[axis].value is not None else node.fresh(0, axis)
    if (filler := node.find(2)) is not None and filler.is_rows:
        unknown("what it fills up with depends on rows")
    return rows_of(value, tuple(shape), value.axis)


@handles("Tile")
def _tile(node: Node) -> Value:
    value = node.take(0)
    repeats = content_of(node.take(1), "repeats")
    if value.is_rows:
        if repeats[value.axis] != ONE:
            unknown("it repeats the batch")
        if any(dim.is_tainted for dim in repeats):
            unknown("it repeats rows as often as there are rows")
    shape = tuple(dim.times(times) for dim, times in zip(value.known_shape, repeats, strict=True))
    return rows_of(value, shape, value.axis) if value.is_rows else spread_to(shape)._replace(is_counted=value.is_counted)


@handles("Gather")
def _gather(node: Node) -> Value:
    data, indices = node.take(0), node.take(1)
    if data.shape is None and not (data.is_rows or indices.is_rows):
        return Value(None, is_counted=data.is_counted or indices.is_counted)
    axis = _place(node.get("axis", 0), data.rank)
    if _is_of_rows(data, axis):
        mixed("it picks rows of the batch")
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
    if data.content is None or data.rank != 1 or picked is None or not all(-len(data.content) <= i < len(data.content) for i in picked):
        return result
    content = tuple(data.content[index] for index in picked)
    return result._replace(content=content, is_counted=any(dim.is_tainted for dim in content))


@handles("GatherElements", "GatherND")
def _gather_elements(node: Node) -> Value:
    data, indices = node.take(0), node.take(1)
    if not (data.is_rows or indices.is_rows):
        return Value(None, is_counted=data.is_counted or indices.is_counted)
    if node.op == "GatherElements":
        if _is_of_rows(data, _place(node.get("axis", 0), data.rank)):
            mixed("it picks rows of the batch")
        if not (data.is_rows and indices.is_rows and data.axis == indices.axis):
            unknown("what it picks has other rows than what it picks from")
        return rows_of(indices, indices.known_shape, indices.axis)
    depth, width = node.get("batch_dims", 0), indices.known_shape[-1].value
    if width is None:
        unknown("it is not known what it picks")
    shape = (*indices.known_shape[:-1], *data.known_shape[depth + width :])
    if not data.is_rows and indices.axis < indices.rank - 1:
        return rows_of(indices, shape, indices.axis)
    if data.is_rows and indices.is_rows and data.axis == indices.axis < depth:
        return rows_of(indices, shape, indices.axis)
    if data.is_rows and not indices.is_rows and data.axis >= depth + width:
        return rows_of(data, shape, data.axis - depth - width + indices.rank - 1)
    unknown("what it picks has other rows than what it picks from")


@handles("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Value:
    data = node.take(0)
    values = [node.take(index) for index in range(3)]
    if not any(value.is_rows for value in values):
        return Value(data.shape, is_counted=any(value.is_counted for value in values))
    if len({value.axis for value in values}) > 1 or _is_of_rows(data, _place(node.get("axis", 0), data.rank)):
        unknown("where it writes has other rows than what it writes to")
    return rows_of(data, data.known_shape, data.axis)


@handles("OneHot")
def _one_hot(node: Node) -> Value:
    indices = node.only(0)
    rank = indices.rank + 1
    axis = _place(node.get("axis", -1), rank)
    depth = node.take(1).content
    dim = depth[0] if depth else node.fresh(0, axis)
    shape = (*indices.known_shape[:axis], dim, *indices.known_shape[axis:])
    return rows_of(indices, shape, indices.axis + (axis <= indices.axis))


@handles("Compress")
def _compress(node: Node) -> Value:
    value, condition = node.take(0), node.take(1)
    if not (value.is_rows or condition.is_rows):
        return Value(None)
    if condition.is_rows or "axis" not in node.attributes:
        mixed("how many entries it keeps depends on data")
    axis = _place(node.get("axis"), value.rank)
    if _is_of_rows(value, axis):
        mixed("it keeps some rows of the batch")
    shape = (*value.known_shape[:axis], node.fresh(0, axis), *value.known_shape[axis + 1 :])
    return rows_of(value, shape, value.axis)


@handles("NonZero", "NonMaxSuppression", "Unique")
def _select_some(node: Node) -> list[Value]:
    if any(value is not None and value.is_rows for value in node.inputs):
        mixed("how many entries it gives depends on all rows")
    return [Value(None, is_counted=any(value is not None and value.is_counted for value in node.inputs)) for _ in node.outputs]


@handles("DepthToSpace", "SpaceToDepth")
def _fold(node: Node) -> Value:
    value = node.take(0)
    if value.axis > 0:
        unknown("its rows are not the first axis")
    side = fixed(node.get("blocksize"))
    area = side.times(side)
    batch, depth, *sides = value.known_shape
    is_out = node.op == "DepthToSpace"
    found = [depth.over(area) if is_out else depth.times(area)]
    found += [length.times(side) if is_out else length.over(side) for length in sides]
    shape = (batch, *(dim or node.fresh(0, index + 1) for index, dim in enumerate(found)))
    return rows_of(value, shape, value.axis)


@handles("Trilu")
def _trilu(node: Node) -> Value:
    value = node.only(0)
    if value.is_rows and value.axis >= value.rank - 2:
        unknown("a row's place in the batch decides what is left of it")
    return value._replace(content=None)


@handles("ReverseSequence")
def _reverse(node: Node) -> Value:
    value, lengths = node.take(0), node.take(1)
    if value.is_rows and value.axis != node.get("batch_axis", 1):
        mixed("it turns the batch round")
    if lengths.is_rows and not value.is_rows:
        unknown("its lengths depend on rows, its input does not")
    return value._replace(content=None)


@handles("Upsample", "Resize")
def _resize(node: Node) -> Value:
    value = node.only(0)
    if not value.is_rows:
        return Value(None, is_counted=value.is_counted)
    shape = list(value.known_shape)
    axes = [_place(axis, value.rank) for axis in node.get("axes", range(value.rank))]
    is_old = node.op == "Upsample" or node.opset < 11
    scales = node.get("scales") or node.find(1 if is_old else 2)
    sizes = None if is_old else node.find(3)
    if isinstance(scales, Value) and scales.shape == (fixed(0),):
        scales = None
    for index, axis in enumerate(axes):
        if sizes is not None:
            length = content_of(sizes, "sizes")[index]
            is_kept = length == shape[axis]
        else:
            found = scales.content[index].number if isinstance(scales, Value) and scales.content else None
            scale = scales[index] if isinstance(scales, list) else found
            is_kept, known = scale == 1, shape[axis].value
            length = fixed(int(known * scale)) if known is not None and scale is not None else node.fresh(0, axis)
        if axis == value.axis and not is_kept:
            unknown("it may resize the batch")
        shape[axis] = shape[axis] if is_kept else length
    return rows_of(value, tuple(shape), value.axis)


@handles("GridSample")
def _sample_grid(node: Node) -> Value:
    value, grid = node.take(0), node.take(1)
    if {value.axis, grid.axis} - {0, -1}:
        unknown("its rows are not the first axis")
    if value.is_rows != grid.is_rows:
        unknown("its grid has other rows than its input")
    shape = (*value.known_shape[:2], *grid.known_shape[1:-1])
    return rows_of(value, shape, value.axis)

