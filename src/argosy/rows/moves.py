"""Operators that move elements: to other axes, to other lengths, beside those of another tensor."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from argosy.rows.arithmetic import is_exact
from argosy.rows.dims import ONE, ROWS, Dim, combine, fixed, named, product
from argosy.rows.elementwise import content_of, spread_to
from argosy.rows.values import MAX_CONTENT, Node, Shape, Value, handles, mixed, rows_of, unknown

__all__ = ["holds_rows", "place_axis", "reshape"]

_BEYOND: Final = (1 << 31) - 1
"""A bound that stands for the end of an axis, as exporters write it: none is as long."""


def place_axis(axis: int, rank: int) -> int:
    """An axis that may be counted from the end.

    Raises:
        Fault: there is none.
    """
    if not -rank <= axis <= rank and rank > 0:
        unknown("it names an axis that its input is not known to have")
    return axis + rank if axis < 0 else axis


def holds_rows(value: Value, axis: int) -> bool:
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
            # A fraction would be less than one entry a row: some hold a part of the next.
            if product(shape[:axis]) == before and dim.number.denominator == 1:
                return rows_of(value, shape, axis)
            break
    return unknown("it is not known where the rows are in its new shape")


@handles("Reshape")
def _reshape(node: Node) -> Value:
    value = node.take(0)
    target = node.find(1)
    wanted = content_of(target, "shape") if target is not None else tuple(fixed(dim) for dim in node.get("shape", ()))
    if value.shape is None:
        return Value(wanted if all((dim.value or 0) > 0 for dim in wanted) else None, is_counted=value.is_counted)
    old = value.shape
    is_copied = not node.get("allowzero", 0)
    shape = [
        old[index] if dim.value == 0 and is_copied and index < len(old) else _take_length(dim, old[index : index + 1])
        for index, dim in enumerate(wanted)
    ]
    if (open_axes := [index for index, dim in enumerate(shape) if dim.value == -1]) and len(open_axes) == 1:
        rest = product(dim for index, dim in enumerate(shape) if index != open_axes[0])
        total = product(old)
        shape[open_axes[0]] = total.over(rest) or combine("div", total, rest)
    return reshape(value, tuple(shape))


def _take_length(dim: Dim, old: Shape) -> Dim:
    """The length that a number of a shape asks for, which may turn out to be 0 (as it was) or -1 (what is left)."""
    return dim if not dim.names or dim.is_own else combine("asked", dim, *old)


@handles("Flatten")
def _flatten(node: Node) -> Value:
    value = node.take(0)
    axis = place_axis(node.get("axis", 1), value.rank)
    shape = value.known_shape
    return reshape(value, (product(shape[:axis]), product(shape[axis:])))


@handles("Squeeze")
def _squeeze(node: Node) -> Value:
    value = node.take(0)
    axes = node.list_integers("axes", 1)
    shape = value.known_shape
    if axes is None:
        if any(dim.value is None for index, dim in enumerate(shape) if not holds_rows(value, index)):
            unknown("it is not known which axes it takes away")
        axes = [index for index, dim in enumerate(shape) if dim.value == 1]
        if value.is_rows and value.axis not in axes:
            # A batch of one row would lose this axis, too.
            unknown("it takes away all axes of one entry, with that of the rows where there is one row")
    gone = {place_axis(axis, len(shape)) for axis in axes}
    if value.axis in gone:
        unknown("it takes away the axis of the rows")
    left = tuple(dim for index, dim in enumerate(shape) if index not in gone)
    return rows_of(value, left, value.axis - sum(axis < value.axis for axis in gone))._replace(content=value.content)


@handles("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    value = node.take(0)
    axes = node.list_integers("axes", 1) or []
    rank = value.rank + len(axes)
    new = {place_axis(axis, rank) for axis in axes}
    rest = iter(range(value.rank))
    old = [-1 if index in new else next(rest) for index in range(rank)]
    shape = tuple(ONE if index < 0 else value.known_shape[index] for index in old)
    return rows_of(value, shape, old.index(value.axis) if value.is_rows else -1)._replace(content=value.content)


@handles("Transpose")
def _transpose(node: Node) -> Value:
    value = node.take(0)
    if value.shape is None:
        return Value(None, is_counted=value.is_counted)
    order: list[int] = list(node.get("perm", range(value.rank)[::-1]))
    shape = tuple(value.shape[axis] for axis in order)
    return rows_of(value, shape, order.index(value.axis) if value.is_rows else -1)


@handles("Concat")
def _concat(node: Node) -> Value:
    values = [value for value in node.inputs if value is not None]
    if not any(value.is_rows for value in values):
        return _concat_same(values, node.get("axis", 0))
    rank = values[0].rank
    axis = place_axis(node.get("axis", 0), rank)
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
        kept = content if len(content) <= MAX_CONTENT else None
        return Value((fixed(len(content)),), content=kept, is_counted=is_counted)
    shape = list(values[0].known_shape)
    place = place_axis(axis, len(shape))
    shape[place] = _sum([value.known_shape[place] for value in values])
    return Value(tuple(shape), is_counted=is_counted)


def _sum(dims: list[Dim]) -> Dim:
    if all(dim.names == dims[0].names for dim in dims):
        return Dim(sum((dim.number for dim in dims), start=fixed(0).number), dims[0].names)
    return combine("sum", *dims)


@handles("Split")
def _split(node: Node) -> list[Value]:
    value = node.take(0)
    axis = place_axis(node.get("axis", 0), value.rank)
    if holds_rows(value, axis):
        mixed("it divides the batch")
    parts = node.list_integers("split", 1)
    count = len(node.outputs)
    length = value.known_shape[axis]
    if parts is not None:
        dims = [fixed(part) for part in parts]
    else:
        even = length.over(fixed(count))
        is_whole = even is not None and even.number.denominator == 1
        dims = [even if even is not None and is_whole else node.fresh(index, axis) for index in range(count)]
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
    places = [place_axis(axis, value.rank) for axis in axes]
    bounds = [(_at(found, i, given[k]), i) for i in range(len(places)) for k, found in ((0, starts),)]
    is_by_count = any(item is not None and item.depends_on_count for item in given)
    shape = list(value.shape)
    content = value.content
    for (start, index), place in zip(bounds, places, strict=True):
        end, step = _at(ends, index, given[1]), _at(steps, index, given[3]) if given[3] is not None else 1
        if holds_rows(value, place):
            if start != 0 or step != 1 or not _is_end(given[1], end, index, shape[place]):
                mixed("it takes a part of the batch, or turns it round")
            continue
        length = shape[place].value
        if length is None or start is None or end is None or not step:
            if (start, step) != (0, 1) or not _is_end(given[1], end, index, shape[place]):
                fresh = node.fresh(0, place)
                shape[place] = combine("slice", fresh, named(ROWS)) if is_by_count else fresh
            content = None
            continue
        if step < 0 and (start < -length or end >= length):
            # Runtimes differ from one another in what they take then.
            shape[place], content = node.fresh(0, place), None
            continue
        taken = range(length)[slice(start, end, step)]
        shape[place] = fixed(len(taken))
        content = tuple(content[item] for item in taken) if content is not None and value.rank == 1 else None
    if is_by_count and value.is_rows:
        unknown("what it takes depends on the number of rows")
    found = rows_of(value, tuple(shape), value.axis)._replace(content=content)
    return found._replace(is_counted=True) if is_by_count and content is None else found


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
    if given is not None and given.integers is None:
        unknown("its axes are not known")
    axes = [place_axis(axis, value.rank) for axis in given.integers or ()] if given is not None else list(range(value.rank))
    shape = list(value.known_shape)
    for index, axis in enumerate(axes):
        around = pads[index] + pads[index + len(axes)]
        if not around and not pads[index]:
            continue
        if holds_rows(value, axis):
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
    if (scales := node.find(2)) is not None and scales.depends_on_count:
        unknown("its scales depend on the number of rows")
    shape = list(value.known_shape)
    axes = [place_axis(axis, value.rank) for axis in node.get("axes", range(value.rank))]
    # Both take the batch's own length for one that may become another.
    is_framed = node.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    if value.axis in axes and (is_framed or node.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"):
        unknown("it may resize the batch")
    if node.get("mode", b"nearest") != b"nearest" and (value.rank < 4 or value.axis > 0):
        unknown("it weighs neighbours along the axis of the rows, if only by 0: of infinity, that is no number")
    lengths = _list_lengths(node, [shape[axis] for axis in axes])
    for index, axis in enumerate(axes):
        length = lengths[index] if lengths is not None else None
        if axis == value.axis and length != shape[axis]:
            unknown("it may resize the batch")
        shape[axis] = length or node.fresh(0, axis)
    return rows_of(value, tuple(shape), value.axis)


def _list_lengths(node: Node, old: list[Dim]) -> list[Dim | None] | None:
    """Lengths after a resize, each None where it is not known; None where none is."""
    is_old = node.op == "Upsample" or node.opset < 11
    if node.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return None
    sizes = None if is_old else node.find(3)
    if sizes is not None:
        return [*content_of(sizes, "sizes")]
    given = node.find(1 if is_old else 2)
    scales = [fixed(Fraction(scale)) for scale in node.get("scales", ())] or list((given.content if given else None) or ())
    return [dim if scale == ONE else _scale(dim, scale) for dim, scale in zip(old, scales, strict=True)] if scales else None


def _scale(length: Dim, scale: Dim) -> Dim | None:
    """A length times a scale, where no float is rounded on the way."""
    found = None if length.value is None or scale.names else length.value * scale.number
    return fixed(int(found)) if found is not None and is_exact(found) else None


@handles("GridSample")
def _sample_grid(node: Node) -> Value:
    value, grid = node.take(0), node.take(1)
    if {value.axis, grid.axis} - {0, -1}:
        unknown("its rows are not the first axis")
    if value.is_rows != grid.is_rows:
        unknown("its grid has other rows than its input")
    shape = (*value.known_shape[:2], *grid.known_shape[1:-1])
    return rows_of(value, shape, value.axis)
