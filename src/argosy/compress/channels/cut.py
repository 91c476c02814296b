"""A graph with fewer channels: those that must go together are found, ranked by the size of their weights, and removed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.channels.labels import Axes, Labels, fix
from argosy.compress.channels.rules import RULES, Place, fix_all

__all__ = ["Channels"]

onnx: Any = importlib.import_module("onnx")

_ROUND: Final = 8
"""Channels that are kept of a wide layer are a multiple of it, as kernels compute so many at a time."""
_STEPS: Final = 20
"""Halvings, to find how many channels leave so many weights."""
_HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Channels:
    """What of a graph can be removed together.

    Args:
        model: the parsed file; constants are initializers. It is not changed.
        shapes: of every tensor in it, from a run.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model, self._labels = model, Labels()
        self._arrays: dict[str, NDArray[Any]] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self._axes: dict[str, Axes] = {}
        for name, array in self._arrays.items():
            is_weight = array.dtype.kind == "f"
            self._axes[name] = tuple(self._labels.make(n) for n in array.shape) if is_weight else fix(array.ndim)
        for value in model.graph.input:
            if value.name not in self._axes:
                self._axes[value.name] = fix(len(shapes[value.name]))
        for node in model.graph.node:
            self._follow(node, shapes)
        for value in model.graph.output:
            self._labels.pin_tensor(self._axes[value.name])
        self._roots = {
            name: [None if ids is None else self._labels.find_all(ids) for ids in self._axes[name]] for name in self._arrays
        }
        self._groups = self._group()

    def choose(self, count: int) -> set[int]:
        """Choose the channels without which at most so many weights are left; those with the smallest ones go first.

        Of each layer the same part is kept, one channel at least: all that can be removed is chosen where that does not do.
        """
        sizes = self._measure()
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.count_left(self._pick(middle, sizes)) <= count else (low, middle)
        return self._pick(low, sizes)

    def cut(self, gone: set[int]) -> Any:
        """Give the graph without these channels."""
        model: Any = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            array = self._slice(tensor.name, gone)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        for node in model.graph.node:
            self._adjust(node, model, gone)
        del model.graph.value_info[:]
        return model

    def _follow(self, node: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        given = list(node.input)
        place = Place(
            self._labels,
            [self._axes[name] if name else () for name in given],
            [shapes[name] if name else () for name in given],
            [shapes[name] for name in node.output if name],
            {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
            [self._arrays.get(name) for name in given],
        )
        found = RULES.get(node.op_type, fix_all)(place)
        self._axes |= dict(zip([name for name in node.output if name], found, strict=True))

    def _group(self) -> list[list[int]]:
        """Put what can be removed into groups: the channels of layers that share one."""
        union = Labels()
        names: dict[int, int] = {}
        for axes in self._roots.values():
            for ids in axes:
                roots = [] if ids is None else list(dict.fromkeys(ids.tolist()))
                free = [root for root in roots if not self._labels.is_pinned(root)]
                for root in free:
                    if root not in names:
                        names[root] = int(union.make(1)[0])
                    union.join(np.array([names[free[0]]]), np.array([names[root]]))
        groups: dict[int, list[int]] = {}
        for root, name in names.items():
            groups.setdefault(union.find(name), []).append(root)
        return [group for group in groups.values() if len(group) > 1]

    def _measure(self) -> dict[int, float]:
        """Measure channels by their weights' squares, each layer's by its own mean."""
        heavy = {name for node in self._model.graph.node if node.op_type in _HEAVY for name in node.input}
        sizes: dict[int, float] = {}
        for name, array in self._arrays.items():
            if name not in heavy or array.ndim < 2:
                continue
            for axis, roots in enumerate(self._roots[name]):
                if roots is None:
                    continue
                others = tuple(other for other in range(array.ndim) if other != axis)
                squares = np.mean(np.square(array.astype(np.float64)), axis=others)
                squares /= max(float(squares.mean()), 1e-30)
                for root, square in zip(roots.tolist(), squares.tolist(), strict=True):
                    sizes[root] = sizes.get(root, 0.0) + square
        return sizes

    def _pick(self, part: float, sizes: Mapping[int, float]) -> set[int]:
        """The channels that are not among the largest of their group."""
        gone: set[int] = set()
        for group in self._groups:
            count = max(1, math.ceil(part * len(group)))
            if len(group) > _ROUND and count > _ROUND:
                count = count // _ROUND * _ROUND
            order = sorted(group, key=lambda root: -sizes.get(root, 0.0))
            gone |= set(order[count:])
        return gone

    def count_left(self, gone: set[int]) -> int:
        """Count the numbers in weights without these channels."""
        total = 0
        for name, array in self._arrays.items():
            if array.dtype.kind == "f":
                total += math.prod(int(kept.sum()) for kept in self._keep(name, gone))
        return total

    def _keep(self, name: str, gone: set[int]) -> list[NDArray[np.bool_]]:
        """Which entries of each axis of a constant stay."""
        lengths = self._arrays[name].shape
        absent = np.fromiter(gone, np.int64, len(gone))
        return [
            np.ones(length, bool) if roots is None else ~np.isin(roots, absent)
            for length, roots in zip(lengths, self._roots[name], strict=True)
        ]

    def _slice(self, name: str, gone: set[int]) -> NDArray[Any]:
        array = self._arrays[name]
        for axis, kept in enumerate(self._keep(name, gone)):
            if not kept.all():
                array = np.compress(kept, array, axis)
        return array

    def _adjust(self, node: Any, model: Any, gone: set[int]) -> None:
        """Bring what a node says of numbers of channels up to date."""
        if node.op_type == "Conv":
            for item in node.attribute:
                if item.name == "group" and item.i > 1 and item.i == self._arrays[node.input[1]].shape[0]:
                    item.i = int(self._keep(node.input[1], gone)[0].sum())
        elif node.op_type == "Reshape" and node.input[1] in self._arrays:
            shape = self._arrays[node.input[1]].copy()
            for axis, ids in enumerate(self._axes[node.output[0]]):
                if ids is not None and shape[axis] > 0:
                    shape[axis] = int((~np.isin(self._labels.find_all(ids), list(gone))).sum())
            if (shape != self._arrays[node.input[1]]).any():
                name = f"{node.output[0]}/shape"
                model.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
                node.input[1] = name
