"""Ensembles of decision trees as ONNX, whoever grew them: exact splits, missing values and categories included."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.importers.formats.graph import Graph, Output
from argosy.signature import Arrays

__all__ = ["CLASSIFYING", "INPUT", "Ensemble", "Tree", "label_rows", "write_ensemble"]

INPUT: Final = "input"

CLASSIFYING: Final = ("binary", "softmax", "one_vs_all")
"""Links whose answers are a label and one probability for each class."""

_LEAF: Final = "LEAF"
_EQUAL: Final = "BRANCH_EQ"
_NO_MEMBER: Final = float("inf")
"""Equal to no category: the split on an empty set."""
_LARGEST_ZERO: Final = 1e-35
"""What LightGBM takes for zero."""


class _Node(NamedTuple):
    mode: str
    feature: int = 0
    value: float = 0.0
    true_child: int = 0
    false_child: int = 0
    is_missing_true: bool = False


class Tree:
    """One tree; its nodes are known by the framework's numbers, the root's is 0."""

    def __init__(self, target: int) -> None:
        """Begin a tree whose leaves add to the sum of `target`."""
        self.target = target
        self.nodes: dict[int, _Node] = {}
        self.leaves: dict[int, float] = {}

    def add_leaf(self, number: int, value: float) -> None:
        """Make a node a leaf."""
        self.nodes[number] = _Node(_LEAF)
        self.leaves[number] = value

    def add_split(self, number: int, mode: str, feature: int, value: float, children: tuple[int, int], missing: int) -> None:
        """Make a node a split by a threshold.

        Args:
            number: of the node.
            mode: BRANCH_LT or BRANCH_LEQ: the feature against the value.
            feature: its number.
            value: the threshold.
            children: where it holds, and where it does not.
            missing: the child of a NaN, one of the two.
        """
        self.nodes[number] = _Node(mode, feature, value, *children, missing == children[0])

    def add_set_split(self, number: int, feature: int, members: Sequence[int], children: tuple[int, int], missing: int) -> None:
        """Make a node a split by membership; the first child is that of the members."""
        inside, outside = children
        values = [float(member) for member in members] or [_NO_MEMBER]
        # One comparison for each member, all with one child: so ONNX Runtime takes sets. The additional nodes have numbers
        # below zero.
        lowest = min([0, *self.nodes])
        numbers = [number, *(lowest - index for index in range(1, len(values))), outside]
        for index, value in enumerate(values):
            self.nodes[numbers[index]] = _Node(_EQUAL, feature, value, inside, numbers[index + 1], missing == inside)


class Ensemble(NamedTuple):
    """All trees of a model. A row's sums are `base` plus the leaves that it falls into, times `scale`."""

    trees: list[Tree]
    base: list[float]
    """One number for each sum."""
    num_features: int
    link: str
    """How the sums become answers: one of `CLASSIFYING`; or identity, exp, sigmoid, step, signed_square, log1p_exp."""
    scale: float = 1.0
    categorical: tuple[int, ...] = ()
    """Features that are categories: a number with a fraction counts as the integer below."""
    cuts_to_zero: bool = False
    """A category with a fraction counts as the integer next to it on the way to zero instead."""
    is_zero_missing: bool = False
    """A zero is a missing value, in every feature."""
    missing: float = math.nan
    """A number that is a missing value, in every feature, beside NaN."""

    @property
    def num_classes(self) -> int:
        """How many there are, if the link is a classifying one."""
        return 2 if self.link == "binary" else len(self.base)


def label_rows(ensemble: Ensemble, answers: NDArray[Any], classes: NDArray[Any] | None) -> Arrays:
    """Give a framework's own answers the names and shapes that are served.

    Args:
        ensemble: what answered.
        answers: of a classifier the probabilities, those of two classes the second's alone.
        classes: the labels; None stands for 0, 1, 2 ...
    """
    if ensemble.link not in CLASSIFYING:
        return {"output": answers.astype(np.float32)}
    both = np.stack([1 - answers, answers], axis=1) if ensemble.link == "binary" else answers
    label = np.argmax(both, axis=1)
    return {"label": label if classes is None else classes[label], "probabilities": both.astype(np.float32)}


def write_ensemble(ensemble: Ensemble, path: Path, *, dtype: np.dtype[Any], classes: NDArray[Any] | None = None) -> None:
    """Write an ensemble as an ONNX file: `input` to `output`, or to `label` and `probabilities`.

    Args:
        ensemble: the model.
        path: of the file.
        dtype: of the input, float32 or float64; thresholds are rounded so that numbers of that type fall as in the framework.
        classes: the labels; None stands for 0, 1, 2 ...

    Raises:
        ModelError: `export_failed`, it has no trees.
    """
    if not ensemble.trees:
        raise ModelError("export_failed", detail="the model has no trees")
    graph = Graph()
    sums = graph.add("TreeEnsembleRegressor", _add_features(graph, ensemble, dtype), is_ml=True, **_flatten(ensemble, dtype))
    if ensemble.scale != 1.0:
        sums = graph.add("Mul", sums, graph.constant(np.array(ensemble.scale, np.float32)))
    num_sums = len(ensemble.base)
    if ensemble.link in CLASSIFYING:
        probabilities = _add_probabilities(graph, ensemble.link, sums)
        label = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
        if classes is not None:
            label = graph.add("Gather", graph.constant(classes), label)
        label_dtype = np.dtype(np.int64) if classes is None else classes.dtype
        outputs = {
            "label": Output(label, label_dtype, ()),
            "probabilities": Output(probabilities, np.dtype(np.float32), (ensemble.num_classes,)),
        }
    else:
        value = _LINKS[ensemble.link](graph, sums)
        outputs = {"output": Output(value, np.dtype(np.float32), (num_sums,) if num_sums > 1 else ())}
    graph.save(path, input_name=INPUT, dtype=dtype, width=ensemble.num_features, outputs=outputs)


