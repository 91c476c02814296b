"""The accuracy guard: how far a compressed model's answers may be from right ones, or from its parent's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.bench.rows import stack_answers
from argosy.compress.answers import check_shapes
from argosy.compress.fidelity import FIDELITIES
from argosy.compress.interval import find_interval
from argosy.compress.kind import Meaning
from argosy.compress.metrics import (
    AT_MOST_ONE,
    METRICS,
    OF_LABELS,
    RATES,
    find_loss,
    measure,
    measure_blank,
    name_answers,
    tell_right,
)
from argosy.compress.ruin import find_ruin
from argosy.compress.spread import is_uneven, measure_r2
from argosy.datatypes import is_float
from argosy.errors import InputError, list_choices
from argosy.optim.schedules import check_number
from argosy.signature import Arrays

__all__ = ["Evidence", "Guard", "Score", "judge_outputs"]

Array = NDArray[Any]

_SEEN: Final = 2.0
"""So many times what a guard allows must be lost by one answer for all rows: else it sees too little to be all that is asked."""
_NEAR: Final = 0.95
"""Fidelity that is asked for there: five times the default guard, as rounding of values to 8 bits may lose that."""
_OWN_UNITS: Final = ("mae", "mse")
"""Metrics of which nobody names a number without knowing what it is worth."""
_PARTS: Final = ("accuracy", "agreement", "r2", "fidelity")
"""Metrics that say what part of all is lost, so that who allows much of it knows: unless one answer for all rows is as good."""


@dataclass(frozen=True)
class Guard:
    """How much compression may lose."""

    metric: str | None = None
    """`accuracy`, `r2` (the part of the variance that is explained), `mae`, `mse`; or how close the answers are to the
    original's: `fidelity` (`r2` with the original's answers for targets), `cosine`, `agreement`, `neighbours`, `kl`,
    `max_difference`, `iou`, `text` (see `fidelity.py`). None: what the version was trained for, see `judge_outputs`."""
    max_loss: float = 0.01
    """Largest fall of the metric (rise, where lower is better). One in a hundred rows is seldom missed. Of a metric that is 1 at
    best it is less than 1."""

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric not in METRICS:
            raise InputError("unknown_choice", kind="metric", got=self.metric, known=list_choices(METRICS))
        check_number("guard.max_loss", self.max_loss, "a number, at least 0", lowest=0.0)

    def accepts(self, score: Score) -> bool:
        """Say whether so much may be lost; a score that is no number is refused, and so is what `ruin.py` finds."""
        return not self.find_problem(score)

    def find_problem(self, score: Score) -> str:
        """Say why so much may not be lost; "" if it may."""
        if score.loss > self.max_loss or (math.isnan(score.loss) and not score.ruin):
            return f"{score.metric} loses {score.loss:.4g}, allowed {self.max_loss:g}"
        return score.ruin


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
    interval: tuple[float, float] | None = None
    """In which the loss lies with 95 % confidence, as these rows are a sample of those to come; None where that cannot be said:
    of the largest difference, and of a single row."""
    ruin: str = ""
    """What is lost that the metric does not count; such a version is refused whatever the loss."""

    @property
    def is_noise(self) -> bool:
        """True for a loss that may as well be none."""
        return self.interval is not None and self.loss > 0 >= self.interval[0]


class Evidence(NamedTuple):
    """Rows, with the answers of both models to them."""

    before: Sequence[Arrays]
    """The original's answer to each row, by output name in the model's order."""
    after: Sequence[Arrays]
    targets: Arrays
    """By output name; empty where none are known."""
    basis: str
    is_retrained: bool = False
    """The other model has learnt from rows, and may know better than the original."""
    groups: Sequence[int] = ()
    """Of each row a number, from 0, which equal rows have in common; empty where all rows differ."""

    @property
    def num_different(self) -> int:
        """How many different rows there are: what copies are answered says nothing more."""
        return len(set(self.groups)) or len(self.before)

    def add_copies(self, losses: Array) -> Array:
        """Give the losses of different rows, each as large as its copies make it, so that their mean stays."""
        if self.num_different == len(losses):
            return losses
        sums = np.bincount(np.asarray(self.groups), weights=np.asarray(losses, np.float64))
        return sums * (len(sums) / len(losses))


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
    - Every output is judged, and the one that lost most counts. Lineage and guard speak of the first, or of those with targets; a
      guard whose metric is of numbers, of the first that has fractions.
    - Whatever the metric, a version that has lost its answers is ruined: see `ruin.py`.
    - What counts rows needs as many that one of them is within the guard: without targets, fewer are judged by fidelity.
    - Rows that all get one label show nothing: a version that has lost everything else gives it, too.

    Args:
        evidence: answers and targets.
        meaning: of the version's first output.
        guard: names a metric, or none.

    Raises:
        InputError: `bad_data`, the targets do not fit the model; `bad_option`, the metric does not; `loss_too_large`;
            `too_few_rows`.
        FaultError: `other_shape`, an answer has another shape than the original's.
    """
    with np.errstate(all="ignore"):  # Answers that are no numbers are told in the score.
        before, after = _pair(evidence)
        _check_evidence(before, evidence)
        score = _judge_pairs(before, after, evidence, meaning, guard)
        if len(evidence.before) > 1 and all(_are_alike(outputs) for outputs in before.values()):
            detail = f"the original gives one label to all {len(evidence.before)} {evidence.basis} rows: give some that differ"
            raise InputError("bad_data", detail=f"{detail}, as a ruined version may give that one, too")
        return score


