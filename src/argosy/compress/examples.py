"""Which rows' answers compression changed most, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.kind import Meaning
from argosy.compress.metrics import name_answers
from argosy.datatypes import is_float
from argosy.signature import Arrays

__all__ = ["Example", "find_examples"]

Array = NDArray[Any]

_NUM_EXAMPLES: Final = 8
_MAX_NUMBERS: Final = 4
"""Of an answer that are printed."""
_MAX_TEXT: Final = 40


@dataclass(frozen=True)
class Example:
    """A row that is answered otherwise."""

    row: int
    """Its place in what was given, from 0; golden examples by theirs."""
    before: str
    """The original's answer, in short."""
    after: str
    moved: float
    """Root mean square of the difference of its numbers, relative to their spread over all rows; of what are no fractions, 1."""
    changes_class: bool
    """Another class, label, yes or no."""


def find_examples(before: Sequence[Arrays], after: Sequence[Arrays], output: str, meaning: Meaning) -> list[Example]:
    """Find the rows whose answers moved most; those that changed their class come first.

    Args:
        before: the original's answer to each row.
        after: another model's.
        output: which of the output tensors.
        meaning: of this tensor.

    Returns:
        At most 8; `row` is the place in `before`.
    """
    olds, news = ([answer[output] for answer in answers] for answers in (before, after))
    scale = _measure_spread(olds)
    found: list[Example] = []
    for row, (old, new) in enumerate(zip(olds, news, strict=True)):
        if old.shape != new.shape or np.array_equal(old, new):
            continue
        changes = meaning.kind in ("classes", "yes_no", "labels") or not is_float(old.dtype)
        is_other = changes and not np.array_equal(name_answers(old, meaning), name_answers(new, meaning))
        moved = _measure_move(old, new, scale)
        found.append(Example(row, _print(old, meaning), _print(new, meaning), moved, is_other))
    return sorted(found, key=lambda one: (not one.changes_class, -one.moved))[:_NUM_EXAMPLES]


def _measure_spread(olds: Sequence[Array]) -> float:
    if not is_float(olds[0].dtype):
        return 1.0
    everything = np.concatenate([old.ravel().astype(np.float64) for old in olds])
    everything = everything[np.isfinite(everything)]
    return float(everything.std()) or float(np.abs(everything).max(initial=0.0)) or 1.0


def _measure_move(old: Array, new: Array, scale: float) -> float:
    if not is_float(old.dtype):
        return 1.0
    with np.errstate(all="ignore"):
        moved = float(np.sqrt(np.mean(np.square(new.astype(np.float64) - old.astype(np.float64))))) / scale
    return moved if np.isfinite(moved) else float("inf")


def _print(answer: Array, meaning: Meaning) -> str:
    """Print an answer in short: its class with the score, yes or no with the number, or the first numbers."""
    flat = answer.ravel()
    if is_float(answer.dtype) and meaning.kind == "classes" and answer.ndim == 2 and len(answer) == 1:
        best = int(flat.argmax())
        return f"class {best} ({flat[best]:.4g})"
    if meaning.kind == "yes_no" and flat.size == 1:
        return f"{'yes' if flat[0] > meaning.threshold else 'no'} ({flat[0]:.4g})"
    parts = [f"{value:.4g}" if is_float(answer.dtype) else str(value)[:_MAX_TEXT] for value in flat[:_MAX_NUMBERS].tolist()]
    return ", ".join(parts) + (f" ... ({flat.size} numbers)" if flat.size > _MAX_NUMBERS else "")
