"""Hold what was written against the model that it was written from."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.trials import LENGTHS, SAMPLE, Trial
from argosy.signature import Arrays

__all__ = [
    "FAR_TOLERANCE",
    "Differs",
    "Evidence",
    "Fails",
    "Roundings",
    "Run",
    "Saved",
    "check_saved",
    "hold_against",
    "measure_difference",
]

Run = Callable[[Arrays], Arrays]
Roundings = Callable[[], Iterable[Run]]
"""Gives the model with its own numbers rounded, as float32 might leave them."""

FAR_TOLERANCE: Final = 1e-3
"""For rows that are unlike the sample: large terms that cancel leave more of float32's rounding; another way 1e-2."""

_TIE: Final = 1e-5
"""Two probabilities that are as good as equal: either label is right."""
_NUDGE: Final = 2.0**-22
"""What rounding does to a number that went through a few operators."""
_NUM_NUDGES: Final = 3
_ALLOWED_TIMES: Final = 16.0
"""How many times what its own rounding moves the model an artifact may differ: it rounds at every operator, the nudge once."""
_LEAST_SCALE: Final = 0.01
"""Of the sample's largest magnitude: answers of a trial are measured by no smaller one, for they may be sums that cancel."""


class Evidence(NamedTuple):
    """What an artifact was held against, and how it did."""

    difference: float
    """The largest, relative to the largest magnitude of each output; where the model itself does not move by more."""
    far_difference: float
    """The same, of rows that are unlike the sample."""
    rounding: float
    """The same, of rows on which the model itself moves by as much when it is rounded; 0 if there are none."""
    num_rows: int
    """That were compared."""
    kinds: tuple[str, ...]
    """Of rows that were compared."""
    shapes: dict[str, tuple[int, ...]]
    """Of the outputs, -1 where they differ with the lengths of the inputs; rows included."""

    def describe(self) -> dict[str, object]:
        """Give it as JSON data, for the lineage."""
        return {
            "difference": self.difference,
            "far_difference": self.far_difference,
            "rounding": self.rounding,
            "rows": self.num_rows,
            "kinds": list(self.kinds),
        }


class Saved(NamedTuple):
    """A model in its framework's own form."""

    entry: str
    """Name of the file that the runtime is told to load."""
    evidence: Evidence
    """That it answers as the model."""
    options: dict[str, Any]
    """Of the runtime: the names of its tensors, in the order in which the file has them."""


class Fails(Exception):
    """An artifact does not answer what the model does; the text says on what and why."""


class Differs(Exception):
    """An artifact answers otherwise than the model."""

    def __init__(self, kind: str, difference: float, allowed: float) -> None:
        told = f"its answers differ by {difference:.3g} of the largest"
        told = told if math.isfinite(difference) else "it gives other labels, whole numbers or texts, or no numbers"
        super().__init__(f"on {kind} rows {told}")
        self.kind = kind
        self.difference = difference
        """Infinite for another label, integer or text."""
        self.allowed = allowed


