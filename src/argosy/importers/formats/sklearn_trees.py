"""Trees of scikit-learn: where they switch, and what skl2onnx does not keep of that."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError

__all__ = ["check_thresholds", "draw_edges", "floor_thresholds"]

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


def check_thresholds(graph: Any) -> None:
    """See that trees which take float64 have thresholds in float64; some converters leave them in float32.

    Raises:
        ModelError: `export_failed`.
    """
    for node in graph.node:
        if node.op_type.startswith("TreeEnsemble") and any(attribute.name == "nodes_values" for attribute in node.attribute):
            raise ModelError(
                "export_failed", detail="skl2onnx writes the thresholds of its trees in float32, for rows in float64"
            )


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
    yield from cast("list[Any]", np.ravel(getattr(estimator, "estimators_", [])).tolist())


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
