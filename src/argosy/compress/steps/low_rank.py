"""Matrices as products of two thinner ones, by singular values. NumPy alone."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import LayerStep, Workshop, check_excluded, list_heavy, name_nodes, read_model, write_model
from argosy.errors import InputError

__all__ = ["LowRank"]


class LowRank(LayerStep, frozen=True, kw_only=True):
    """Each matrix of a MatMul or Gemm, cut to as many singular values as keep a part of its energy.

    A matrix of n x m becomes n x r and r x m, where that is fewer numbers; others stay. Trained networks have
    nearly full rank more often than not: without training afterwards little can be cut.

    Source: Denton et al. 2014, arXiv:1404.0736.
    """

    energy: float = 0.99
    """Part of the sum of the squared singular values that is kept, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.energy < 1.0:
            raise InputError("bad_option", option="low-rank.energy", got=self.energy, expected="above 0 and below 1")

    name: ClassVar[str] = "low-rank"

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        model = read_model(artifact, self.name)
        name_nodes(model)
        return list_heavy(model, ("MatMul", "Gemm"))

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_model(artifact, self.name)
        name_nodes(model)
        check_excluded(self.exclude, list_heavy(model, ("MatMul", "Gemm")), self.name)
        helper: Any = importlib.import_module("onnx.helper")
        arrays: Any = importlib.import_module("onnx.numpy_helper")
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        users = [name for node in model.graph.node for name in node.input]
        nodes: list[Any] = []
        num_cut = 0
        for node in model.graph.node:
            tensor = weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") and node.name not in self.exclude else None
            pair = None if tensor is None or not _is_plain(node, tensor) else self._cut(arrays.to_array(tensor), node)
            if tensor is None or pair is None:
                nodes.append(node)
                continue
            num_cut += 1
            names = [f"{node.name}/thin{index}" for index in range(2)]
            model.graph.initializer.extend(arrays.from_array(part, name) for part, name in zip(pair, names, strict=True))
            if users.count(tensor.name) == 1:
                model.graph.initializer.remove(tensor)
            inner = f"{node.name}/inner"
            nodes.append(helper.make_node("MatMul", [node.input[0], names[0]], [inner], name=f"{node.name}/first"))
            if node.op_type == "MatMul":
                nodes.append(helper.make_node("MatMul", [inner, names[1]], list(node.output), name=node.name))
            else:
                nodes.append(helper.make_node("Gemm", [inner, names[1], *node.input[2:]], list(node.output), name=node.name))
        if not num_cut:
            what = f"a matrix that fewer numbers describe to {self.energy:g} of its energy"
            raise InputError("nothing_to_compress", method=self.name, what=what)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return write_model(model, artifact, workshop)

    def _cut(self, matrix: NDArray[Any], node: Any) -> tuple[NDArray[Any], NDArray[Any]] | None:
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            matrix = matrix.T
        rows, columns = matrix.shape
        left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        kept = np.cumsum(values**2) / max(float(np.sum(values**2)), 1e-300)
        rank = int(np.searchsorted(kept, self.energy)) + 1
        if rank * (rows + columns) >= rows * columns:
            return None
        first, second = left[:, :rank] * values[:rank], right[:rank]
        return np.ascontiguousarray(first, matrix.dtype), np.ascontiguousarray(second, matrix.dtype)


def _is_plain(node: Any, tensor: Any) -> bool:
    """True for a matrix of floats that is multiplied as it is: no scale beside it, no transposed rows."""
    if len(tensor.dims) != 2 or tensor.data_type not in (1, 10, 11):  # FLOAT, FLOAT16, DOUBLE
        return False
    return all(
        a.name == "transB" or (a.name == "transA" and not a.i) or (a.name in ("alpha", "beta") and a.f == 1.0)
        for a in node.attribute
    )
