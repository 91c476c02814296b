"""Rows that cannot be used: counted once each, the first of them named, and above a limit an error."""

from __future__ import annotations

from typing import Any, Final

from argosy.data.block import BadRow, Block, Reader
from argosy.errors import InputError

__all__ = ["BadRows"]

_NUM_SHOWN: Final = 10


class BadRows:
    """What one reader of a stream left out, over all its epochs.

    Args:
        limit: rows that may be left out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[tuple[int, int, int]] = set()
        self.count = 0
        self.first: list[str] = []
        """The first that were met, in words: where each stands, and what is wrong."""

    def add(self, reader: Reader, block: Block, first: int, rows: list[BadRow]) -> None:
        """Count the bad rows of a chunk, unless they are counted already.

        Raises:
            InputError: `bad_rows`, they are more than the limit.
        """
        key = block.file, block.place, first
        if not rows or key in self._seen:
            return
        self._seen.add(key)
        self.count += len(rows)
        for row in rows[: _NUM_SHOWN - len(self.first)]:
            self.first.append(f"{reader.locate(block, row.row)}: {row.detail}")
        if self.count > self._limit:
            raise InputError("bad_rows", count=self.count, limit=self._limit, first="; ".join(self.first))

    def describe(self) -> dict[str, Any]:
        """Say what was left out, as JSON data; nothing if nothing was."""
        return {"left_out": {"rows": self.count, "first": self.first}} if self.count else {}
