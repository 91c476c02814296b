"""The order of rows: a function of the data set, the seed and the epoch alone.

Blocks (row groups, record batches, ranges of lines, rows or files) are drawn in a random order. `LANES` of them are open at a
time, and give a chunk each in turn. As many chunks as hold the rows of the buffer are a window, whose rows are drawn in a
random order again. Batches are cut from windows one after the other. Without shuffling, blocks come in their order, one at
a time, and rows in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import Block

__all__ = ["LANES", "Piece", "draw_rows", "list_pieces", "list_windows"]

LANES: Final = 4
"""Blocks that are open at a time: rows of as many places meet in the buffer."""


class Piece(NamedTuple):
    """A chunk that is to be read."""

    block: Block
    first: int
    """Row of the block."""
    limit: int
    """Rows of a chunk of this block."""
    num_rows: int
    """Before bad ones and those of other parts are left out; of text, about."""

    @property
    def is_last(self) -> bool:
        """Nothing of the block stands behind it."""
        return self.block.num_rows is None or self.first + self.limit >= self.block.num_rows


def list_pieces(
    blocks: Sequence[Block], count: Callable[[Block], int], limit: Callable[[Block], int], seed: int | None, epoch: int
) -> Iterator[Piece]:
    """Give the chunks of an epoch in their order.

    Args:
        blocks: of the data set.
        count: gives the rows of a block whose number is not known, about.
        limit: gives the rows of a chunk of a block.
        seed: of the order; None: as they stand.
        epoch: counted from 1.
    """
    order = range(len(blocks)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(blocks)).tolist()
    waiting = iter(order)
    lanes: list[Iterator[Piece]] = []
    while True:
        while len(lanes) < (1 if seed is None else LANES) and (number := next(waiting, None)) is not None:
            lanes.append(_cut_block(blocks[number], count, limit))
        if not lanes:
            return
        still: list[Iterator[Piece]] = []
        for lane in lanes:
            piece = next(lane, None)
            if piece is not None:
                yield piece
                still.append(lane)
        lanes = still


def _cut_block(block: Block, count: Callable[[Block], int], limit: Callable[[Block], int]) -> Iterator[Piece]:
    if block.num_rows is None:
        yield Piece(block, 0, 0, count(block))
        return
    step = limit(block)
    for first in range(0, block.num_rows, step):
        yield Piece(block, first, step, min(step, block.num_rows - first))


def list_windows(pieces: Iterator[Piece], buffer_rows: int) -> Iterator[list[Piece]]:
    """Group chunks until a group has the rows of the buffer."""
    window: list[Piece] = []
    num_rows = 0
    for piece in pieces:
        if window and num_rows + piece.num_rows > buffer_rows:
            yield window
            window, num_rows = [], 0
        window.append(piece)
        num_rows += piece.num_rows
    if window:
        yield window


def draw_rows(num_rows: int, seed: int | None, epoch: int, window: int) -> NDArray[np.int64] | None:
    """Give the order of a window's rows; None: as they stand."""
    return None if seed is None else np.random.default_rng([seed, epoch, window]).permutation(num_rows)