def _add_features(graph: Graph, ensemble: Ensemble, dtype: np.dtype[Any]) -> str:
    """Add what happens to the features before the first split."""
    features = INPUT
    if not math.isnan(ensemble.missing):
        is_missing = graph.add("Equal", features, graph.constant(np.full(1, ensemble.missing, dtype)))
        features = graph.add("Where", is_missing, graph.constant(np.full(1, np.nan, dtype)), features)
    if ensemble.categorical:
        is_category = np.isin(np.arange(ensemble.num_features), ensemble.categorical)
        whole = graph.add("Floor", graph.add("Abs", features) if ensemble.cuts_to_zero else features)
        if ensemble.cuts_to_zero:
            whole = graph.add("Mul", graph.add("Sign", features), whole)
        features = graph.add("Where", graph.constant(is_category), whole, features)
    if ensemble.is_zero_missing:
        is_zero = graph.add("LessOrEqual", graph.add("Abs", features), graph.constant(np.full(1, _LARGEST_ZERO, dtype)))
        features = graph.add("Where", is_zero, graph.constant(np.full(1, np.nan, dtype)), features)
    return features


def _flatten(ensemble: Ensemble, dtype: np.dtype[Any]) -> dict[str, object]:
    """Give the trees as the attributes of ONNX's operator."""
    numbers = [{number: place for place, number in enumerate(sorted(tree.nodes, key=bool))} for tree in ensemble.trees]
    rows = [
        (index, numbers[index][number], node, numbers[index].get(node.true_child, 0), numbers[index].get(node.false_child, 0))
        for index, tree in enumerate(ensemble.trees)
        for number, node in sorted(tree.nodes.items(), key=lambda item: bool(item[0]))
    ]
    leaves = [
        (index, numbers[index][number], tree.target, value)
        for index, tree in enumerate(ensemble.trees)
        for number, value in tree.leaves.items()
    ]
    thresholds = _round_thresholds([node for _, _, node, _, _ in rows], dtype)
    weights = np.array([leaf[3] for leaf in leaves], dtype)
    base = np.array(ensemble.base, dtype)
    return {
        "nodes_treeids": [row[0] for row in rows],
        "nodes_nodeids": [row[1] for row in rows],
        "nodes_featureids": [node.feature for _, _, node, _, _ in rows],
        "nodes_modes": [node.mode for _, _, node, _, _ in rows],
        "nodes_truenodeids": [row[3] for row in rows],
        "nodes_falsenodeids": [row[4] for row in rows],
        "nodes_missing_value_tracks_true": [int(node.is_missing_true) for _, _, node, _, _ in rows],
        "target_treeids": [leaf[0] for leaf in leaves],
        "target_nodeids": [leaf[1] for leaf in leaves],
        "target_ids": [leaf[2] for leaf in leaves],
        "n_targets": len(base),
        **_name_values({"nodes_values": thresholds, "target_weights": weights, "base_values": base}),
    }


def _name_values(values: dict[str, NDArray[Any]]) -> dict[str, object]:
    """Give numbers as the attributes that hold their type."""
    if next(iter(values.values())).dtype == np.float32:
        return {name: array.tolist() for name, array in values.items()}
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    return {f"{name}_as_tensor": numpy_helper.from_array(array, name) for name, array in values.items()}


def _round_thresholds(nodes: Sequence[_Node], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round thresholds so that every number of the type falls to the side that it falls to in doubles."""
    exact = np.array([node.value for node in nodes], np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    is_at_most = np.array([node.mode == "BRANCH_LEQ" for node in nodes])
    too_high, too_low = is_at_most & (rounded > exact), ~is_at_most & (rounded < exact)
    rounded[too_high] = np.nextafter(rounded[too_high], dtype.type(-np.inf))
    rounded[too_low] = np.nextafter(rounded[too_low], dtype.type(np.inf))
    return rounded


def _add_probabilities(graph: Graph, link: str, sums: str) -> str:
    if link == "softmax":
        return graph.add("Softmax", sums, axis=1)
    second = graph.add("Sigmoid", sums)
    if link == "one_vs_all":
        return second
    return graph.add("Concat", graph.add("Sub", graph.constant(np.array(1, np.float32)), second), second, axis=1)


def _add_step(graph: Graph, sums: str) -> str:
    return graph.add("Cast", graph.add("Greater", sums, graph.constant(np.array(0, np.float32))), to=1)


_LINKS: Final[dict[str, Callable[[Graph, str], str]]] = {
    "identity": lambda graph, sums: graph.add("Identity", sums),
    "exp": lambda graph, sums: graph.add("Exp", sums),
    "sigmoid": lambda graph, sums: graph.add("Sigmoid", sums),
    "log1p_exp": lambda graph, sums: graph.add("Softplus", sums),
    "signed_square": lambda graph, sums: graph.add("Mul", sums, graph.add("Abs", sums)),
    "step": _add_step,
}
