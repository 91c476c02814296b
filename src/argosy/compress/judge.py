"""The accuracy guard: how far a compressed model's answers may be from right ones, or from its parent's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.compress.kind import Meaning
from argosy.compress.measure import BATCH_ROWS
from argosy.datatypes import is_float
from argosy.errors import InputError, list_choices
from argosy.frameworks.onnx import OnnxModel
from argosy.signature import Arrays
from argosy.train.losses import get_metric, prepare_targets

__all__ = ["Evidence", "Guard", "Score", "judge_outputs", "run_in_batches"]

Array = NDArray[Any]

_METRICS: Final = ("accuracy", "fidelity", "mae", "mse", "r2")

_CONSTANT: Final = 1e-10
"""Variance beside the mean square, below which values count as one value: rounding of float32 gives 1e-14."""

_SUM_TOLERANCE: Final = 1e-3
"""How far probabilities may be from a sum of 1, in half precision."""


@dataclass(frozen=True)
class Guard:
    """How much compression may lose."""

    metric: str | None = None
    """`accuracy`, `r2` (the part of the variance that is explained), `mae`, `mse`, or `fidelity`, which is `r2` with the
    original's answers for targets. None: what the version was trained for, see `judge_outputs`."""
    max_loss: float = 0.01
    """Largest fall of the metric (rise, where lower is better). One in a hundred rows is seldom missed."""

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric not in _METRICS:
            raise InputError("unknown_choice", kind="metric", got=self.metric, known=list_choices(_METRICS))
        if not 0.0 <= self.max_loss < float("inf"):
            raise InputError("bad_option", option="guard.max_loss", got=self.max_loss, expected="a number, at least 0")


@dataclass(frozen=True)
class Score:
    """The guard's metric before and after."""

    metric: str
    """`agreement` is accuracy with the original's answers for targets, `fidelity` is `r2` with them."""
    before: float
    after: float
    loss: float
    """How much worse it got, by the metric's own sense of better; negative when it got better."""
    basis: str
    """What it was measured on: `evaluation` rows, or the parent's `golden` examples."""
    num_rows: int
    output: str = ""
    """Of several output tensors the one that lost most."""
    reason: str = ""
    """Why this metric, in words."""


class Evidence(NamedTuple):
    """Rows, with the answers of both models to them."""

    before: Arrays
    """The original's, by output name in the model's order."""
    after: Arrays
    targets: Arrays
    """By output name; empty where none are known."""
    basis: str


class _Choice(NamedTuple):
    """How one output is judged."""

    metric: str
    targets: Array | None
    """None: the original's answers stand for them."""
    meaning: Meaning
    reason: str


def judge_outputs(evidence: Evidence, meaning: Meaning, guard: Guard) -> Score:
    """Hold a compressed model's answers against the targets, or against the original's answers where there are none.

    - A version trained for classes, or for yes and no, is judged by accuracy, one trained for values by `r2`.
    - Where neither the lineage nor the guard says what the outputs are, targets do: whole numbers for the classes of
      several columns, fractions for values. Without targets they are judged by fidelity.
    - Of values, each entry of each axis is judged by itself (each column of a table), by its own spread: the one that fell
      most counts. Probabilities, which sum to 1, have one spread in common.
    - Every output is judged, and the one that lost most counts. Lineage and guard speak of the first, or of those with targets.

    Args:
        evidence: answers and targets.
        meaning: of the version's first output.
        guard: names a metric, or none.

    Raises:
        InputError: `bad_data`, the targets do not fit the model; `bad_option`, the metric does not.
    """
    scores: list[Score] = []
    for index, name in enumerate(evidence.before):
        is_meant = name in evidence.targets if evidence.targets else index == 0
        choice = _choose(
            evidence.before[name],
            evidence.targets.get(name),
            meaning if index == 0 else Meaning("unknown", "no lineage speaks of this output"),
            guard.metric if is_meant else None,
        )
        scores.append(_score(name, choice, evidence))
    return max(scores, key=lambda score: math.inf if math.isnan(score.loss) else score.loss)


def run_in_batches(model: OnnxModel, inputs: Arrays) -> Arrays:
    """Answer all rows, a bounded number at a time."""
    num_rows = len(next(iter(inputs.values())))
    starts = range(0, num_rows, BATCH_ROWS)
    answers = [model.run({name: array[start : start + BATCH_ROWS] for name, array in inputs.items()}) for start in starts]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in model.output_names}


def _choose(outputs: Array, targets: Array | None, meaning: Meaning, metric: str | None) -> _Choice:
    """Find how an output is judged."""
    if not is_float(outputs.dtype):
        return _Choice("accuracy", targets, Meaning("labels", meaning.source), "its answers are no fractions")
    if metric is None:
        metric = {"classes": "accuracy", "yes_no": "accuracy", "values": "r2"}.get(meaning.kind)
        reason = meaning.source
    else:
        reason = "the guard names it"
    if metric is None and targets is not None:
        metric, reason = _choose_by_targets(outputs, targets), "the targets are such"
    if metric is None:
        return _Choice("fidelity", None, meaning, f"what the outputs are is not known: {meaning.source}")
    if metric == "accuracy" and meaning.kind not in ("classes", "yes_no"):
        if meaning.kind == "values" or outputs.ndim < 2 or outputs.shape[-1] == 1:
            got = f"{metric}, while {meaning.source}" if meaning.kind == "values" else f"{metric} of a single number"
            raise InputError("bad_option", option="guard.metric", got=got, expected="r2, mae, mse or fidelity")
        meaning = Meaning("classes", meaning.source)
    if metric in ("fidelity", "r2") and (targets is None or metric == "fidelity"):
        return _Choice("fidelity", None, meaning, reason)
    return _Choice(metric, targets, meaning, reason)


