"""How far a run is: what its epoch came to so far, the epochs before, and the batches that were left out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from argosy.train.rescue import Skip
from argosy.train.result import Epoch, Settings

__all__ = ["Standing"]

_CALM_EPOCHS: Final = 3
"""Epochs in a row whose loss must hardly change before a run counts as converged: one may be luck."""


@dataclass
class Standing:
    """How far a run is, beside the state of its step; JSON data in a checkpoint."""

    step: int = 0
    epoch: int = 1
    batch: int = 0
    """Mini-batches of this epoch that are done or left out."""
    num_rows: int = 0
    sums: list[float] = field(default_factory=list[float])
    """Of loss and metrics over these rows."""
    epoch_s: float = 0.0
    """That this epoch took so far."""
    history: list[Epoch] = field(default_factory=list[Epoch])
    best_score: float = math.inf
    best_epoch: int = 0
    num_calm: int = 0
    logged: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    """Of what steps logged in this epoch: the sum over rows, and the rows."""
    largest: float = 0.0
    """Magnitude of the losses so far."""
    skipped: list[Skip] = field(default_factory=list[Skip])
    pace: dict[str, Any] = field(default_factory=dict[str, Any])

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Standing:
        """Give what was described."""
        restored: dict[str, Any] = {**values, "history": [Epoch(**epoch) for epoch in values["history"]]}
        restored["skipped"] = [Skip(**skip) for skip in values.get("skipped", ())]
        return cls(**restored)

    def copy(self) -> Standing:
        """Give one that stays as it is while the epoch goes on."""
        logged = {name: list(pair) for name, pair in self.logged.items()}
        return dataclasses.replace(self, sums=list(self.sums), logged=logged, history=list(self.history))

    def count(self, rows: int, values: Sequence[float], logged: Mapping[str, float]) -> None:
        """Take a step in: its loss and metrics, means over these rows, and what it logged."""
        self.sums = [total + rows * value for total, value in zip(self.sums, values, strict=True)]
        self.num_rows += rows
        self.step += 1
        self.batch += 1
        self.largest = max(self.largest, abs(values[0]))
        for name, value in logged.items():
            total, count = self.logged.get(name, (0.0, 0.0))
            self.logged[name] = [total + rows * value, count + rows]

    @property
    def loss(self) -> float:
        """The mean over the rows of the epoch so far."""
        return self.sums[0] / self.num_rows

    def list_means(self, names: Iterable[str]) -> dict[str, float]:
        """Give metrics, whose names these are, and what was logged as means over the rows of the epoch so far."""
        means = {name: total / self.num_rows for name, total in zip(names, self.sums[1:], strict=True)}
        return means | {name: total / rows for name, (total, rows) in self.logged.items()}

    def begin_next(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.num_rows, self.sums, self.epoch_s = self.epoch + 1, 0, 0, [], 0.0
        self.logged = {}

    def note(self, epoch: Epoch, tolerance: float | None) -> bool:
        """Take an epoch into the history; True if it is the best so far."""
        if tolerance is not None and self.history:
            before = self.history[-1].loss
            is_calm = abs(before - epoch.loss) <= tolerance * max(abs(before), np.finfo(np.float32).tiny)
            self.num_calm = self.num_calm + 1 if is_calm else 0
        self.history.append(epoch)
        score = epoch.loss if epoch.validation_loss is None else epoch.validation_loss
        is_best = score < self.best_score
        if is_best:
            self.best_score, self.best_epoch = score, epoch.number
        return is_best

    def is_over(self, settings: Settings) -> bool:
        """Say whether the epochs are over, or nothing gets better any more."""
        if settings.epochs is not None and len(self.history) >= settings.epochs:
            return True
        if settings.tolerance is not None and self.num_calm >= _CALM_EPOCHS:
            return True
        return settings.patience is not None and len(self.history) - self.best_epoch >= settings.patience
