"""Trials at warm-up: does a row answer in a batch as it does alone, whoever shares the batch? NumPy alone.

The others are what clients may send: small, zero, negative and large numbers, the extremes of the datatype, infinities, NaN. A
row that the model does not take alone takes no part. Answers to extremes are not compared: in them sums may overflow in one order
and not in another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float, widen
from argosy.serve.worker.agreement import OUTLIER_FACTOR, Measure, describe_move, exceeds
from argosy.serve.worker.bounds import Bounds, TrialTooLong

__all__ = ["TrialRow", "answer_rows", "compare_rows", "find_influence", "make_rows", "time_row", "try_row"]

Arrays = dict[str, NDArray[Any]]
Infer = Callable[[Arrays], Arrays]

MAX_EXAMPLES: Final = 4
"""Of the version's, in each batch of a trial; half as many of a model that takes SLOW_S for one."""
SLOW_S: Final = 0.05
LEAST_S: Final = 1.0
PATIENCE: Final = 20.0
"""A row of a trial is given up after so many times as long as an example takes, and LEAST_S at least."""
_WILD: Final = ("extreme", "wide", "infinite", "not a number")
"""Kinds whose own answers may be anything: sums of them overflow in one order, and not in another."""


class TrialRow(NamedTuple):
    """A row to try, and what the model answers to it alone."""

    kind: str
    inputs: Arrays
    answer: Arrays


def find_influence(infer: Infer, examples: Arrays, measure: Measure, *, is_brief: bool) -> str:
    """Say why rows must not be joined; an empty string when each answers in every batch as it does alone.

    Args:
        infer: runs the model.
        examples: rows of the version's own; the first axis counts them.
        measure: how far two answers are apart.
        is_brief: one batch alone, for a graph that shows that its rows are independent.
    """
    count = min((len(array) for array in examples.values()), default=0)
    if not count:
        return "the version has no examples to try it with"
    example_s = time_row(infer, _take(examples, 0))
    most = MAX_EXAMPLES if example_s < SLOW_S else MAX_EXAMPLES // 2
    rows = list(answer_rows(infer, (("example", _take(examples, index)) for index in range(min(count, most))), example_s))
    if not rows:
        return "its own examples do not run one by one"
    others = list(answer_rows(infer, make_rows(rows[0].inputs, is_brief=is_brief), example_s))
    if is_brief:
        # All examples as one: of independent rows an answer that is small beside the others' has moved by rounding.
        expected = {name: np.concatenate([row.answer[name] for row in rows]) for name in rows[0].answer}
        together = _try_batch(infer, [*rows, *others], example_s)
        cut = {name: array[: len(rows)] for name, array in (together or {}).items()}
        return _tell(compare_rows(TrialRow("example", {}, expected), cut, measure))
    for kind in dict.fromkeys(row.kind for row in others):
        batch = [*rows[:2], *(row for row in others if row.kind == kind), *rows[2:]]
        if move := _find_move(infer, batch, measure, example_s):
            return f"{move}, beside {kind} rows"
    return _find_move(infer, [*others, *rows, *others[::-1]], measure, example_s)


def make_rows(example: Arrays, *, is_brief: bool = False) -> Iterator[tuple[str, Arrays]]:
    """Give rows that clients may send, as (kind, row): of every input at once, and of each alone, where there are several.

    Args:
        example: a row that the model takes.
        is_brief: of every input at once, and no extremes, which take a batch of their own to be of use.
    """
    for kind, change in _CHANGES.items():
        if is_brief and kind in ("extreme", "wide"):
            continue
        changed = {name: _change(array, change) for name, array in example.items()}
        found = {name: array for name, array in changed.items() if array is not None}
        if found:
            yield kind, {**example, **found}
        if len(found) > 1 and not is_brief:
            for name, array in found.items():
                yield kind, {**example, name: array}


def time_row(infer: Infer, row: Arrays) -> float:
    """Seconds that a row takes, or until the model has refused it."""
    before = time.perf_counter()
    try_row(infer, row)
    return time.perf_counter() - before


def answer_rows(infer: Infer, rows: Iterator[tuple[str, Arrays]], example_s: float) -> Iterator[TrialRow]:
    """Run each row alone; those that the model does not take, or takes far longer for than for an example, are left out."""
    for kind, row in rows:
        if (answer := try_row(infer, row, max(LEAST_S, PATIENCE * example_s))) is not None:
            yield TrialRow(kind, row, answer)


def compare_rows(row: TrialRow, got: Arrays, measure: Measure) -> str:
    """Say how an answer differs from that of the row alone; an empty string where it does not."""
    if row.kind in _WILD:
        return ""
    for name, expected in row.answer.items():
        other = got.get(name)
        difference = float("inf") if other is None else measure(other, expected)
        if exceeds(difference, expected.dtype):
            return describe_move(name, other, expected, difference)
    return ""


