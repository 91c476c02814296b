"""Ensembles of trees with fewer of them, or with shallower ones: scikit-learn's, XGBoost's and LightGBM's, as ONNX has them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model
from argosy.errors import InputError

__all__ = ["FewerTrees", "ShallowTrees"]

_ENSEMBLES: Final = {"TreeEnsembleClassifier": "class", "TreeEnsembleRegressor": "target"}
_MAX_ROWS: Final = 512


def _list_ensembles(model: Any, step: str) -> list[Any]:
    """The operators that are ensembles of trees.

    Raises:
        InputError: `nothing_to_compress`.
    """
    found = [node for node in model.graph.node if node.op_type in _ENSEMBLES]
    if not found:
        raise InputError("nothing_to_compress", method=step, what="an ensemble of trees")
    return found


class _Ensemble:
    """The attributes of an ensemble as arrays: of its nodes, and of what its leaves give."""

    def __init__(self, node: Any) -> None:
        helper: Any = importlib.import_module("onnx.helper")
        self._node = node
        self.side = _ENSEMBLES[node.op_type]
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self.nodes = {
            name.removeprefix("nodes_"): np.asarray(value) for name, value in values.items() if name.startswith("nodes_")
        }
        names = ("treeids", "nodeids", "ids", "weights")
        self.leaves = {name: np.asarray(values[f"{self.side}_{name}"]) for name in names}

    @property
    def trees(self) -> list[int]:
        """Numbers of the trees, in order."""
        return sorted(set(self.nodes["treeids"].tolist()))

    def write(self) -> None:
        """Write the arrays back into the operator."""
        helper: Any = importlib.import_module("onnx.helper")
        changed = {f"nodes_{name}": array for name, array in self.nodes.items()}
        changed |= {f"{self.side}_{name}": array for name, array in self.leaves.items()}
        kept = [attribute for attribute in self._node.attribute if attribute.name not in changed]
        del self._node.attribute[:]
        self._node.attribute.extend(kept)
        self._node.attribute.extend(helper.make_attribute(name, array.tolist()) for name, array in changed.items() if array.size)


class FewerTrees(Step, frozen=True, kw_only=True):
    """The first trees of each ensemble. Boosting adds ever smaller corrections, so that the last trees matter least."""

    part: float = 0.5
    """Of the trees that is kept, in (0, 1)."""
    is_mean: bool = False
    """The trees vote, as a forest's do, instead of adding corrections: what is left is scaled up."""

    def __post_init__(self) -> None:
        if not 0.0 < self.part < 1.0:
            raise InputError("bad_option", option="fewer-trees.part", got=self.part, expected="above 0 and below 1")

    name: ClassVar[str] = "fewer-trees"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_model(artifact, self.name)
        num_cut = 0
        for node in _list_ensembles(model, self.name):
            ensemble = _Ensemble(node)
            trees = ensemble.trees
            # Boosting has a tree for each class in each round.
            round_size = max(1, len(set(ensemble.leaves["ids"].tolist())))
            count = max(round_size, int(len(trees) * self.part) // round_size * round_size)
            if count >= len(trees):
                continue
            num_cut += 1
            kept = set(trees[:count])
            ensemble.nodes = _pick(ensemble.nodes, np.isin(ensemble.nodes["treeids"], list(kept)))
            ensemble.leaves = _pick(ensemble.leaves, np.isin(ensemble.leaves["treeids"], list(kept)))
            if self.is_mean:
                ensemble.leaves["weights"] = ensemble.leaves["weights"] * (len(trees) / count)
            ensemble.write()
        if not num_cut:
            raise InputError("nothing_to_compress", method=self.name, what="an ensemble with more trees than that")
        return write_model(model, artifact, workshop)


class ShallowTrees(Step, frozen=True, kw_only=True):
    """Trees cut at a depth: what stood below a node is replaced by its mean, as calibration rows go there."""

    depth: int = 6
    """Decisions from the root to a leaf, at most."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError("bad_option", option="shallow-trees.depth", got=self.depth, expected="at least 1")

    name: ClassVar[str] = "shallow-trees"

    needs_calibration: ClassVar[bool] = True

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_model(artifact, self.name)
        nodes = _list_ensembles(model, self.name)
        with blame_library(self.name):
            features = _find_inputs(model, [node.input[0] for node in nodes], thin_rows(workshop.calibration, _MAX_ROWS))
        num_cut = 0
        for node in nodes:
            ensemble = _Ensemble(node)
            if _cut_ensemble(ensemble, features[node.input[0]], self.depth):
                num_cut += 1
                ensemble.write()
        if not num_cut:
            raise InputError("nothing_to_compress", method=self.name, what=f"a tree that is deeper than {self.depth}")
        return write_model(model, artifact, workshop)


def _pick(arrays: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[mask] if len(array) == len(mask) else array for name, array in arrays.items()}


def _find_inputs(model: Any, names: list[str], rows: Rows) -> dict[str, NDArray[Any]]:
    """Run rows up to the ensembles; returns what these get, by name, first axis rows."""
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    given = {info.name for info in model.graph.input}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inner = [name for name in dict.fromkeys(names) if name not in given]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = runtime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for row in rows:
        answers = dict(zip(inner, session.run(inner, row), strict=True)) if inner else {}
        for name in found:
            found[name].append(answers[name] if name in answers else row[name])
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


_COMPARE: Final = {
    b"BRANCH_LEQ": np.less_equal,
    b"BRANCH_LT": np.less,
    b"BRANCH_GTE": np.greater_equal,
    b"BRANCH_GT": np.greater,
    b"BRANCH_EQ": np.equal,
    b"BRANCH_NEQ": np.not_equal,
}


def _cut_ensemble(ensemble: _Ensemble, features: NDArray[Any], depth: int) -> bool:
    """Cut every tree; returns whether one was deeper."""
    nodes = ensemble.nodes
    place = {pair: index for index, pair in enumerate(zip(nodes["treeids"].tolist(), nodes["nodeids"].tolist(), strict=True))}
    outputs: dict[tuple[int, int], dict[int, float]] = {}
    leaves = ensemble.leaves
    for tree, node, target, weight in zip(
        *(leaves[name].tolist() for name in ("treeids", "nodeids", "ids", "weights")), strict=True
    ):
        outputs.setdefault((tree, node), {})[target] = weight
    children = set(zip(nodes["treeids"].tolist(), nodes["truenodeids"].tolist(), strict=True))
    children |= set(zip(nodes["treeids"].tolist(), nodes["falsenodeids"].tolist(), strict=True))
    modes: list[bytes] = nodes["modes"].tolist()
    inner = {key for key, index in place.items() if modes[index] != b"LEAF"}
    roots = [key for key in place if key not in children or key[1] == 0]
    kept: set[tuple[int, int]] = set()
    merged: dict[tuple[int, int], dict[int, float]] = {}
    was_cut = False
    for root in dict.fromkeys(roots):
        stack = [(root, np.arange(len(features)), 0)]
        while stack:
            key, rows, level = stack.pop()
            kept.add(key)
            if key not in inner:
                merged[key] = outputs.get(key, {})
            elif level == depth:
                was_cut = True
                merged[key] = _merge(key, rows, features, ensemble, place, outputs)[0]
            else:
                yes, no, goes = _decide(key, rows, features, ensemble, place)
                stack += [(yes, rows[goes], level + 1), (no, rows[~goes], level + 1)]
    if was_cut:
        _rebuild(ensemble, place, kept, merged)
    return was_cut


def _decide(
    key: tuple[int, int], rows: NDArray[Any], features: NDArray[Any], ensemble: _Ensemble, place: Mapping[tuple[int, int], int]
) -> tuple[tuple[int, int], tuple[int, int], NDArray[Any]]:
    nodes, index = ensemble.nodes, place[key]
    values = features[rows, nodes["featureids"][index]].astype(np.float32)
    goes = _COMPARE[nodes["modes"][index]](values, np.float32(nodes["values"][index]))
    if "missing_value_tracks_true" in nodes and nodes["missing_value_tracks_true"].size:
        goes = goes | (np.isnan(values) & bool(nodes["missing_value_tracks_true"][index]))
    return (key[0], int(nodes["truenodeids"][index])), (key[0], int(nodes["falsenodeids"][index])), np.asarray(goes, np.bool_)


def _merge(
    key: tuple[int, int],
    rows: NDArray[Any],
    features: NDArray[Any],
    ensemble: _Ensemble,
    place: Mapping[tuple[int, int], int],
    outputs: Mapping[tuple[int, int], dict[int, float]],
) -> tuple[dict[int, float], float]:
    """Give the mean of the leaves below a node, weighted by how many rows reach each, and by a little where none does."""
    total, weight_of_all = dict[int, float](), 0.0
    stack = [(key, rows)]
    while stack:
        current, there = stack.pop()
        if ensemble.nodes["modes"][place[current]] == b"LEAF":
            weight = len(there) + 1e-3
            weight_of_all += weight
            for target, value in outputs.get(current, {}).items():
                total[target] = total.get(target, 0.0) + weight * value
        else:
            yes, no, goes = _decide(current, there, features, ensemble, place)
            stack += [(yes, there[goes]), (no, there[~goes])]
    return {target: value / weight_of_all for target, value in total.items()}, weight_of_all


def _rebuild(
    ensemble: _Ensemble,
    place: Mapping[tuple[int, int], int],
    kept: set[tuple[int, int]],
    merged: Mapping[tuple[int, int], dict[int, float]],
) -> None:
    """Keep some nodes, and make leaves of those that were merged."""
    nodes = ensemble.nodes
    nodes["modes"] = nodes["modes"].astype("S11")
    for key in merged:
        index = place[key]
        nodes["modes"][index] = b"LEAF"
        for name in ("truenodeids", "falsenodeids", "featureids"):
            nodes[name][index] = 0
        nodes["values"][index] = 0.0
    mask = np.array([key in kept for key in place])
    ensemble.nodes = _pick(nodes, mask)
    flat = [(tree, node, target, value) for (tree, node), targets in sorted(merged.items()) for target, value in targets.items()]
    columns = list(zip(*flat, strict=True))
    types = {name: array.dtype for name, array in ensemble.leaves.items()}
    ensemble.leaves = {
        name: np.array(columns[at], types[name]) for at, name in enumerate(("treeids", "nodeids", "ids", "weights"))
    }
