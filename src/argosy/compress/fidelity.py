"""How close answers are to the original's, where nobody knows what is right: measures that suit what the answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError

__all__ = ["FIDELITIES", "Fidelity", "is_distribution"]

Array = NDArray[Any]

_MASK: Final = 0.5
_OVER: Final = 1e-3
"""By which a map may leave 0 to 1, as rounding."""
_MAX_PAIRS: Final = 4_000_000
"""Of rows, whose similarity is held at once."""
_TINY: Final = 1e-12
_SUM_TOLERANCE: Final = 1e-3
"""How far probabilities may be from a sum of 1, in half precision."""


@dataclass(frozen=True)
class Fidelity:
    """One measure."""

    name: str
    best: float
    """Of equal answers."""
    compute: Callable[[Array, Array], Array]
    """From the original's answers and the others, first axis rows, a number a row. Of answers that differ in shape from row to
    row an array of arrays, one a row."""
    least_axes: int
    """That the answers must have, rows included."""
    needs: str
    """What answers it suits, for messages."""
    find_fault: Callable[[Array], str] = lambda row: ""
    """Say why a row's answer, alone along the first axis, has nothing that is measured; "" if it has."""
    least_rows: int = 1
    """Fewer always get the same answer."""
    takes_single: bool = False
    """A row's answer may be a single number, which has no direction and no best class."""
    takes_uneven: bool = True
    """Shapes may differ from row to row."""

    def check(self, outputs: Array) -> None:
        """See that it suits the original's answers: who would measure what is not there would find that nothing is lost.

        Raises:
            InputError: `bad_option`.
        """
        is_uneven = outputs.dtype.kind == "O"
        rows: list[Array] = [row[None] for row in outputs]
        is_wide = self.takes_single or any(row.size > 1 and (self.least_axes < 2 or row.shape[-1] > 1) for row in rows)
        if is_uneven and not self.takes_uneven:
            raise self._refuse("answers that differ in shape from row to row")
        if not is_wide or any(row.ndim < self.least_axes for row in rows):
            raise self._refuse(f"answers of shape {('rows', *rows[0].shape[1:])}")
        if len(rows) < self.least_rows:
            raise self._refuse(f"{len(rows)} rows, of which it always finds the same; {self.least_rows} at least are needed")
        faults = [self.find_fault(row) for row in rows]
        if all(faults):
            raise self._refuse(f"answers {faults[0]}")

    def _refuse(self, what: str) -> InputError:
        expected = f"a metric that suits them; this takes {self.needs}"
        return InputError("bad_option", option="guard.metric", got=f"{self.name} of {what}", expected=expected)


def is_distribution(outputs: Array) -> bool:
    """Say whether these are probabilities along the last axis, which all have one scale in common."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2 or not (outputs >= 0).all():
        return False
    return bool(np.allclose(outputs.sum(axis=-1, dtype=np.float64), 1.0, rtol=0, atol=_SUM_TOLERANCE))


def _flatten(outputs: Array) -> Array:
    return np.asarray(outputs, np.float64).reshape(len(outputs), -1)


def _each(measure: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Have rows of several shapes measured one by one."""

    def compute(before: Array, after: Array) -> Array:
        if before.dtype.kind != "O":
            return measure(before, after)
        return np.array([measure(old[None], new[None])[0] for old, new in zip(before, after, strict=True)], np.float64)

    return compute


def _measure_cosine(before: Array, after: Array) -> Array:
    old, new = _flatten(before), _flatten(after)
    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    products: Array = (old * new).sum(axis=1)
    cosines = products / np.maximum(lengths, _TINY)
    # Of zeros, only zeros are like them.
    same = np.asarray((old == new).all(axis=1), np.float64)
    return np.where(lengths > _TINY, cosines, same)


def _measure_agreement(before: Array, after: Array) -> Array:
    same = before.argmax(axis=-1) == after.argmax(axis=-1)
    return np.asarray(same, np.float64).reshape(len(before), -1).mean(axis=1)


def _measure_neighbours(before: Array, after: Array) -> Array:
    old, new = (_find_neighbours(_flatten(outputs)) for outputs in (before, after))
    return np.asarray(old == new, np.float64)


