"""Trials at warm-up: does a runtime that is not a version's own answer as that one does? NumPy and the standard library only.

Golden examples cannot tell: they are what clients send on a good day, or random. The rows are those of `row_trials`: a runtime
that computes in fewer bits than a datatype has, for one, is found out at the extremes of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float, widen
from argosy.runtimes.base import BadInput, Runtime
from argosy.serve.worker.agreement import Measure, describe_difference
from argosy.serve.worker.row_trials import TrialRow, answer_rows, make_rows, time_row, try_row

__all__ = ["RefusesNan", "RuntimeDiffers", "check_answers", "read_answers", "write_answers"]

Arrays = dict[str, NDArray[Any]]

_NAN: Final = "not a number"
_WILD: Final = ("extreme", "wide", "infinite")
"""Kinds of rows to which one order of sums answers with NaN, and another does not."""
TOLERANCE: Final = 1e-3
"""As for golden examples."""


class RuntimeDiffers(Exception):
    """A runtime does not compute what the version's own does."""


def write_answers(infer: Callable[[Arrays], Arrays], example: Arrays) -> bytes:
    """Have rows answered that are made of an example, each alone; serialised, with the answers."""
    entries: Arrays = {}
    rows = answer_rows(infer, make_rows(example), time_row(infer, example))
    for index, row in enumerate(rows):
        entries |= {f"{index}:{row.kind}:in:{name}": array for name, array in row.inputs.items() if array.dtype.kind != "O"}
        entries |= {f"{index}:{row.kind}:out:{name}": array for name, array in row.answer.items() if array.dtype.kind != "O"}
    file = io.BytesIO()
    np.savez(file, **entries)  # pyright: ignore[reportArgumentType] - no entry is called as an option
    return file.getvalue()


def read_answers(data: bytes) -> list[TrialRow]:
    """Read what `write_answers` wrote; nothing where it did not come so far."""
    if not data:
        return []
    rows: dict[str, TrialRow] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for key in file.files:
            index, kind, side, name = key.split(":", 3)
            row = rows.setdefault(index, TrialRow(kind, {}, {}))
            (row.inputs if side == "in" else row.answer)[name] = file[key]
    return list(rows.values())


class RefusesNan:
    """A runtime that is asked no NaN, for it would answer as if that were a number.

    Args:
        runtime: the runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._infer = runtime.infer

    def infer(self, inputs: Arrays) -> Arrays:
        """Run a batch.

        Raises:
            BadInput: a number is NaN; or as the runtime does.
        """
        for name, array in inputs.items():
            # The smallest of numbers is NaN where one of them is.
            if array.size and is_float(array.dtype) and np.isnan(widen(array).min()):
                raise BadInput(f"input {name!r} holds NaN, which this runtime takes for a number")
        return self._infer(inputs)


def check_answers(infer: Callable[[Arrays], Arrays], rows: Iterable[TrialRow], own: str, measure: Measure) -> bool:
    """Hold a runtime's answers against those of the version's own.

    A row that the runtime refuses is no difference: it says so to the client, too. Nor is what the version's own answers with
    infinities, or to extremes with NaN.

    Args:
        infer: runs the model by the runtime.
        rows: with the answers of the version's own runtime.
        own: its name.
        measure: how far two answers are apart.

    Returns:
        True where it takes NaN for a number, or no row has shown that it does not.

    Raises:
        RuntimeDiffers: they differ for numbers.
    """
    rows = list(rows)
    takes_nan = not rows
    for row in rows:
        if (got := try_row(infer, row.inputs)) is None:
            continue
        for name, expected in row.answer.items():
            difference = _measure_finite(got[name], expected, measure)
            if row.kind not in _WILD and _loses_nan(got[name], expected):
                difference = float("inf")
            if row.kind == _NAN:
                takes_nan = takes_nan or difference > TOLERANCE
            elif difference > TOLERANCE:
                detail = f"output {name!r} {describe_difference(got[name], expected, difference, TOLERANCE)} (by {own})"
                raise RuntimeDiffers(f"this runtime does not compute what the version's own does: for {row.kind} values {detail}")

    return takes_nan


def _loses_nan(got: NDArray[Any], expected: NDArray[Any]) -> bool:
    is_comparable = got.shape == expected.shape and is_float(got.dtype) and is_float(expected.dtype)
    return is_comparable and bool((np.isnan(widen(expected)) & ~np.isnan(widen(got))).any())


def _measure_finite(got: NDArray[Any], expected: NDArray[Any], measure: Measure) -> float:
    if got.shape != expected.shape or not is_float(expected.dtype):
        return measure(got, expected)
    finite = np.isfinite(widen(expected))
    return measure(got[finite], expected[finite]) if finite.any() else 0.0
