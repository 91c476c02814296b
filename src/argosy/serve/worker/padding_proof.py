"""The proof at warm-up that padding moves no answer: rows of different lengths, alone and together. NumPy alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float, widen
from argosy.serve.wire.padding import fill_padded
from argosy.serve.worker.agreement import OUTLIER_FACTOR, describe_move, exceeds
from argosy.serve.worker.row_trials import try_row

__all__ = ["list_lengths", "measure_lengths", "prove_padding", "resize_rows"]

Arrays = dict[str, NDArray[Any]]
Infer = Callable[[Arrays], Arrays]
Measure = Callable[[NDArray[Any], NDArray[Any]], float]
Change = Callable[[NDArray[np.float64], float], NDArray[np.float64]]
"""(a row's numbers, what fills it up) -> others."""
Ragged = Mapping[str, Any]
"""As `argosy.signature.Ragged`, as plain data."""

_NUM_OF_MASK: Final = 2
_CHANGES: Final[dict[str, Change]] = {
    "small": lambda row, pad: row * 1e-3,
    "negative": lambda row, pad: -row,
    "below the padding": lambda row, pad: pad - np.abs(row),
    "above the padding": lambda row, pad: pad + np.abs(row),
    "far below the padding": lambda row, pad: pad - OUTLIER_FACTOR * np.abs(row),
    "far above the padding": lambda row, pad: pad + OUTLIER_FACTOR * np.abs(row),
}


def resize_rows(inputs: Arrays, ragged: Ragged, length: int) -> Arrays:
    """Make rows of another length: cut them, or repeat them from their beginning."""
    return {
        name: array if (item := ragged["inputs"].get(name)) is None else _resize(array, item["axis"], length)
        for name, array in inputs.items()
    }


def _resize(array: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    return np.ascontiguousarray(np.take(array, np.arange(length) % array.shape[axis], axis))


def list_lengths(inputs: Arrays, ragged: Ragged) -> list[int]:
    """Lengths to try a model with: that of the examples first, then half, double and a quarter of it."""
    own = next((inputs[name].shape[item["axis"]] for name, item in ragged["inputs"].items() if name in inputs), 0)
    return list(dict.fromkeys(length for length in (own, (own + 1) // 2, 2 * own, (own + 3) // 4) if length)) if own else []


def prove_padding(infer: Infer, inputs: Arrays, ragged: Ragged, measure: Measure) -> str:
    """Say why rows of different lengths must not be joined; an empty string when each answers as it does alone.

    A batch holds examples of several lengths, and an outlier that is the longest: floats a hundred times larger. Further ones
    hold rows that are small, negative, and on either side of what fills rows up: the largest of a row may be the padding's.

    Args:
        infer: runs the model.
        inputs: examples, all of one length.
        ragged: what is padded with what, and which outputs are cut.
        measure: how far two answers are apart.
    """
    lengths = list_lengths(inputs, ragged)
    if not lengths:
        return "the version has no examples to try it with"
    if problem := _find_bad_pad(inputs, ragged):
        return problem
    rows: list[tuple[int, Arrays, Arrays]] = []
    for index, length in enumerate(lengths):
        row = resize_rows({name: _pick(array, index) for name, array in inputs.items()}, ragged, length)
        if (answer := try_row(infer, row)) is not None:
            rows.append((length, row, answer))
    if len({length for length, *_ in rows}) < 2:
        return f"of the lengths {', '.join(map(str, lengths))} the model runs at one alone"
    longest = max(length for length, *_ in rows)
    outlier = {name: _exaggerate(array) for name, array in resize_rows(rows[0][1], ragged, longest).items()}
    if (answer := try_row(infer, outlier)) is not None:
        rows.append((longest, outlier, answer))
    return _compare(infer, rows, ragged, measure) or _try_other_rows(infer, inputs, ragged, measure, rows)


def measure_lengths(infer: Infer, inputs: Arrays, ragged: Ragged, budget_s: float) -> dict[int, float]:
    """Seconds that one row of some lengths takes, the faster of two runs; stops after `budget_s`."""
    times: dict[int, float] = {}
    first = {name: array[:1] for name, array in inputs.items()}
    start = time.perf_counter()
    for length in list_lengths(inputs, ragged)[1:]:
        row = resize_rows(first, ragged, length)
        for _ in range(2):
            before = time.perf_counter()
            if before - start > budget_s or try_row(infer, row) is None:
                break
            took = time.perf_counter() - before
            times[length] = min(took, times.get(length, took))
    return times


def _compare(infer: Infer, rows: list[tuple[int, Arrays, Arrays]], ragged: Ragged, measure: Measure) -> str:
    together = try_row(infer, _join([row for _, row, _ in rows], ragged, max(length for length, *_ in rows)))
    if together is None:
        return "the model fails on rows of different lengths, padded to the longest"
    for index, (length, _, alone) in enumerate(rows):
        for name, expected in alone.items():
            got = together[name][index : index + 1]
            if (axis := ragged["outputs"].get(name)) is not None:
                got = got[(slice(None),) * axis + (slice(length),)]
            difference = measure(got, expected)
            if exceeds(difference, expected.dtype):
                return f"a row answers differently when it is padded: {describe_move(name, got, expected, difference)}"
    return ""


def _try_other_rows(
    infer: Infer, inputs: Arrays, ragged: Ragged, measure: Measure, rows: list[tuple[int, Arrays, Arrays]]
) -> str:
    """Pad rows of other numbers than the examples hold; those that the model does not take take no part."""
    shortest, longest = (choose(rows, key=lambda row: row[0]) for choose in (min, max))
    data = [name for name in ragged["inputs"] if _is_data(inputs[name])]
    for kind, change in _CHANGES.items() if data else ():
        changed = {name: _change(shortest[1][name], change, ragged["inputs"][name]["pad"]) for name in data}
        row = shortest[1] | {name: array for name, array in changed.items() if array is not None}
        answer = try_row(infer, row) if any(array is not None for array in changed.values()) else None
        if answer is not None and (move := _compare(infer, [(shortest[0], row, answer), longest], ragged, measure)):
            return f"{move}, where its numbers are {kind}"
    return ""


def _is_data(array: NDArray[Any]) -> bool:
    """Say whether an input has numbers of its own; one of two is a mask, which says what is a row's and what is padding."""
    return array.dtype.kind not in "Ob" and len(np.unique(widen(array) if is_float(array.dtype) else array)) > _NUM_OF_MASK


def _change(array: NDArray[Any], change: Change, pad: float) -> NDArray[Any] | None:
    """Change a row; None where its datatype does not hold what comes out."""
    with np.errstate(all="ignore"):
        wide = (widen(array) if is_float(array.dtype) else array).astype(np.float64)
        found = change(wide, pad if np.isfinite(pad) else 0.0)
        cast = found.astype(array.dtype)
    return np.ascontiguousarray(cast) if is_float(array.dtype) or np.array_equal(cast, found) else None


def _find_bad_pad(inputs: Arrays, ragged: Ragged) -> str:
    for name, item in ragged["inputs"].items():
        dtype, pad = inputs[name].dtype, item["pad"]
        if dtype.kind == "O":
            return f"input {name!r} is BYTES, which no number pads"
        with np.errstate(all="ignore"):
            is_kept = is_float(dtype) or float(np.array(pad).astype(dtype)) == pad
        if not is_kept:
            return f"input {name!r} cannot hold the pad value {pad}"
    return ""


def _pick(array: NDArray[Any], index: int) -> NDArray[Any]:
    place = index % len(array)
    return array[place : place + 1]


def _exaggerate(array: NDArray[Any]) -> NDArray[Any]:
    return (array * OUTLIER_FACTOR).astype(array.dtype) if is_float(array.dtype) else array


def _join(rows: list[Arrays], ragged: Ragged, length: int) -> Arrays:
    joined: Arrays = {}
    for name, first in rows[0].items():
        parts = [row[name] for row in rows]
        item = ragged["inputs"].get(name)
        if item is None:
            joined[name] = np.concatenate(parts)
            continue
        axis = item["axis"]
        joined[name] = np.empty((len(rows), *first.shape[1:axis], length, *first.shape[axis + 1 :]), first.dtype)
        fill_padded(joined[name], parts, axis, item["pad"])
    return joined