def hold_against(
    answer: Run,
    expect: Run,
    trials: Iterable[Trial],
    tolerance: float,
    *,
    has_rows: bool = True,
    round_model: Roundings = tuple,
) -> Evidence:
    """Compare an artifact's answers with the model's on every trial that the model itself answers.

    A difference counts unless the model's own answer to that row moves by a sixteenth of it if the row is only rounded, or
    summed in float64, or if the numbers of the model are rounded.

    Args:
        answer: the artifact.
        expect: the model; what it raises says that it does not take a trial.
        trials: of `draw_trials`; the sample comes first.
        tolerance: allowed difference, relative to the largest magnitude of an output; for rows unlike the sample `FAR_TOLERANCE`.
        has_rows: the first axis of every tensor counts rows.
        round_model: asked where something differs; by default the model has no numbers that an artifact would round.

    Raises:
        Fails: the artifact does not run, or other tensors come out, of the model itself, too.
        Differs: its answers differ.
        InputError: `bad_option`, the model takes none of the other lengths.
    """
    is_first = True
    worst, rounding, num_rows, kinds, refusal, scales = [0.0, 0.0], 0.0, 0, dict[str, None](), None, dict[str, float]()
    shapes: dict[str, tuple[int, ...]] = {}
    for trial in trials:
        try:
            expected = expect(trial.inputs)
        except Fails:
            raise
        except Exception as error:  # The edge of a model's own code, which may raise anything on rows that it was not made for.
            if trial.kind == SAMPLE:
                raise
            refusal = refusal or (str(error) if trial.kind.startswith(LENGTHS) else None)
            continue
        if trial.kind == SAMPLE:
            scales = {name: max(_find_magnitude(array), scales.get(name, 0.0)) for name, array in expected.items()}
        got = _run(answer, trial, expected)
        if got is None:
            continue
        if is_first:
            is_first = False
            _check_repeats(answer, expect, trial, expected, has_rows)
        allowed = max(tolerance, FAR_TOLERANCE) if trial.is_far else tolerance
        apart = _list_differences(expected, got, scales, trial.kind != SAMPLE, has_rows)
        if not bool((apart <= allowed).all()):
            others = itertools.chain(
                ((expect, inputs) for inputs in _nudge(trial.inputs)), ((run, trial.inputs) for run in round_model())
            )
            excused = _find_excused(apart, others, expected, scales, has_rows)
            rounding = max(rounding, float(apart[excused & np.isfinite(apart)].max(initial=0.0)))
            apart = np.where(excused, 0.0, apart)
        if not bool((apart <= allowed).all()):
            raise Differs(trial.kind, float(apart.max()), allowed)
        worst[trial.is_far] = max(worst[trial.is_far], float(apart.max(initial=0.0)))
        num_rows += len(apart)
        kinds |= {trial.kind: None}
        shapes = _join_shapes(shapes, expected, has_rows)
    if refusal is not None and not any(kind.startswith(LENGTHS) for kind in kinds):
        expected = f"axes along which the model takes other lengths than its sample's; of these it says: {refusal[:300]}"
        raise InputError("bad_option", option="dynamic", got="axes of its input", expected=expected)
    return Evidence(worst[0], worst[1], rounding, num_rows, tuple(kinds), shapes)


def check_saved(
    entry: str, options: dict[str, Any], answer: Run, expect: Run, trials: Iterable[Trial], tolerance: float, *, has_rows: bool
) -> Saved:
    """Hold a model in its framework's own form, which is in the file `entry`, against the model, as `hold_against` does.

    Raises:
        ModelError: `save_failed`, it fails or answers differently.
    """
    try:
        return Saved(entry, hold_against(answer, expect, trials, tolerance, has_rows=has_rows), options)
    except (Fails, Differs) as error:
        raise ModelError("save_failed", detail=f"of what was written, {error}") from error


def measure_difference(expected: Arrays, got: Arrays) -> float:
    """Give the largest difference of two sets of answers, relative to the largest magnitude of each output.

    What is no number with a fraction has to be equal: otherwise the difference is infinite, as for other names or shapes.
    But a label may be another one where the two largest probabilities are as good as equal.
    """
    if not expected or not _has_same_form(expected, got):
        return math.inf
    return float(_list_differences(expected, got, {}, is_trial=False, has_rows=False).max())


def _check_repeats(answer: Run, expect: Run, trial: Trial, expected: Arrays, has_rows: bool) -> None:
    """Refuse an artifact that fixes what the model draws or counts anew each time, or draws what is fixed in the model.

    Raises:
        Fails: one of the two answers the same rows otherwise each time, and the other does not.
    """

    def moves(one: Arrays, other: Arrays) -> bool:
        return not _has_same_form(one, other) or bool((_list_differences(one, other, {}, True, has_rows) > FAR_TOLERANCE).any())

    is_drawn = moves(expected, expect(trial.inputs))
    # One after the other: what shares the model's state would move with the model.
    first, second = _run(answer, trial, expected), _run(answer, trial, expected)
    if first is None or second is None or moves(first, second) == is_drawn:
        return
    if is_drawn:
        raise Fails("it always answers rows alike to which the model answers otherwise each time")
    raise Fails("it answers rows otherwise each time to which the model always answers alike")


def _run(answer: Run, trial: Trial, expected: Arrays) -> Arrays | None:
    """Ask the artifact; None if a failure is no verdict."""
    try:
        got = answer({name: array.copy() for name, array in trial.inputs.items()})
    except Exception as error:  # The edge of a runtime: it may raise anything.
        if trial.may_fail or not _is_finite(expected):
            return None
        shapes = {name: array.shape for name, array in trial.inputs.items()}
        raise Fails(f"it does not run on {trial.kind} rows of shape {_show(shapes)}: {error}") from error
    if not _has_same_form(expected, got):
        shapes = {name: f"{array.dtype} {array.shape}" for name, array in got.items()}
        wanted = {name: f"{array.dtype} {array.shape}" for name, array in expected.items()}
        given = {name: array.shape for name, array in trial.inputs.items()}
        raise Fails(f"for {trial.kind} rows of shape {_show(given)} it gives {_show(shapes)}, expected {_show(wanted)}")
    return got