def _find_neighbours(rows: Array) -> Array:
    """For each row the other one whose direction is most like its own."""
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.maximum(lengths, _TINY)
    chunk = max(1, _MAX_PAIRS // max(1, len(rows)))
    found: list[Array] = []
    for start in range(0, len(rows), chunk):
        similar = np.asarray(rows[start : start + chunk] @ rows.T, np.float64)
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        found.append(np.asarray(similar.argmax(axis=1)))
    whole: Array = np.concatenate(found)
    return whole


def _measure_kl(before: Array, after: Array) -> Array:
    old, new = (_to_log_probabilities(outputs) for outputs in (before, after))
    divergence = np.sum(np.exp(old) * (old - new), axis=-1)
    return np.maximum(divergence, 0.0).reshape(len(before), -1).mean(axis=1)


def _to_log_probabilities(outputs: Array) -> Array:
    wide = np.asarray(outputs, np.float64)
    if is_distribution(wide):
        return np.log(np.maximum(wide, _TINY))
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _measure_largest(before: Array, after: Array) -> Array:
    if before.dtype.kind == "O":
        scale = max(max((float(np.abs(row).max()) for row in before if row.size), default=0.0), _TINY)
        rows = [float(np.abs(new - old).max()) if old.size else 0.0 for old, new in zip(before, after, strict=True)]
        return np.array(rows) / scale
    old, new = _flatten(before), _flatten(after)
    return np.abs(new - old).max(axis=1) / max(float(np.abs(old).max()), _TINY)


def _measure_iou(before: Array, after: Array) -> Array:
    old, new = _flatten(before) > _MASK, _flatten(after) > _MASK
    both, either = (old & new).sum(axis=1), (old | new).sum(axis=1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _measure_text(before: Array, after: Array) -> Array:
    return np.array([_compare_texts(_read(old), _read(new)) for old, new in zip(before, after, strict=True)])


def _read(steps: Array) -> list[int]:
    """Read what a recogniser says: the likeliest symbol of each step, repetitions once, without the blank, which is 0."""
    symbols = steps.reshape(-1, steps.shape[-1]).argmax(axis=-1)
    kept = np.flatnonzero(np.concatenate([[True], symbols[1:] != symbols[:-1]]) & (symbols != 0))
    return symbols[kept].tolist()


def _compare_texts(one: list[int], other: list[int]) -> float:
    """1 - edit distance / length of the longer."""
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    costs = list(range(len(other) + 1))
    for index, symbol in enumerate(one):
        previous, costs[0] = costs[0], index + 1
        for place, found in enumerate(other):
            previous, costs[place + 1] = (
                costs[place + 1],
                min(costs[place + 1] + 1, costs[place] + 1, previous + (symbol != found)),
            )
    return 1.0 - costs[-1] / longest


def _find_no_map(row: Array) -> str:
    if not (row.min() >= -_OVER and row.max() <= 1.0 + _OVER):
        return f"from {row.min():.3g} to {row.max():.3g}"
    return "" if (row > _MASK).any() else f"that nowhere exceed {_MASK}"


def _find_no_text(row: Array) -> str:
    return "" if _read(row[0]) else "in which no symbol is the likeliest, but the blank"


FIDELITIES: Final[Mapping[str, Fidelity]] = {
    fidelity.name: fidelity
    for fidelity in (
        Fidelity("cosine", 1.0, _each(_measure_cosine), 1, "vectors"),
        Fidelity("agreement", 1.0, _each(_measure_agreement), 2, "scores of classes along the last axis"),
        Fidelity(
            "neighbours",
            1.0,
            _measure_neighbours,
            2,
            "vectors of one length, of which some are alike",
            least_rows=3,
            takes_uneven=False,
        ),
        Fidelity("kl", 0.0, _each(_measure_kl), 2, "scores or probabilities of classes along the last axis"),
        Fidelity("max_difference", 0.0, _measure_largest, 1, "numbers", takes_single=True),
        Fidelity(
            "iou",
            1.0,
            _each(_measure_iou),
            2,
            "maps of 0 to 1, such as a detector's or of segments, some of which hold something",
            _find_no_map,
        ),
        Fidelity(
            "text",
            1.0,
            _each(_measure_text),
            3,
            "scores of symbols (the first is the blank) by steps, as of a text recogniser that reads something",
            _find_no_text,
        ),
    )
}
"""By name: the mean cosine of a row's answer; the part of rows whose best class stays; whose nearest other row stays; the mean
Kullback-Leibler divergence in nats; the largest difference of any number, relative to the largest number; the mean overlap of
what is above 0.5; the mean similarity of the texts that are read (1 - edit distance / length)."""
