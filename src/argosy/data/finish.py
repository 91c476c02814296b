"""What is done with the rows that a reader gives, in the threads that read: parts, types, labels, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import BadRow, Chunk
from argosy.data.choice import Choice
from argosy.data.prepare import Encoder
from argosy.data.split import Part
from argosy.errors import InputError

__all__ = ["Finish"]


@dataclass(frozen=True)
class Finish:
    """From a reader's columns to those that rows are made of."""

    choice: Choice
    """What rows are made of."""
    names: tuple[str, ...]
    """The columns of the files that this takes."""
    content: tuple[str, ...]
    """The columns by which a row falls to a part that has no key: those that the stream was opened with."""
    casts: Mapping[str, np.dtype[Any]]
    """Types that numbers are brought to."""
    classes: int | Sequence[str] | None
    part: Part | None = None
    encoder: Encoder | None = None

    def list_names(self) -> list[str]:
        """Give the columns to read."""
        if self.part is None:
            return list(self.names)
        return list(dict.fromkeys([*self.names, *([self.part.key] if self.part.key is not None else self.content)]))

    def apply(self, chunk: Chunk) -> Chunk:
        """Finish some rows; where they are only counted, other columns than the key are not there."""
        if self.part is not None and len(chunk.rows):
            # First: a row stays in its part, however it is used.
            names = self.content if self.part.key is None else (self.part.key,)
            chosen = self.part.choose({name: chunk.columns[name] for name in names})
            kept = {name: array[chosen] for name, array in chunk.columns.items() if name in self.names}
            chunk = Chunk(kept, chunk.rows[chosen], chunk.bad)
        for name, dtype in self.casts.items():
            if name in chunk.columns and len(chunk.rows):
                chunk = _cast(chunk, name, dtype)
        targets = self.choice.parts[1]
        if self.classes is not None and isinstance(targets, str) and targets in chunk.columns and len(chunk.rows):
            chunk = _number_labels(chunk, targets, self.classes)
        if self.encoder is not None and len(chunk.rows) and chunk.columns.keys() >= set(self.encoder.names):
            chunk = self.encoder.encode(chunk)
        return chunk


def _cast(chunk: Chunk, name: str, dtype: np.dtype[Any]) -> Chunk:
    array = chunk.columns[name]
    if array.dtype == dtype:
        return chunk
    if array.dtype.kind == "O":
        raise InputError("bad_option", option="schema", got=str(dtype), expected=f"string: {name} holds no numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype)
        kept: Any = np.isfinite(made) if dtype.kind == "f" else made == array
    good: NDArray[np.bool_] = kept.reshape(len(array), -1).all(axis=1)
    whole = Chunk({**chunk.columns, name: made}, chunk.rows, chunk.bad)
    return _leave_out(whole, good, [f"{name} holds a number that {dtype} has not"] * int((~good).sum()))


def _number_labels(chunk: Chunk, name: str, classes: int | Sequence[str]) -> Chunk:
    """Hold labels against the classes that there are."""
    labels = chunk.columns[name]
    if not isinstance(classes, int):
        places = {label: place for place, label in enumerate(classes)}
        numbers = np.array([places.get(label, -1) for label in labels.tolist()], np.int64)
        good = numbers >= 0
    elif labels.dtype.kind not in "iubf" or labels.ndim != 1:
        raise InputError("bad_option", option="classes", got=classes, expected=f"names of classes: {name} holds no numbers")
    else:
        good = (labels >= 0) & (labels < classes) & (labels == np.trunc(labels))
        numbers = labels
    whole = Chunk({**chunk.columns, name: numbers}, chunk.rows, chunk.bad)
    wrong: list[object] = labels[~good].tolist()
    return _leave_out(whole, good, [f"{name} is {repr(label)[:80]}, which is none of the classes" for label in wrong])


def _leave_out(chunk: Chunk, good: NDArray[np.bool_], details: Sequence[str]) -> Chunk:
    if good.all():
        return chunk
    bad = [BadRow(row, detail) for row, detail in zip(chunk.rows[~good].tolist(), details, strict=True)]
    return Chunk({name: array[good] for name, array in chunk.columns.items()}, chunk.rows[good], sorted([*chunk.bad, *bad]))