def _check_evidence(before: Arrays, evidence: Evidence) -> None:
    """See that rows show something: what is no number is the same of every version.

    Raises:
        InputError: `bad_data`.
    """
    for name, targets in evidence.targets.items():
        if is_float(targets.dtype) and not np.isfinite(targets).all():
            detail = f"the targets of {name!r} hold {int((~np.isfinite(targets)).sum())} values that are NaN or infinite"
            raise InputError("bad_data", detail=f"{detail}: leave their rows out")
    if before and all(_holds_no_number(outputs) for outputs in before.values()):
        detail = f"the original answers none of the {len(evidence.before)} {evidence.basis} rows with a number"
        raise InputError("bad_data", detail=f"{detail}: all is NaN or infinite")


def _holds_no_number(outputs: Array) -> bool:
    rows: list[Array] = list(outputs) if is_uneven(outputs) else [outputs]
    numbers = [row.astype(np.float64) for row in rows if row.size and is_float(row.dtype)]
    return bool(numbers) and not any(np.isfinite(row).any() for row in numbers)


def _are_alike(outputs: Array) -> bool:
    """Say whether these are labels, all of them equal; numbers with a fraction show how far a version is from them."""
    return not is_uneven(outputs) and not is_float(outputs.dtype) and bool((outputs == outputs[:1]).all())


def _judge_pairs(before: Arrays, after: Arrays, evidence: Evidence, meaning: Meaning, guard: Guard) -> Score:
    scores: list[Score] = []
    meant = list(evidence.targets) or [_find_meant(before, guard.metric)]
    for index, name in enumerate(before):
        is_meant = name in meant
        choice = _choose(
            before[name],
            evidence.targets.get(name),
            meaning if index == 0 else Meaning("unknown", "no lineage speaks of this output"),
            guard.metric if is_meant else None,
        )
        if is_meant and choice.metric in AT_MOST_ONE and guard.max_loss >= 1.0:
            raise InputError("loss_too_large", metric=choice.metric, got=guard.max_loss)
        choice = _look_at_number(choice, evidence.num_different, guard, is_named=is_meant and guard.metric is not None)
        scores.append(_score(name, choice, *_settle(before[name], after[name]), evidence, guard.max_loss))
    return max(scores, key=lambda score: (bool(score.ruin), math.inf if math.isnan(score.loss) else score.loss))


def _find_meant(outputs: Arrays, metric: str | None) -> str:
    """Name the output that a guard speaks of without targets: the first that its metric may suit, else the first."""
    suited = [name for name, array in outputs.items() if metric in OF_LABELS or is_float(_pick_row(array).dtype)]
    return next(iter(suited or outputs))


