"""What compression is judged by: what it kept of the accuracy, and what it saved in bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.onnx import OnnxModel
from argosy.signature import Arrays
from argosy.store.golden import Golden
from argosy.train.losses import get_metric, prepare_targets

__all__ = ["Cost", "Guard", "Score", "measure_batch_difference", "measure_cost", "score_evaluation", "score_golden"]

_BATCH_ROWS: Final = 32
"""The larger of the two batch sizes that are measured, and that of the check for batch mates."""

_TIMED_ROUNDS: Final = 60
"""Runs of each model at each batch size, the models in turn, so that other work on the machine hits both."""


@dataclass(frozen=True)
class Guard:
    """How much compression may lose."""

    metric: str = "accuracy"
    """One of `train.losses.METRICS`."""
    max_loss: float = 0.01
    """Largest fall of the metric (rise, where lower is better). One in a hundred rows is seldom missed."""

    def __post_init__(self) -> None:
        get_metric(self.metric)
        if not 0.0 <= self.max_loss < float("inf"):
            raise InputError("bad_option", option="guard.max_loss", got=self.max_loss, expected="a number, at least 0")


@dataclass(frozen=True)
class Score:
    """The guard's metric before and after."""

    metric: str
    """The guard's; `agreement` or `relative_error` when there were no rows to evaluate it on."""
    before: float
    after: float
    loss: float
    """How much worse it got, by the metric's own sense of better; negative when it got better."""
    basis: str
    """What it was measured on: `evaluation` rows with targets, or the parent's `golden` examples."""
    num_rows: int


@dataclass(frozen=True)
class Cost:
    """What a model costs to keep and to run."""

    size_bytes: int
    """Of the ONNX file."""
    latency_s: float
    """Of one row alone: median on one thread of ONNX Runtime."""
    batch_row_s: float
    """Of one row in a batch of `batch_rows`: the batch's median, divided by its rows."""
    batch_rows: int


def score_evaluation(models: tuple[OnnxModel, OnnxModel], guard: Guard, inputs: Arrays, targets: object) -> Score:
    """Measure a guard's metric before and after compression on rows with known targets.

    Args:
        models: the parent and the compressed one; their first output is judged.
        guard: names the metric.
        inputs: by name, first axis rows.
        targets: one a row; class numbers where the metric is accuracy and the model has several classes.

    Raises:
        InputError: `bad_data`, the targets do not fit the model.
    """
    given: NDArray[Any] = np.asarray(targets)
    outputs = [_run_in_batches(model, inputs) for model in models]
    if given.ndim == 0 or len(given) != len(outputs[0]):
        raise InputError("bad_data", detail=f"evaluation has {len(outputs[0])} rows, its targets have shape {given.shape}")
    has_classes = guard.metric == "accuracy" and given.ndim == 1 and outputs[0].shape[1:] > (1,)
    prepared = prepare_targets("cross_entropy" if has_classes else "mse", given, outputs[0].shape)
    metric = get_metric(guard.metric)
    before, after = (metric.compute(output, prepared) for output in outputs)
    loss = before - after if metric.is_higher_better else after - before
    return Score(guard.metric, before, after, loss, "evaluation", len(given))


def score_golden(after: OnnxModel, guard: Guard, golden: Golden) -> Score:
    """Hold a compressed model's answers against its parent's golden examples, where there is nothing better.

    Where the guard's metric is accuracy, by the part of rows that get the same class; else by the largest
    difference, relative to the parent's largest answer. Few examples make it coarse: 1 of 8 is 0.125.

    Args:
        after: the compressed model.
        guard: names the metric.
        golden: the parent's.
    """
    name = after.output_names[0]
    expected, got = golden.outputs[name], after.run_alone(golden.inputs)[name]
    if guard.metric == "accuracy":
        pair = (expected > 0, got > 0) if expected.shape[1:] in {(), (1,)} else (expected.argmax(-1), got.argmax(-1))
        agreement = float(np.mean(np.equal(*pair)))
        return Score("agreement", 1.0, agreement, 1.0 - agreement, "golden", len(expected))
    error = _relative_difference(got, expected)
    return Score("relative_error", 0.0, error, error, "golden", len(expected))


def measure_cost(before: tuple[OnnxModel, bytes], after: tuple[OnnxModel, bytes], inputs: Arrays) -> tuple[Cost, Cost]:
    """Measure size and speed of two models on the same rows.

    Args:
        before: a model and its file's content.
        after: the other one.
        inputs: by name; taken again from the start when there are fewer than a batch of rows.
    """
    models = (before[0], after[0])
    one = _time_models(models, _take_rows(inputs, 1))
    many = _time_models(models, _take_rows(inputs, _BATCH_ROWS))
    sizes = (len(before[1]), len(after[1]))
    costs = [Cost(sizes[i], one[i], many[i] / _BATCH_ROWS, _BATCH_ROWS) for i in range(2)]
    return costs[0], costs[1]


def measure_batch_difference(model: OnnxModel, inputs: Arrays) -> float:
    """Give how far a row's answer depends on its batch mates.

    Args:
        model: to run.
        inputs: real rows by name.

    Returns:
        The largest difference between rows alone and in a batch of 32, relative to the largest answer.
        0 or rounding (below 1e-5) for a static graph; scales computed from the batch show as 1e-2 and more.
    """
    rows = _take_rows(inputs, _BATCH_ROWS)
    together, alone = model.run(rows), model.run_alone(rows)
    return max(_relative_difference(together[name], alone[name]) for name in model.output_names)


def _time_models(models: Sequence[OnnxModel], inputs: Arrays) -> list[float]:
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(_TIMED_ROUNDS):
        for model, times in zip(models, seconds, strict=True):
            started_s = time.perf_counter()
            model.run(inputs)
            times.append(time.perf_counter() - started_s)
    return [float(np.median(times)) for times in seconds]


def _take_rows(inputs: Arrays, num_rows: int) -> Arrays:
    return {name: array[np.arange(num_rows) % len(array)] for name, array in inputs.items()}


def _run_in_batches(model: OnnxModel, inputs: Arrays) -> NDArray[Any]:
    """Give the first output for all rows."""
    num_rows = len(next(iter(inputs.values())))
    starts = range(0, num_rows, _BATCH_ROWS)
    batches = [{name: array[start : start + _BATCH_ROWS] for name, array in inputs.items()} for start in starts]
    return np.concatenate([model.run(batch)[model.output_names[0]] for batch in batches])


def _relative_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    scale = max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(got.astype(np.float64) - expected))) / scale