def _show(named: dict[str, Any]) -> str:
    return str(next(iter(named.values()))) if len(named) == 1 else ", ".join(f"{name} {value}" for name, value in named.items())


def _has_same_form(expected: Arrays, got: Arrays) -> bool:
    return expected.keys() == got.keys() and all(
        want.shape == got[name].shape and _is_fraction(want) == _is_fraction(got[name]) for name, want in expected.items()
    )


def _is_fraction(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "fV"


def _is_finite(answers: Arrays) -> bool:
    return all(bool(np.isfinite(array).all()) for array in answers.values() if array.dtype.kind == "f")


def _find_magnitude(array: NDArray[Any]) -> float:
    if array.dtype.kind != "f":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(np.max(finite, initial=0.0))


def _list_differences(
    expected: Arrays, got: Arrays, scales: dict[str, float], is_trial: bool, has_rows: bool
) -> NDArray[np.float64]:
    """Give the largest difference of each row, of all outputs; one number for all if rows are not counted.

    A row of a trial that the model itself answers with NaN or infinity has no answer to compare.
    """
    undecided = _find_ties(expected.get("probabilities"))
    num_rows = len(next(iter(expected.values()))) if has_rows else 1
    worst = np.zeros(num_rows)
    for name, want in expected.items():
        apart = _compare(want, got[name], scales.get(name, 0.0))
        if name == "label" and undecided is not None and undecided.shape == want.shape:
            apart = np.where(undecided, 0.0, apart)
        if is_trial and want.dtype.kind == "f":
            apart = np.where(np.isfinite(want), apart, 0.0)
        worst = np.maximum(worst, apart.reshape(num_rows, -1).max(axis=1, initial=0.0))
    return worst


def _compare(want: NDArray[Any], got: NDArray[Any], sample_scale: float) -> NDArray[Any]:
    if not _is_fraction(want):
        return np.where(np.asarray(want == got, bool), 0.0, math.inf)
    one, other = want.astype(np.float64), got.astype(np.float64)
    # Equal infinities and NaN in both are no difference.
    is_same = (one == other) | (np.isnan(one) & np.isnan(other))
    scale = max(_find_magnitude(one), _LEAST_SCALE * sample_scale, float(np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(is_same, 0.0, np.nan_to_num(np.abs(one - other), nan=math.inf) / scale)


def _find_ties(probabilities: NDArray[Any] | None) -> NDArray[Any] | None:
    if probabilities is None or probabilities.ndim != 2 or probabilities.shape[1] < 2:
        return None
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second <= _TIE)


def _find_excused(
    apart: NDArray[np.float64],
    others: Iterable[tuple[Run, Arrays]],
    expected: Arrays,
    scales: dict[str, float],
    has_rows: bool,
) -> NDArray[np.bool_]:
    """Say of which rows the difference is no more than the model's own: asked so, it says something else, too."""
    moved = np.zeros_like(apart)
    for run, inputs in others:
        answers: Arrays | None = None
        with contextlib.suppress(Exception):  # As above; the model may take no other than whole numbers, or no float64.
            answers = run(inputs)
        if answers is not None and _has_same_form(expected, answers):
            moved = np.maximum(moved, _list_differences(expected, answers, scales, True, has_rows))
    return np.asarray(apart <= _ALLOWED_TIMES * moved)


def _nudge(inputs: Arrays) -> Iterator[Arrays]:
    """Give inputs as rounding might leave them; and in float64, which shows how far the model's own float32 sums are off."""
    generator = np.random.default_rng(0)
    for _ in range(_NUM_NUDGES):
        yield {
            name: np.asarray(array * (1 + _NUDGE * generator.choice([-1.0, 1.0], array.shape)), array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in inputs.items()
        }
    yield {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}


def _join_shapes(shapes: dict[str, tuple[int, ...]], answers: Arrays, has_rows: bool) -> dict[str, tuple[int, ...]]:
    joined: dict[str, tuple[int, ...]] = {}
    for name, array in answers.items():
        seen = (-1, *array.shape[1:]) if has_rows else array.shape
        known = shapes.get(name, seen)
        if len(known) != len(seen):
            raise Fails(f"its output {name!r} has {len(known)} axes, and {len(seen)} for another length; no signature says that")
        joined[name] = tuple(one if one == other else -1 for one, other in zip(known, seen, strict=True))
    return joined