def _pick_row(outputs: Array) -> Array:
    return outputs[0] if is_uneven(outputs) else outputs


def _pair(evidence: Evidence) -> tuple[Arrays, Arrays]:
    """Put the answers into arrays whose first axis counts rows; where shapes differ from row to row, into an array of arrays.

    Raises:
        FaultError: `other_shape`.
    """
    check_shapes(evidence.before, evidence.after, "the compressed version", f"{evidence.basis} row")
    names = evidence.before[0]
    before, after = ({name: _gather([answer[name] for answer in answers]) for name in names} for answers in evidence[:2])
    return before, after


def _gather(answers: Sequence[Array]) -> Array:
    """Put one output's answers into an array whose first axis counts rows; where shapes differ, into an array of arrays."""
    stacked = stack_answers([{"": answer} for answer in answers])
    if stacked is not None:
        return stacked[""]
    # An axis of the row alone goes, as `stack_answers` has it; of what has no rows the first may be one long by chance.
    is_row = all(answer.ndim > 1 and answer.shape[0] == 1 for answer in answers)
    found = np.empty(len(answers), object)
    for index, answer in enumerate(answers):
        found[index] = answer[0] if is_row else answer
    return found


def _settle(before: Array, after: Array) -> tuple[Array, Array]:
    """Give 0 for what is the same infinity, or no number, in both: a mask, of which nothing can be lost."""
    if before.dtype.kind == "O" or not is_float(before.dtype):
        return before, after
    same = ~np.isfinite(before.astype(np.float64)) & ((before == after) | (np.isnan(before) & np.isnan(after)))
    if not same.any():
        return before, after
    return np.where(same, before.dtype.type(0), before), np.where(same, after.dtype.type(0), after)


def _choose(outputs: Array, targets: Array | None, meaning: Meaning, metric: str | None) -> _Choice:
    """Find how an output is judged."""
    if metric not in OF_LABELS and not is_float(_pick_row(outputs).dtype):
        got = f"{metric} of answers that are {_pick_row(outputs).dtype}, no fractions"
        raise InputError("bad_option", option="guard.metric", got=got, expected="accuracy or agreement")
    if is_uneven(outputs):
        return _choose_uneven(outputs, targets, meaning, metric)
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
        reason = f"what the outputs are is not known: {meaning.source}"
        if targets is not None:
            told = f"the targets ({targets.dtype}, shape {targets.shape}) are neither classes of its scores nor fractions"
            reason = f"{told}, and are not looked at unless a metric is named; {reason}"
        return _Choice("fidelity", None, meaning, reason)
    if metric == "accuracy" and meaning.kind not in ("classes", "yes_no"):
        if meaning.kind == "values" or outputs.ndim < 2 or outputs.shape[-1] == 1:
            got = f"{metric}, while {meaning.source}" if meaning.kind == "values" else f"{metric} of a single number"
            raise InputError("bad_option", option="guard.metric", got=got, expected="r2, mae, mse or fidelity")
        meaning = Meaning("classes", meaning.source)
    if metric in FIDELITIES:
        FIDELITIES[metric].check(outputs)
        is_named = metric == "agreement" and meaning.kind == "unknown"
        return _Choice(metric, None, Meaning("classes", meaning.source) if is_named else meaning, reason)
    if metric in ("fidelity", "r2") and (targets is None or metric == "fidelity"):
        return _Choice("fidelity", None, meaning, reason)
    return _Choice(metric, targets, meaning, reason)


def _choose_uneven(outputs: Array, targets: Array | None, meaning: Meaning, metric: str | None) -> _Choice:
    reason = "the answers have other shapes from row to row"
    if targets is None and not is_float(outputs[0].dtype):
        return _Choice("accuracy", None, Meaning("labels", meaning.source), "its answers are no fractions")
    if targets is not None or metric not in (None, "fidelity", *FIDELITIES):
        expected = f"one of {list_choices(['fidelity', *FIDELITIES])}, without targets: {reason}"
        raise InputError("bad_option", option="guard.metric", got=metric or "targets", expected=expected)
    if metric in FIDELITIES:
        FIDELITIES[str(metric)].check(outputs)
    return _Choice(metric or "fidelity", None, meaning, reason)


