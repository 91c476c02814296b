"""What a search came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argosy.search.record import Direction, Record, list_ancestry
from argosy.search.space import Space
from argosy.store.manifest import Version

__all__ = ["SearchResult"]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search of a program came to."""

    name: str
    space: Space
    objectives: dict[str, Direction]
    """The metric first."""
    method: str
    guard: dict[str, float]
    """Bounds by objective."""
    trials: tuple[Record, ...]
    front: tuple[Record, ...]
    """Those within the guard that no other is as good as in everything, and better in something."""
    best: Record | None
    """Within the guard; None if no trial is."""
    version: Version | None
    """What was published of it."""
    importance: dict[str, float]
    """How much each parameter decides of the metric, parts of 1; {} where too few trials tell."""
    folder: Path
    """Holds the journal, and the models of the front."""
    journal: str
    """Digest of the journal."""
    seconds: float
    """That this call took."""

    @property
    def metric(self) -> str:
        """What is measured after each epoch."""
        return next(iter(self.objectives))

    @property
    def schedule(self) -> tuple[Record, ...]:
        """The trials that led to the best one, each going on from the one before: more than one of a population alone."""
        return () if self.best is None else tuple(list_ancestry(self.trials, self.best))

    def count(self, state: str) -> int:
        """Give how many trials are in a state: `done`, `stopped`, `failed`."""
        return sum(1 for record in self.trials if record.state == state)

    def describe(self) -> dict[str, Any]:
        """Give everything but the version, as JSON data."""
        return {
            "search": self.name,
            "space": self.space.describe(),
            "objectives": dict(self.objectives),
            "method": self.method,
            "guard": self.guard,
            "best": None if self.best is None else self.best.describe(),
            "schedule": [record.number for record in self.schedule],
            "front": [record.number for record in self.front],
            "importance": self.importance,
            "trials": [record.describe() for record in self.trials],
            "folder": str(self.folder),
            "journal": self.journal,
            "seconds": self.seconds,
        }
