"""Requests in files: those of one shape together, in the form of golden examples, which the child reads with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from argosy.signature import Arrays
from argosy.store.golden import Golden, decode_golden, encode_golden

__all__ = ["RowFiles", "Rows", "read_answers", "read_rows", "stack_answers", "write_rows"]

Rows = Sequence[Arrays]
"""Requests: of each its inputs by name, as a client sends them; where the signature has rows, of one row each."""


@dataclass(frozen=True)
class RowFiles:
    """Requests that were written."""

    paths: tuple[Path, ...]
    places: tuple[tuple[int, ...], ...]
    """For each file, which of the requests stand in it, in order."""

    @property
    def num_rows(self) -> int:
        """How many requests there are."""
        return sum(map(len, self.places))


def write_rows(rows: Rows, folder: Path) -> RowFiles:
    """Write requests into a new folder, a file for each combination of shapes.

    Raises:
        OSError: the folder is there already, or the disk is full.
    """
    folder.mkdir(parents=True)
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, arrays in enumerate(rows):
        key = tuple((name, array.shape, array.dtype.str) for name, array in arrays.items())
        groups.setdefault(key, []).append(place)
    paths: list[Path] = []
    for index, places in enumerate(groups.values()):
        stacked = {name: np.stack([rows[place][name] for place in places]) for name in rows[places[0]]}
        path = folder / f"rows{index}.npz"
        path.write_bytes(encode_golden(Golden(stacked, {})))
        paths.append(path)
    return RowFiles(tuple(paths), tuple(map(tuple, groups.values())))


def read_rows(files: RowFiles) -> list[Arrays]:
    """Read the requests that were written, in their order.

    Raises:
        InputError: `bad_golden`, a file is no such one.
    """
    rows: dict[int, Arrays] = {}
    for path, places in zip(files.paths, files.places, strict=True):
        stacked = decode_golden(path.read_bytes(), "the rows").inputs
        # With the ellipsis what has no axes stays an array.
        rows |= {place: {name: array[at, ...] for name, array in stacked.items()} for at, place in enumerate(places)}
    return [rows[place] for place in sorted(rows)]


def read_answers(files: RowFiles, paths: Sequence[Path]) -> list[Arrays]:
    """Read the answers to requests, in the requests' order.

    Args:
        files: the requests.
        paths: for each of their files those of the answers, as the child has written them.

    Raises:
        InputError: `bad_golden`, a file is no such one.
    """
    answers: dict[int, Arrays] = {}
    for places, path in zip(files.places, paths, strict=True):
        found = decode_golden(path.read_bytes(), "the answers").outputs
        whole = {name.removeprefix("all:"): array for name, array in found.items() if name.startswith("all:")}
        for index, place in enumerate(places):
            own = {name.partition(":")[2]: array for name, array in found.items() if name.startswith(f"{index}:")}
            answers[place] = {**{name: array[index] for name, array in whole.items()}, **own}
    return [answers[place] for place in sorted(answers)]


def stack_answers(answers: Sequence[Arrays]) -> Arrays | None:
    """Put answers of one row each, or of one shape each, into arrays whose first axis counts them; None where shapes differ.

    An answer to a row has a first axis of one row, which becomes that axis; of any other, a new axis is put in front.
    """
    if not answers:
        return None
    stacked: Arrays = {}
    for name, first in answers[0].items():
        arrays = [answer[name] for answer in answers if name in answer]
        if len(arrays) < len(answers) or any(array.shape != first.shape for array in arrays):
            return None
        is_row = first.ndim > 0 and first.shape[0] == 1
        stacked[name] = np.concatenate(arrays) if is_row else np.stack(arrays)
    return stacked