def _choose_by_targets(outputs: Array, targets: Array) -> str | None:
    if targets.dtype.kind in "iu" and targets.shape == outputs.shape[:-1] and outputs.shape[-1] > 1:
        return "accuracy"
    return "r2" if targets.dtype.kind == "f" else None


def _look_at_number(choice: _Choice, num_rows: int, guard: Guard, *, is_named: bool) -> _Choice:
    """See that what counts rows has enough of them."""
    if choice.metric not in RATES or num_rows * guard.max_loss >= 1.0 or not 0.0 < guard.max_loss < 1.0:
        return choice
    needed = math.ceil(1.0 / guard.max_loss)
    if is_named or choice.targets is not None:
        raise InputError("too_few_rows", metric=choice.metric, got=num_rows, needed=needed, max_loss=guard.max_loss)
    if choice.meaning.kind == "labels":
        return choice
    reason = f"{num_rows} rows are too few for a rate within {guard.max_loss:g}, which takes {needed}; {choice.reason}"
    return _Choice("fidelity", None, choice.meaning, reason)


def _score(name: str, choice: _Choice, before: Array, after: Array, evidence: Evidence, max_loss: float) -> Score:
    targets = choice.targets
    if targets is not None and (targets.ndim == 0 or len(targets) != len(before)):
        raise InputError("bad_data", detail=f"evaluation has {len(before)} rows, its targets have shape {targets.shape}")
    metric, reason = choice.metric, choice.reason
    if metric == "accuracy" and targets is None and is_float(before.dtype) and _is_one_answer(before, choice.meaning):
        metric, reason = "fidelity", f"all {len(before)} rows get one answer, with which a ruined model agrees as well"
    values = measure(metric, before, after, targets, choice.meaning)
    if metric == "accuracy" and targets is None:
        metric = "agreement"
    loss = find_loss(metric, values)
    interval = None if metric == "max_difference" else find_interval(evidence.add_copies(values.losses), is_rate=metric in RATES)
    kept = _find_kept(before, targets, choice.meaning) if evidence.is_retrained else None
    ruin = find_ruin(before, after, choice.meaning, metric, max_loss, kept)
    least = 0.0 if metric in _PARTS else _SEEN * max_loss
    if not ruin and loss <= max_loss and measure_blank(choice.metric, before, targets, choice.meaning) <= least:
        found = find_ruin(before, after, choice.meaning, "", min(max_loss, Guard.max_loss), kept)
        is_chosen = kept is not None or metric in _OWN_UNITS
        found = found or ("" if is_chosen else _compare_closely(before, after))
        ruin = found and f"{found}; and a guard of {metric} within {max_loss:g} takes one answer for all rows, or nearly"
    return Score(metric, values.before, values.after, loss, evidence.basis, len(before), name, reason, interval, ruin)


def _compare_closely(before: Array, after: Array) -> str:
    """Say how far answers are from the original's where nothing else looks at that; "" if they are near."""
    kept = measure_r2(before, after, None).after
    return "" if kept >= _NEAR else f"fidelity to the original is {kept:.3f}, below {_NEAR:g}"


def _find_kept(before: Array, targets: Array | None, meaning: Meaning) -> Array | None:
    """Find the rows to which the original's answer is right: of the others nothing is lost. None: nobody knows which.

    Where numbers are to be learnt none is: their metric looks at every one, and may find them better than the original's.
    """
    if targets is None:
        return None
    if meaning.kind in ("classes", "yes_no"):
        return tell_right(before, targets, meaning)
    return np.zeros(len(before), bool) if meaning.kind == "values" else None


def _is_one_answer(outputs: Array, meaning: Meaning) -> bool:
    answers = name_answers(outputs, meaning)
    return bool((answers == answers.flat[0]).all())