def _try_batch(infer: Infer, rows: list[TrialRow], example_s: float) -> Arrays | None:
    return try_row(infer, _join(rows), len(rows) * max(LEAST_S, PATIENCE * example_s))


def _find_move(infer: Infer, rows: list[TrialRow], measure: Measure, example_s: float) -> str:
    together = _try_batch(infer, rows, example_s)
    if together is None:
        return "a batch of rows fails that it takes alone"
    if any(len(array) != len(rows) for array in together.values()):
        return "the model does not give as many rows as it gets"
    for index, row in enumerate(rows):
        if move := compare_rows(row, _take(together, index), measure):
            return _tell(move)
    return ""


def _tell(move: str) -> str:
    return f"a row answers differently in a batch: {move}" if move else ""


def _join(rows: list[TrialRow]) -> Arrays:
    return {name: np.concatenate([row.inputs[name] for row in rows]) for name in rows[0].inputs}


def _take(arrays: Arrays, index: int) -> Arrays:
    return {name: array[index : index + 1] for name, array in arrays.items()}


def try_row(infer: Infer, inputs: Arrays, limit_s: float | None = None) -> Arrays | None:
    """Run rows; None where the model does not take them, or not within the limit."""
    try:
        with np.errstate(all="ignore"), nullcontext() if limit_s is None else Bounds(limit_s):
            # What a runtime answers may be memory of its own, which the next call writes to.
            return {name: np.array(array) for name, array in infer(inputs).items()}
    except (Exception, SystemExit, TrialTooLong):  # the model's own code: a row that it does not take is no fault
        return None


# what is changed

Change = Callable[[NDArray[Any], NDArray[Any]], "NDArray[Any] | float | None"]
"""(a row as float64 or int64, the same in its datatype) -> the row's new values; None where the datatype has none such."""


def _change(array: NDArray[Any], change: Change) -> NDArray[Any] | None:
    kind = array.dtype.kind
    if kind == "O":
        found = change(np.zeros(array.shape), array)
        return None if found is None else np.broadcast_to(np.asarray(found, object), array.shape)
    if kind == "b":
        flipped = change(array.astype(np.int64), array)
        return None if flipped is None else np.broadcast_to(np.asarray(flipped) != 0, array.shape).copy()
    wide = widen(array) if is_float(array.dtype) else array
    with np.errstate(all="ignore"):
        found = change(wide, array)
        if found is None:
            return None
        return np.ascontiguousarray(np.broadcast_to(np.asarray(found), array.shape).astype(array.dtype))


def _is_number(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iu" or is_float(array.dtype)


def _scale(factor: float) -> Change:
    def change(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | None:
        if not _is_number(array):
            return None
        if array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            # Small ones are at most 1, large ones keep to what the datatype holds.
            scaled = np.clip(wide, -1 if info.min else 0, 1) if factor < 1 else wide.astype(np.float64) * factor
            return np.clip(scaled, info.min // 2, info.max // 2)
        return wide * factor

    return change


def _negate(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | None:
    return -wide if is_float(array.dtype) or array.dtype.kind == "i" else None


def _fill_extremes(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | float | None:
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        values: list[Any] = [info.max, info.min]
    elif is_float(array.dtype):
        largest = float(np.finfo(np.float32).max) / 2 if array.dtype.itemsize == 2 and array.dtype.kind != "f" else 0.0
        largest = largest or float(np.finfo(array.dtype).max)
        values = [largest, -largest]
    else:
        return None
    return np.resize(np.array(values, wide.dtype if wide.dtype.kind != "u" else array.dtype), array.shape)


def _fill_wide(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | float | None:
    """The extremes of 32 bits, of what has more: some runtimes compute in fewer bits than the datatype has."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8:
        return None
    info = np.iinfo(np.int32)
    return np.resize(np.array([info.max, info.min if array.dtype.kind == "i" else 0], array.dtype), array.shape)


def _fill(value: float) -> Change:
    return lambda wide, array: np.full(array.shape, value) if is_float(array.dtype) else None


def _empty(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | float | None:
    if array.dtype.kind == "O":
        return np.full(array.shape, b"", object)
    return np.zeros(array.shape, wide.dtype)


def _lengthen(wide: NDArray[Any], array: NDArray[Any]) -> NDArray[Any] | float | None:
    if array.dtype.kind == "O":
        return np.full(array.shape, b"a longer text, with words that others have not " * 4, object)
    return _scale(OUTLIER_FACTOR)(wide, array)  # type: ignore[return-value]


_CHANGES: Final[dict[str, Change]] = {
    "small": _scale(1e-3),
    "large": _lengthen,
    "zero": _empty,
    "negative": _negate,
    "extreme": _fill_extremes,
    "wide": _fill_wide,
    "infinite": _fill(np.inf),
    "not a number": _fill(np.nan),
}
