"""What compression saved in bytes and seconds, and whether rows stay apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.onnx import OnnxModel
from argosy.signature import Arrays

__all__ = ["BATCH_ROWS", "Cost", "Gain", "measure_batch_difference", "measure_cost"]

BATCH_ROWS: Final = 32
"""The larger of the two batch sizes that are measured, and that of the check for batch mates."""

_TIMED_ROUNDS: Final = 60
"""Runs of each model at each batch size, the models in turn, so that other work on the machine hits both."""

_TRIES: Final = 3
"""Of a measurement in which the second model is slower, which work elsewhere on the machine may have made it."""

_LEAST_SAVING: Final = 0.05
"""Part of the file that must be saved for it to be called smaller."""

_TIME_NOISE: Final = 0.1
"""Part by which two times must differ to be called different: medians of runs in turn move by less."""


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


@dataclass(frozen=True)
class Gain:
    """What became smaller or larger, faster or slower."""

    before: Cost
    after: Cost

    @property
    def gains(self) -> list[str]:
        """What is better, in words with the figures; nothing that is within the noise of a measurement."""
        return [text for is_better, text in self._judge() if is_better]

    @property
    def losses(self) -> list[str]:
        """What is worse, as `gains`."""
        return [text for is_better, text in self._judge() if not is_better]

    @property
    def is_one(self) -> bool:
        """The file is smaller; or it is no larger, and something is faster and nothing slower.

        A smaller file is a gain of its own, wherever it is kept, moved or loaded. How fast it is depends on the processor, and on
        what else ran while that was measured: it is told, and alone refuses nothing.
        """
        size = self.after.size_bytes / self.before.size_bytes
        return size < 1 - _LEAST_SAVING or (size <= 1 and bool(self.gains) and not self.losses)

    def describe(self) -> str:
        """Say all of it in one line."""
        return "; ".join([*self.gains, *self.losses]) or "neither smaller nor faster"

    def _judge(self) -> list[tuple[bool, str]]:
        before, after = self.before, self.after
        verdicts: list[tuple[bool, str]] = []
        size = after.size_bytes / before.size_bytes
        if size > 1 or size < 1 - _LEAST_SAVING:
            word = "larger" if size > 1 else "smaller"
            sizes = f"{before.size_bytes / 1e3:.1f} -> {after.size_bytes / 1e3:.1f} kB"
            verdicts.append((size < 1, f"the file is {abs(1 - size):.1%} {word} ({sizes})"))
        for what, old_s, new_s in (
            ("one row alone", before.latency_s, after.latency_s),
            (f"a row in a batch of {before.batch_rows}", before.batch_row_s, after.batch_row_s),
        ):
            ratio = new_s / old_s
            if abs(ratio - 1) > _TIME_NOISE:
                word = "slower" if ratio > 1 else "faster"
                times = f"{old_s * 1e6:.1f} -> {new_s * 1e6:.1f} us"
                verdicts.append((ratio < 1, f"{what} is {max(ratio, 1 / ratio):.2f} times {word} ({times})"))
        return verdicts


def measure_cost(before: tuple[OnnxModel, bytes], after: tuple[OnnxModel, bytes], inputs: Arrays) -> tuple[Cost, Cost]:
    """Measure size and speed of two models on the same rows.

    Args:
        before: a model and its file's content.
        after: the other one.
        inputs: by name; taken again from the start when there are fewer than a batch of rows.
    """
    models = (before[0], after[0])
    one, many = (_time_models(models, _take_rows(inputs, num_rows)) for num_rows in (1, BATCH_ROWS))
    sizes = (len(before[1]), len(after[1]))
    costs = [Cost(sizes[i], one[i], many[i] / BATCH_ROWS, BATCH_ROWS) for i in range(2)]
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
    rows = _take_rows(inputs, BATCH_ROWS)
    together, alone = model.run(rows), model.run_alone(rows)
    return max(_relative_difference(together[name], alone[name]) for name in model.output_names)


def _time_models(models: tuple[OnnxModel, OnnxModel], inputs: Arrays) -> list[float]:
    """Give the median of each; of several tries the one in which the second does best beside the first."""
    tries: list[list[float]] = []
    while len(tries) < _TRIES:
        tries.append(_time_in_turn(models, inputs))
        if tries[-1][1] <= tries[-1][0] * (1 + _TIME_NOISE):
            break
    return min(tries, key=lambda times: times[1] / times[0])


def _time_in_turn(models: Sequence[OnnxModel], inputs: Arrays) -> list[float]:
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(_TIMED_ROUNDS):
        for model, times in zip(models, seconds, strict=True):
            started_s = time.perf_counter()
            model.run(inputs)
            times.append(time.perf_counter() - started_s)
    return [float(np.median(times)) for times in seconds]


def _take_rows(inputs: Arrays, num_rows: int) -> Arrays:
    return {name: array[np.arange(num_rows) % len(array)] for name, array in inputs.items()}


def _relative_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if expected.dtype.kind not in "fiub":
        return float(np.any(got != expected))
    scale = max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(got.astype(np.float64) - expected))) / scale
