"""Watch rows that were joined: run one in a thousand again, alone, and say so if it answers differently. NumPy alone.

Trials cannot prove that rows do not influence one another; clients find what trials have not. A row is run again when the worker
has nothing else to do, or has had no such moment for a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.serve.worker.agreement import Measure, describe_move, exceeds

__all__ = ["PERIOD_ROWS", "Escape", "Watch"]

Arrays = dict[str, NDArray[Any]]
Ragged = Mapping[str, Any]
"""As `argosy.signature.Ragged`, as plain data."""

PERIOD_ROWS: Final = 1000
PATIENCE_S: Final = 0.5
"""After so long without an idle moment, the row is run again between two batches."""


_NO_NUMBER: Final = 1e9


class Escape(NamedTuple):
    """A row that answered differently in its batch than alone."""

    reason: str
    difference: float


class _Row(NamedTuple):
    inputs: Arrays
    answer: Arrays
    form: int
    since_s: float


class Watch:
    """What is watched of one version.

    Args:
        infer: runs a row: (its inputs, form) -> its answer.
        measure: how far two answers are apart.
        ragged: where rows of different lengths are joined, what they are filled up with.
    """

    def __init__(self, infer: Callable[[Arrays, int], Arrays], measure: Measure, ragged: Ragged | None) -> None:
        self._infer = infer
        self._measure = measure
        self._ragged = ragged
        self._left = PERIOD_ROWS
        self._row: _Row | None = None

    @property
    def due_s(self) -> float | None:
        """When a row is to be run again at the latest; None while there is none."""
        return None if self._row is None else self._row.since_s + PATIENCE_S

    def note(self, inputs: Arrays, answer: Arrays, form: int, num_rows: int) -> None:
        """A batch was answered. What is kept of it is copied."""
        self._left -= num_rows
        if self._left > 0 or self._row is not None:
            return
        self._left = PERIOD_ROWS
        # Any row, and not for a client to choose; the module `random` is memory that each worker would have of its own.
        place = int.from_bytes(os.urandom(4), "little") % num_rows
        picked = [{name: np.array(array[place : place + 1]) for name, array in arrays.items()} for arrays in (inputs, answer)]
        self._row = _Row(picked[0], picked[1], form, time.monotonic())

    def look(self) -> Escape | None:
        """Run the row again; returns how it differs, if it does."""
        row, self._row = self._row, None
        if row is None:
            return None
        inputs, length = (row.inputs, None) if row.form or self._ragged is None else _trim(row.inputs, self._ragged)
        try:
            alone, again = ({name: np.array(array) for name, array in self._infer(inputs, row.form).items()} for _ in range(2))
        except Exception as error:  # the model's own code
            return Escape(f"a row that ran in a batch fails alone ({type(error).__name__})", _NO_NUMBER)
        for name, expected in alone.items():
            if name not in row.answer or self._differs(again[name], expected) is not None:
                continue  # not an answer of the signature, or another one each time
            got = self._cut(name, row.answer[name], length)
            if (difference := self._differs(got, expected)) is not None:
                return Escape(describe_move(name, got, expected, difference), min(difference, _NO_NUMBER))
        return None

    def _differs(self, got: NDArray[Any], expected: NDArray[Any]) -> float | None:
        difference = self._measure(got, expected)
        return difference if exceeds(difference, expected.dtype) else None

    def _cut(self, name: str, got: NDArray[Any], length: int | None) -> NDArray[Any]:
        axis = self._ragged["outputs"].get(name) if self._ragged is not None and length is not None else None
        return got if axis is None else got[(slice(None),) * axis + (slice(length),)]


def _trim(inputs: Arrays, ragged: Ragged) -> tuple[Arrays, int]:
    """A row without what fills it up at its end, and its length then."""
    length = 1
    for name, item in ragged["inputs"].items():
        array, axis = inputs[name], item["axis"]
        others = tuple(other for other in range(array.ndim) if other != axis)
        real = np.flatnonzero((array != np.asarray(item["pad"]).astype(array.dtype)).any(axis=others))
        length = max(length, int(real[-1]) + 1 if real.size else 1)
    cut = {
        name: array if (item := ragged["inputs"].get(name)) is None else array[(slice(None),) * item["axis"] + (slice(length),)]
        for name, array in inputs.items()
    }
    return {name: np.ascontiguousarray(array) for name, array in cut.items()}, length
