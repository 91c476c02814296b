"""Low-rank adapters merged into the matrices that they were trained beside. The card is `merge-lora.md`."""

from __future__ import annotations

import copy
import importlib
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model
from argosy.errors import InputError

__all__ = ["MergeLora", "has_adapters"]

Array = NDArray[Any]


class MergeLora(Step, frozen=True, kw_only=True):
    """Where x @ W and s * ((x @ A) @ B) are added, one product x @ (W + s * A @ B). Answers stay, but for rounding.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    name: ClassVar[str] = "merge-lora"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        graph = _Graph(read_model(artifact, self.name))
        with blame_library(self.name):
            count = graph.merge_all()
        if not count:
            what = "a sum of x @ W and s * ((x @ A) @ B) with constant matrices, as adapters of LoRA are"
            raise InputError("nothing_to_compress", method=self.name, what=what)
        return write_model(graph.model, artifact, workshop)


def has_adapters(model: Any) -> bool:
    """Say whether there is anything to merge in an ONNX file, as `read_model` gives it."""
    return _Graph(model).has_any


class _Product(NamedTuple):
    """x @ matrix, of one node."""

    node: Any
    x: str
    matrix: Array
    """As it is multiplied from the right."""
    bias: str
    """Of a Gemm; "" for none."""


class _Adapter(NamedTuple):
    """s * ((x @ A) @ B)."""

    x: str
    matrix: Array
    """s * A @ B"""


class _Graph:
    """A graph in which tensors are looked up by name."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._helper: Any = importlib.import_module("onnx.numpy_helper")
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._users: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users[name] = self._users.get(name, 0) + 1
        for value in model.graph.output:
            self._users[value.name] = self._users.get(value.name, 0) + 1

    @property
    def has_any(self) -> bool:
        """Whether there is an adapter beside a matrix."""
        return any(self._find(node) is not None for node in self.model.graph.node if node.op_type == "Add")

    def merge_all(self) -> int:
        """Merge what can be; returns how many adapters. One that is merged may stand beside another, so it begins anew."""
        count = 0
        found = True
        while found:
            found = any(self._merge(node) for node in self.model.graph.node if node.op_type == "Add")
            count += found
        self._remove_unused()
        return count

    def _merge(self, add: Any) -> bool:
        """Merge the adapter of a sum, if it is one."""
        found = self._find(add)
        if found is None:
            return False
        base, adapter, place = found
        self._replace(base, (base.matrix.astype(np.float64) + adapter.matrix).astype(base.matrix.dtype))
        self._bypass(add, add.input[place])
        return True

    def _find(self, add: Any) -> tuple[_Product, _Adapter, int] | None:
        """Find the product and the adapter of a sum, and at which of its inputs the product stands."""
        for place in (0, 1):
            adapter = self._read_adapter(add.input[1 - place])
            base = None if adapter is None else self._find_base(add.input[place], adapter.x)
            if adapter is not None and base is not None and base.matrix.shape == adapter.matrix.shape:
                return base, adapter, place
        return None

    def _read_adapter(self, name: str) -> _Adapter | None:
        """Read s * ((x @ A) @ B), with the scale at any of its places."""
        scale, second = self._strip_scale(name)
        last = self._read_product(second)
        if last is None or last.bias:
            return None
        inner, first = self._strip_scale(last.x)
        low = self._read_product(first)
        if low is None or low.bias or low.matrix.shape[1] != last.matrix.shape[0]:
            return None
        outer, x = self._strip_scale(low.x)
        product = low.matrix.astype(np.float64) @ last.matrix.astype(np.float64)
        return _Adapter(x, scale * inner * outer * product)

    def _strip_scale(self, name: str) -> tuple[float, str]:
        """Give the number that something alone is multiplied with, and what that is; passes what does nothing."""
        scale = 1.0
        while (node := self._makers.get(name)) is not None and self._users.get(name, 0) == 1:
            if node.op_type in ("Mul", "Div"):
                sides = [(self._read_number(node.input[1]), node.input[0])]
                if node.op_type == "Mul":
                    sides.append((self._read_number(node.input[0]), node.input[1]))
                number, other = next((side for side in sides if side[0] is not None), (None, ""))
                if number is None or not number:
                    break
                scale, name = (scale * number if node.op_type == "Mul" else scale / number), other
            elif node.op_type in ("Identity", "Dropout") and len(node.output) == 1:
                name = node.input[0]
            else:
                break
        return scale, name

    def _find_base(self, name: str, x: str) -> _Product | None:
        """Find the product of the same x under additions of constants, each used by nothing else."""
        while (node := self._makers.get(name)) is not None and self._users.get(name, 0) == 1:
            product = self._read_product(name)
            if product is not None:
                return product if product.x == x else None
            if node.op_type != "Add":
                return None
            constant = [place for place in (0, 1) if node.input[place] in self._constants]
            if constant:
                name = node.input[1 - constant[0]]
                continue
            # Another adapter of the same product.
            others = [place for place in (0, 1) if self._read_adapter(node.input[place]) is not None]
            if len(others) != 1:
                return None
            name = node.input[1 - others[0]]
        return None

    def _read_product(self, name: str) -> _Product | None:
        """Read x @ matrix, which is used by one node alone."""
        node = self._makers.get(name)
        if node is None or self._users.get(name, 0) != 1 or node.op_type not in ("MatMul", "Gemm"):
            return None
        attributes = {item.name: item for item in node.attribute}
        scales = [attributes[key].f for key in ("alpha", "beta") if key in attributes]
        if any(scale != 1.0 for scale in scales) or ("transA" in attributes and attributes["transA"].i):
            return None
        is_flipped = "transB" in attributes and attributes["transB"].i
        matrix = self._read_matrix(node.input[1])
        if matrix is None:
            return None
        return _Product(node, node.input[0], matrix.T if is_flipped else matrix, node.input[2] if len(node.input) > 2 else "")

    def _read_matrix(self, name: str) -> Array | None:
        node, is_flipped = self._makers.get(name), False
        if name not in self._constants and node is not None and node.op_type == "Transpose":
            name, is_flipped = node.input[0], True
        if name not in self._constants:
            return None
        array = self._helper.to_array(self._constants[name])
        return None if array.ndim != 2 or array.dtype.kind != "f" else array.T if is_flipped else array

    def _read_number(self, name: str) -> float | None:
        if name not in self._constants:
            return None
        array = self._helper.to_array(self._constants[name])
        return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind == "f" else None

    def _replace(self, base: _Product, matrix: Array) -> None:
        """Have a product use another matrix."""
        name = f"{base.node.output[0]}/merged"
        is_flipped = any(item.name == "transB" and item.i for item in base.node.attribute)
        tensor = self._helper.from_array(np.ascontiguousarray(matrix.T if is_flipped else matrix), name)
        if name in self._constants:
            self._constants[name].CopyFrom(tensor)
            return
        self.model.graph.initializer.append(tensor)
        self._constants[name] = self.model.graph.initializer[-1]
        base.node.input[1] = name
        self._users[name] = 1

    def _bypass(self, add: Any, name: str) -> None:
        """Take a sum out: what it added is in one of its sides now, which gets its name."""
        maker = self._makers[name]
        result = add.output[0]
        for place, output in enumerate(maker.output):
            if output == name:
                maker.output[place] = result
        self._makers[result] = maker
        del self._makers[name]
        for index, node in enumerate(self.model.graph.node):
            if node is add or (
                node.output and node.op_type == "Add" and list(node.output) == [result] and node.input == add.input
            ):
                del self.model.graph.node[index]
                break

    def _remove_unused(self) -> None:
        """Remove nodes and constants that nothing uses any more."""
        graph = self.model.graph
        wanted = {value.name for value in graph.output}
        kept: list[Any] = []
        for node in reversed(list(graph.node)):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input) | _list_captured(node)
        nodes: list[Any] = [copy.deepcopy(node) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(nodes)
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in wanted:
                del graph.initializer[index]


def _list_captured(node: Any) -> set[str]:
    """Names that the graphs inside a node take from around it, and their own."""
    found: set[str] = set()
    for item in node.attribute:
        for graph in ([item.g] if item.HasField("g") else []) + list(item.graphs):
            for inner in graph.node:
                found |= set(inner.input) | _list_captured(inner)
            found |= {value.name for value in graph.output}
    return found
