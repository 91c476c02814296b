"""Rows that are measured after each epoch, and none of which is trained on: in memory, or from a loader or stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from argosy.frameworks.base import Batch, Framework
from argosy.frameworks.trees import Tree, join_rows
from argosy.train.measures import Measure
from argosy.train.objective import Objective

__all__ = ["Score", "Validation", "measure_rows"]


class Score(NamedTuple):
    """What rows came to."""

    loss: float | None
    metrics: dict[str, float]


class Validation(NamedTuple):
    """Where the rows come from, and how they are measured."""

    read: Callable[[], Iterator[Batch]]
    """Gives them in batches of any size, targets prepared."""

    def measure(self, framework: Framework, model: Any, objective: Objective, measures: tuple[Measure, ...]) -> Score:
        """Run the model as it would be served on all rows."""
        return measure_rows(framework, model, self.read(), objective, measures)


def measure_rows(
    framework: Framework, model: Any, batches: Iterator[Batch], objective: Objective, measures: tuple[Measure, ...]
) -> Score:
    """Give the mean loss over rows, and the metrics: means over rows, others of all outputs together."""
    losses, means = 0.0, dict.fromkeys((measure.name for measure in measures if measure.is_mean), 0.0)
    kept: list[tuple[Tree, Tree]] = []
    is_kept = any(not measure.is_mean for measure in measures)
    num_rows = 0
    for batch in batches:
        outputs = framework.predict(model, batch.inputs)
        rows = batch.num_rows
        if objective.criteria is not None:
            losses = _add(losses, rows, num_rows, objective.compute(outputs, batch.targets, batch.weights))
        for measure in measures:
            if measure.is_mean:
                value = measure.compute(outputs, batch.targets)
                means[measure.name] = _add(means[measure.name], rows, num_rows, value)
        if is_kept:
            kept.append((outputs, batch.targets))
        num_rows += rows
    metrics: dict[str, float] = {}
    whole = (join_rows([one for one, _ in kept]), _join(tuple(other for _, other in kept))) if kept else (None, None)
    for measure in measures:
        metrics[measure.name] = means[measure.name] if measure.is_mean else measure.compute(*whole)
    return Score(losses if objective.criteria is not None else None, metrics)


def _add(mean: float, rows: int, before: int, value: float) -> float:
    """Take rows of a mean value into the mean of those before; the only ones leave it as it is, bit for bit."""
    return value if before == 0 else mean + (value - mean) * rows / (before + rows)


def _join(trees: tuple[Tree, ...]) -> Tree:
    return None if trees[0] is None else join_rows(trees)
