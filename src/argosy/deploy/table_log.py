"""The table that fronts are to serve by, and when each part of it changed last: a front is sent only what it lacks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Generic, TypeVar

from argosy.serve.wire.table import RepositoryEntry, Table, TableEntry

__all__ = ["TableLog"]

Entry = TypeVar("Entry", TableEntry, RepositoryEntry)


class TableLog:
    """The latest table, from which the change of any earlier one of the same log can be told."""

    def __init__(self) -> None:
        # Epochs grow over restarts of the control process, too: no front takes another's table for one of this log.
        self.epoch = time.time_ns() // 1_000_000
        self._deployments: _Part[TableEntry] = _Part()
        self._repository: _Part[RepositoryEntry] = _Part()

    def update(
        self,
        deployments: Mapping[str, TableEntry | None] = {},
        repository: Mapping[str, RepositoryEntry | None] = {},
    ) -> bool:
        """Take what some entries are now, None for one that is no more. Returns whether the table became another one."""
        parts = (self._deployments.find_changes(deployments), self._repository.find_changes(repository))
        if not any(parts):
            return False
        self.epoch += 1
        self._deployments.take(parts[0], self.epoch)
        self._repository.take(parts[1], self.epoch)
        return True

    def get_change(self, base: int) -> Table:
        """What a front needs that serves by the table of an epoch of this log; the whole table for 0."""
        deployments, removed = self._deployments.list_since(base)
        repository, repository_removed = self._repository.list_since(base)
        if not base:
            return Table(self.epoch, deployments, repository)
        return Table(self.epoch, deployments, repository, base, removed, repository_removed)


class _Part(Generic[Entry]):
    """Entries by name, each with the epoch of its last change; the one that changed last stands last."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, Entry | None]] = {}

    def find_changes(self, entries: Mapping[str, Entry | None]) -> dict[str, Entry | None]:
        """Those that are not known to be so."""
        unknown = (0, None)
        return {name: entry for name, entry in entries.items() if self._entries.get(name, unknown)[1] != entry}

    def take(self, changes: Mapping[str, Entry | None], epoch: int) -> None:
        """Keep what has changed. One that is removed is kept as None, for fronts that are behind."""
        for name, entry in changes.items():
            self._entries.pop(name, None)
            self._entries[name] = (epoch, entry)

    def list_since(self, epoch: int) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
        """Entries that have changed since, and the names of those that are no more, both by name."""
        changed: dict[str, Entry | None] = {}
        for name, (changed_at, entry) in reversed(self._entries.items()):
            if changed_at <= epoch:
                break
            changed[name] = entry
        present = tuple(entry for _, entry in sorted(changed.items()) if entry is not None)
        return present, tuple(sorted(name for name, entry in changed.items() if entry is None))