def _choose_by_targets(outputs: Array, targets: Array) -> str | None:
    if targets.dtype.kind in "iu" and targets.shape == outputs.shape[:-1] and outputs.shape[-1] > 1:
        return "accuracy"
    return "r2" if targets.dtype.kind == "f" else None


def _score(name: str, choice: _Choice, evidence: Evidence) -> Score:
    before, after = evidence.before[name], evidence.after[name]
    if before.shape != after.shape:
        raise InputError("bad_data", detail=f"output {name!r} has shape {before.shape}, when compressed {after.shape}")
    targets = choice.targets
    if targets is not None and (targets.ndim == 0 or len(targets) != len(before)):
        raise InputError("bad_data", detail=f"evaluation has {len(before)} rows, its targets have shape {targets.shape}")
    metric, reason = choice.metric, choice.reason
    if metric == "accuracy" and targets is None and is_float(before.dtype) and _is_one_answer(before, choice.meaning):
        metric, reason = "fidelity", f"all {len(before)} rows get one answer, with which a ruined model agrees as well"
    if metric == "accuracy":
        values = _measure_accuracy(before, after, targets, choice.meaning)
        metric = "accuracy" if targets is not None else "agreement"
    elif metric in ("fidelity", "r2"):
        values = _measure_r2(before, after, before if targets is None else prepare_targets("mse", targets, before.shape))
    else:
        compute = get_metric(metric).compute
        right = before if targets is None else prepare_targets("mse", targets, before.shape)
        values = compute(before, right), compute(after, right)
    loss = values[1] - values[0] if metric in ("mae", "mse") else values[0] - values[1]
    return Score(metric, *values, loss, evidence.basis, len(before), name, reason)


def _measure_accuracy(before: Array, after: Array, targets: Array | None, meaning: Meaning) -> tuple[float, float]:
    own, other = (_name_answers(outputs, meaning) for outputs in (before, after))
    if targets is None:
        return 1.0, _measure_agreement(own, other)
    right = targets
    if meaning.kind == "yes_no":
        right = np.asarray(prepare_targets("mse", targets, before.shape) > 0.5)
    elif meaning.kind == "classes" and targets.shape == before.shape:
        right = _name_answers(targets, meaning)  # One column a class.
    elif meaning.kind == "classes" and before.ndim == 2:
        right = prepare_targets("cross_entropy", targets, before.shape)
    if right.shape != own.shape:
        raise InputError("bad_data", detail=f"the targets have shape {right.shape}, the model's answers to them {own.shape}")
    return _measure_agreement(own, right), _measure_agreement(other, right)


def _measure_agreement(one: Array, other: Array) -> float:
    is_equal: Array = np.asarray(one == other, np.bool_)
    return float(np.mean(is_equal))


def _name_answers(outputs: Array, meaning: Meaning) -> Array:
    """Give what outputs stand for: a class, yes or no, or themselves."""
    if meaning.kind == "classes" and outputs.ndim > 1:
        return np.asarray(outputs.argmax(axis=meaning.class_axis))
    return np.asarray(outputs > meaning.threshold) if meaning.kind == "yes_no" else outputs


def _is_one_answer(outputs: Array, meaning: Meaning) -> bool:
    answers = _name_answers(outputs, meaning)
    return bool((answers == answers.flat[0]).all())


def _measure_r2(before: Array, after: Array, targets: Array) -> tuple[float, float]:
    """Give R2 before and after, of the entry of an axis that fell most."""
    right = targets.astype(np.float64)
    old, new = (outputs.astype(np.float64) for outputs in (before, after))
    axes = [None] if before.ndim == 1 or _is_distribution(before) else list(range(1, before.ndim))
    pairs = [(old_score, new_score) for axis in axes for old_score, new_score in _list_r2(old, new, right, axis)]
    return max(pairs, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[0] - pair[1])


def _is_distribution(outputs: Array) -> bool:
    """Whether these are probabilities, all of one scale: a column that is rarely above 0 says little by itself."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2 or not (outputs >= 0).all():
        return False
    return bool(np.allclose(outputs.sum(axis=-1), 1.0, rtol=0, atol=_SUM_TOLERANCE))


def _list_r2(old: Array, new: Array, right: Array, axis: int | None) -> list[tuple[float, float]]:
    """Give R2 before and after of each entry of an axis; of all numbers together for none."""
    others = tuple(other for other in range(right.ndim) if other != axis)
    whole = float(np.mean(np.square(right)))
    mean_square: Array = np.mean(np.square(right), axis=others)
    scale: Array = np.var(right, axis=others)
    # One value, such as padding, has no spread: its size stands for it; for that of zeros the size of all.
    scale = np.where(scale > _CONSTANT * mean_square, scale, mean_square)
    scale = np.where(scale > 0, scale, whole if whole > 0 else 1.0)
    scores = [np.ravel(1 - np.mean(np.square(outputs - right), axis=others) / scale) for outputs in (old, new)]
    return list(zip(*(score.tolist() for score in scores), strict=True))
