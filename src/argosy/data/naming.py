"""Rows named for people: in which file each stands, and which it is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import Block, Reader

__all__ = ["make_places", "name_rows"]

_NUM_NAMED: Final = 1024

Places = NDArray[np.int64]
"""A line for each row: its file, the place of its block there, and its own in the block."""


def make_places(block: Block, rows: NDArray[np.int64]) -> Places:
    """Give the places of rows of a block."""
    places = np.empty((len(rows), 3), np.int64)
    places[:] = block.file, block.place, 0
    places[:, 2] = rows
    return places


def name_rows(reader: Reader, blocks: Sequence[Block], places: Places) -> list[str]:
    """Name rows, a text for each file; of pictures for each of them."""
    known = {(block.file, block.place): block for block in blocks}
    named = places[:_NUM_NAMED]
    by_file: dict[tuple[Path, str], list[int]] = {}
    for file, place in np.unique(named[:, :2], axis=0).tolist():
        rows: list[int] = named[(named[:, 0] == file) & (named[:, 1] == place), 2].tolist()
        block = known[file, place]
        first = reader.locate(block, 0)
        if first.unit == "picture":
            by_file |= {(reader.locate(block, row).path, first.unit): [] for row in sorted(rows)}
        else:
            by_file.setdefault((first.path, first.unit), []).extend(first.number + row for row in rows)
    texts = [repr(str(path)) + (f", {unit}s {_join(numbers)}" if numbers else "") for (path, unit), numbers in by_file.items()]
    return texts if len(places) <= _NUM_NAMED else [*texts, f"and {len(places) - _NUM_NAMED} more rows"]


def _join(numbers: Sequence[int]) -> str:
    """Write numbers with those that follow one another as a range: `3, 5-9`."""
    order: Any = np.unique(numbers)
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
