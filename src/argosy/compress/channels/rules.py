"""What each operator says of the channels of what goes in and out. One that is not known here fixes all that it touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np

from argosy.compress.channels.labels import Axes, Ids, Labels, broadcast, fix

__all__ = ["RULES", "Place"]


class Place(NamedTuple):
    """A node, with all that is known of what goes in."""

    labels: Labels
    inputs: Sequence[Axes]
    shapes: Sequence[tuple[int, ...]]
    """Of the inputs; an input that is left out has no axes."""
    results: Sequence[tuple[int, ...]]
    """Shapes of the outputs."""
    attributes: Mapping[str, Any]
    constants: Sequence[Any]
    """The inputs that are constants, None for others."""


Rule = Callable[[Place], Sequence[Axes]]


def fix_all(place: Place) -> Sequence[Axes]:
    """Fix all that goes in and out."""
    place.labels.pin_tensor(*place.inputs)
    return [fix(len(shape)) for shape in place.results]


def _convolve(place: Place) -> Sequence[Axes]:
    labels, x, weight = place.labels, place.inputs[0], place.inputs[1]
    labels.pin(*weight[2:], *x[2:])
    group = place.attributes.get("group", 1)
    if group == 1:
        labels.join(x[1], weight[1])
        out = weight[0]
    elif place.shapes[1][1] == 1 and group == place.shapes[1][0]:
        out = labels.join(x[1], weight[0])
    else:
        return fix_all(place)
    if len(place.inputs) > 2 and place.inputs[2]:
        out = labels.join(out, place.inputs[2][0])
    return [(x[0], out, *fix(len(x) - 2))]


def _convolve_back(place: Place) -> Sequence[Axes]:
    labels, x, weight = place.labels, place.inputs[0], place.inputs[1]
    labels.pin(*weight[2:], *x[2:])
    if place.attributes.get("group", 1) != 1:
        return fix_all(place)
    labels.join(x[1], weight[0])
    out = weight[1]
    if len(place.inputs) > 2 and place.inputs[2]:
        out = labels.join(out, place.inputs[2][0])
    return [(x[0], out, *fix(len(x) - 2))]


def _multiply(place: Place) -> Sequence[Axes]:
    a, b = place.inputs[0], place.inputs[1]
    if place.attributes.get("transA", 0):
        a = (a[1], a[0])
    if place.attributes.get("transB", 0):
        b = (b[1], b[0])
    if min(len(a), len(b)) < 2:
        return fix_all(place)
    place.labels.join(a[-1], b[-2])
    sizes = place.shapes[0][:-2], place.shapes[1][:-2]
    around = broadcast(place.labels, [(a[:-2], sizes[0]), (b[:-2], sizes[1])], place.results[0][:-2])
    out = (*around, a[-2], b[-1])
    if len(place.inputs) > 2 and place.inputs[2]:
        out = broadcast(place.labels, [(out, place.results[0]), (place.inputs[2], place.shapes[2])], place.results[0])
    return [out]


def _combine(place: Place) -> Sequence[Axes]:
    pairs = [(axes, shape) for axes, shape in zip(place.inputs, place.shapes, strict=True) if axes]
    return [broadcast(place.labels, pairs, place.results[0])] if pairs else fix_all(place)


def _keep_first(place: Place) -> Sequence[Axes]:
    return [place.inputs[0]] * len(place.results)


def _normalize_channels(place: Place) -> Sequence[Axes]:
    x, channel = place.inputs[0], place.inputs[0][1]
    for other in place.inputs[1:]:
        channel = place.labels.join(channel, other[0])
    return [(x[0], channel, *x[2:])]


def _normalize_last(place: Place) -> Sequence[Axes]:
    x, rank = place.inputs[0], len(place.inputs[0])
    if place.attributes.get("axis", -1) % rank != rank - 1:
        return fix_all(place)
    last = x[-1]
    for other in place.inputs[1:]:
        if other:
            last = place.labels.join(last, other[0])
    return [(*x[:-1], last)]


def _pool(place: Place) -> Sequence[Axes]:
    x = place.inputs[0]
    place.labels.pin(*x[2:])
    return [(x[0], x[1], *fix(len(x) - 2))] * len(place.results)


def _soften(place: Place) -> Sequence[Axes]:
    # Of fewer entries, all others would become larger.
    x = place.inputs[0]
    axis = int(place.attributes.get("axis", -1)) % len(x)
    place.labels.pin(x[axis])
    return [(*x[:axis], None, *x[axis + 1 :])]


def _reduce(place: Place) -> Sequence[Axes]:
    x = place.inputs[0]
    axes = place.attributes.get("axes")
    if axes is None and len(place.inputs) > 1 and place.inputs[1]:
        axes = None if place.constants[1] is None else place.constants[1].tolist()
    if axes is None:
        return fix_all(place)
    gone = {axis % len(x) for axis in cast("list[int]", axes)}
    if place.attributes.get("keepdims", 1):
        return [tuple(None if axis in gone else ids for axis, ids in enumerate(x))]
    return [tuple(ids for axis, ids in enumerate(x) if axis not in gone)]


def _transpose(place: Place) -> Sequence[Axes]:
    x = place.inputs[0]
    order: Sequence[int] = place.attributes.get("perm", list(reversed(range(len(x)))))
    return [tuple(x[axis] for axis in order)]


def _concatenate(place: Place) -> Sequence[Axes]:
    labels, rank = place.labels, len(place.inputs[0])
    along = int(place.attributes["axis"]) % rank
    found: list[Ids | None] = []
    for axis in range(rank):
        parts = [axes[axis] for axes in place.inputs]
        if axis != along:
            joined = parts[0]
            for other in parts[1:]:
                joined = labels.join(joined, other)
        elif all(part is None for part in parts):
            joined = None
        else:
            whole: list[Ids] = []
            for part, shape in zip(parts, place.shapes, strict=True):
                if part is None:
                    part = labels.make(shape[along])
                    labels.pin(part)
                whole.append(part)
            joined = np.concatenate(whole)
        found.append(joined)
    return [tuple(found)]


def _gather(place: Place) -> Sequence[Axes]:
    x, axis = place.inputs[0], int(place.attributes.get("axis", 0)) % len(place.inputs[0])
    place.labels.pin(x[axis])
    place.labels.pin_tensor(place.inputs[1])
    return [(*x[:axis], *fix(len(place.shapes[1])), *x[axis + 1 :])]


def _slice(place: Place) -> Sequence[Axes]:
    x = place.inputs[0]
    axes = place.attributes.get("axes")
    if axes is None and len(place.inputs) > 3 and place.constants[3] is not None:
        axes = place.constants[3].tolist()
    if axes is None:
        return fix_all(place)
    cut = {axis % len(x) for axis in cast("list[int]", axes)}
    place.labels.pin(*(x[axis] for axis in cut))
    return [tuple(None if axis in cut else ids for axis, ids in enumerate(x))]


def _pad(place: Place) -> Sequence[Axes]:
    x, changed = place.inputs[0], [old != new for old, new in zip(place.shapes[0], place.results[0], strict=True)]
    place.labels.pin(*(ids for ids, is_padded in zip(x, changed, strict=True) if is_padded))
    return [tuple(None if is_padded else ids for ids, is_padded in zip(x, changed, strict=True))]


def _squeeze(place: Place) -> Sequence[Axes]:
    """Squeeze, unsqueeze, flatten, reshape: numbers keep their order."""
    x, shape, result = place.inputs[0], place.shapes[0], place.results[0]
    found: list[Ids | None] = []
    for old, new in _align(shape, result):
        found += _regroup(place.labels, [x[axis] for axis in old], [shape[axis] for axis in old], [result[axis] for axis in new])
    return [tuple(found)]


def _reshape(place: Place) -> Sequence[Axes]:
    if place.constants[1] is None:
        return fix_all(place)
    return _squeeze(place)


def _align(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Put axes of two shapes into the smallest groups that hold the same numbers."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = list[int](), list[int]()
        if i < len(old) and j < len(new) and old[i] == new[j]:
            groups.append(([i], [j]))
            i, j = i + 1, j + 1
            continue
        left = right = 1
        while not first or not second or left != right:
            if (left <= right or j >= len(new)) and i < len(old):
                first.append(i)
                left, i = left * old[i], i + 1
            elif j < len(new):
                second.append(j)
                right, j = right * new[j], j + 1
            else:
                break
        groups.append((first, second))
    return groups


def _regroup(labels: Labels, old: list[Ids | None], sizes: list[int], new: list[int]) -> list[Ids | None]:
    """Give the labels of new axes that hold the numbers of old ones."""
    labelled = [place for place, ids in enumerate(old) if ids is not None and sizes[place] > 1]
    if len(old) == len(new) == 1:
        return [old[0]]
    wide = [place for place, size in enumerate(new) if size > 1]
    if len(labelled) == 1 and math.prod(sizes) == math.prod(new):
        place = labelled[0]
        ids = old[place]
        assert ids is not None
        after = math.prod(sizes[place + 1 :])
        flat = np.tile(np.repeat(ids, after), math.prod(sizes[:place]))
        if len(wide) == 1:
            return [flat if index == wide[0] else None for index in range(len(new))]
        if len(wide) > 1 and math.prod(sizes) == len(ids):
            # One axis becomes several: what is cut is whole entries of the first, such as heads of attention.
            rows = flat.reshape(new[wide[0]], -1)
            return [labels.join_row(rows) if index == wide[0] else None for index in range(len(new))]
    labels.pin(*old)
    return [None] * len(new)


# Values that are computed one by one.
_SAME: Final[tuple[str, ...]] = (
    *("Identity", "Cast", "Dropout", "Clip", "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid"),
    *("HardSwish", "Mish", "Tanh", "Softplus", "Softsign", "Gelu", "Erf", "Sqrt", "Reciprocal", "Exp", "Log"),
    *("Neg", "Abs", "Sign", "Sin", "Cos", "Floor", "Ceil", "Round", "Not", "IsNaN"),
)
_COMBINED: Final[tuple[str, ...]] = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Sum", "Min", "Max", "PRelu", "Where"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or"),
)

RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_SAME, _keep_first),
    **dict.fromkeys(_COMBINED, _combine),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _soften),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"), _reduce),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), _squeeze),
    "Conv": _convolve,
    "ConvTranspose": _convolve_back,
    "Gemm": _multiply,
    "MatMul": _multiply,
    "BatchNormalization": _normalize_channels,
    "InstanceNormalization": _normalize_channels,
    "LayerNormalization": _normalize_last,
    "Transpose": _transpose,
    "Concat": _concatenate,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Shape": lambda place: [fix(1)],
}
