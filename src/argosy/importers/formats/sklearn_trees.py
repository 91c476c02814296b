"""Trees of scikit-learn: where they switch, and what skl2onnx does not keep of that."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.importers.formats.graph import ML_DOMAIN, ML_OPSET

__all__ = ["draw_edges", "end_at_infinity", "floor_thresholds", "widen_thresholds"]

_NUMBERS: Final = ("base_values", "class_weights", "nodes_hitrates", "nodes_values", "target_weights")
"""Attributes of an ensemble of trees that are of the type of its rows."""
_MAX_EDGES: Final = 64
"""Thresholds that are tried: enough to meet one that was rounded to the wrong side, few enough to run in milliseconds."""


@contextmanager
def floor_thresholds(estimator: Any) -> Generator[None]:
    """Let histogram boosting have thresholds that float32 holds, for the block: the converter rounds them to either side.

    They are float64. A float32 is at most such a number if and only if it is at most the next float32 below it.
    """
    changed: list[tuple[Any, NDArray[Any]]] = []
    try:
        for predictor in _find_predictors(estimator):
            changed.append((predictor, predictor.nodes))
            nodes = predictor.nodes.copy()
            exact = nodes["num_threshold"]
            with np.errstate(over="ignore"):
                rounded = exact.astype(np.float32)
            nodes["num_threshold"] = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
            predictor.nodes = nodes
        yield
    finally:
        for predictor, nodes in changed:
            predictor.nodes = nodes


@contextmanager
def end_at_infinity() -> Generator[None]:
    """Have skl2onnx end where a tree parts what is missing from all numbers, for the block.

    Such a threshold is infinite, and for rows in float64 it looks for a number between that and what comes next, for ever.
    """
    trees: Any = importlib.import_module("skl2onnx.common.tree_ensemble")
    find = trees.find_switch_point

    def find_finite(low: Any, high: Any) -> Any:
        return find(low, high) if np.isfinite([low, high]).all() else np.float64(low)

    trees.find_switch_point = find_finite
    try:
        yield
    finally:
        trees.find_switch_point = find


def widen_thresholds(model: Any, estimator: Any) -> None:
    """Give trees that take float64 their thresholds in float64: the converter leaves them in float32.

    Raises:
        ModelError: `export_failed`, they are not known: those of other trees than histogram boosting's are made for float32.
    """
    helper: Any = importlib.import_module("onnx.numpy_helper")
    narrow = [node for node in model.graph.node if any(attribute.name == "nodes_values" for attribute in node.attribute)]
    exact = [value for predictor in _find_predictors(estimator) for value in _list_values(predictor.nodes)]
    for opset in model.opset_import if narrow else ():
        # The first with thresholds in doubles; what older ones have is the same in it.
        opset.version = max(opset.version, ML_OPSET) if opset.domain == ML_DOMAIN else opset.version
    for node in narrow:
        floats = {attribute.name: attribute for attribute in node.attribute if attribute.name in _NUMBERS and attribute.floats}
        if len(narrow) != 1 or len(exact) != len(floats["nodes_values"].floats):
            raise ModelError(
                "export_failed", detail="skl2onnx writes the thresholds of its trees in float32, for rows in float64"
            )
        for name, attribute in floats.items():
            values = np.array(exact if name == "nodes_values" else list(attribute.floats), np.float64)
            node.attribute.remove(attribute)
            # The hit rates say nothing, and would have to be of one type with the rest.
            if name != "nodes_hitrates":
                added = node.attribute.add(name=f"{name}_as_tensor", type=attribute.TENSOR)
                added.t.CopyFrom(helper.from_array(values))


def _list_values(nodes: NDArray[Any]) -> list[float]:
    return np.where(nodes["is_leaf"] == 1, 0.0, nodes["num_threshold"]).tolist()


def draw_edges(estimator: Any, rows: NDArray[Any]) -> NDArray[Any] | None:
    """Give rows in which one feature is where a tree switches, or the next number of the rows' type below or above.

    None for what has no trees, or transforms the rows before.
    """
    pairs = sorted(set(_list_thresholds(estimator)))
    if rows.dtype.kind != "f" or not pairs:
        return None
    pairs = pairs[:: len(pairs) // _MAX_EDGES + 1]
    out = rows[np.arange(3 * len(pairs)) % len(rows)].copy()
    for index, (feature, threshold) in enumerate(pairs):
        value = rows.dtype.type(threshold)
        out[3 * index : 3 * index + 3, feature] = [
            np.nextafter(value, -np.inf, dtype=rows.dtype),
            value,
            np.nextafter(value, np.inf, dtype=rows.dtype),
        ]
    return out


def _find_predictors(estimator: Any) -> Iterator[Any]:
    """Give the trees of every histogram boosting in an estimator."""
    for iteration in getattr(estimator, "_predictors", ()):
        yield from iteration
    for part in _list_parts(estimator):
        yield from _find_predictors(part)


def _list_parts(estimator: Any) -> Iterator[Any]:
    for name in ("steps", "transformer_list", "transformers_"):
        for part in getattr(estimator, name, ()):
            yield part[1]
    # A list, or a matrix of one tree a class; a forest among them has a length, and would be taken apart.
    estimators: Any = getattr(estimator, "estimators_", ())
    yield from estimators.ravel().tolist() if isinstance(estimators, np.ndarray) else estimators


def _list_thresholds(estimator: Any) -> Iterator[tuple[int, float]]:
    if hasattr(estimator, "steps"):
        return
    if (tree := getattr(estimator, "tree_", None)) is not None:
        for feature, threshold in zip(tree.feature.tolist(), tree.threshold.tolist(), strict=True):
            if feature >= 0:
                yield feature, threshold
    for predictor in getattr(estimator, "_predictors", ()):
        for tree in predictor:
            inner = tree.nodes[tree.nodes["is_leaf"] == 0]
            yield from zip(inner["feature_idx"].tolist(), inner["num_threshold"].tolist(), strict=True)
    for part in _list_parts(estimator):
        # A forest over some of the features counts them anew.
        if not hasattr(estimator, "estimators_features_"):
            yield from _list_thresholds(part)
