"""The loop: epochs and steps, validation, early stopping, checkpoints. Knows no framework and no file."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from argosy.errors import ModelError
from argosy.frameworks.base import Framework, Step
from argosy.signature import Arrays
from argosy.train.checkpoint import Keeper
from argosy.train.data import Dataset
from argosy.train.losses import Criterion
from argosy.train.progress import Progress
from argosy.train.result import Epoch, Settings
from argosy.train.source import Source

__all__ = ["Loop"]

_WEIGHTS: Final = "weights/"
"""Before the names of a model's arrays in the state of a step."""
_CALM_EPOCHS: Final = 3
"""Epochs in a row whose loss must hardly change before a run counts as converged: one may be luck."""


@dataclass
class _Standing:
    """How far a run is, beside the state of its step; JSON data in a checkpoint."""

    step: int = 0
    epoch: int = 1
    batch: int = 0
    """Mini-batches of this epoch that are done."""
    num_rows: int = 0
    sums: list[float] = field(default_factory=list[float])
    """Of loss and metrics over these rows."""
    epoch_s: float = 0.0
    """That this epoch took so far."""
    history: list[Epoch] = field(default_factory=list[Epoch])
    best_score: float = math.inf
    best_epoch: int = 0
    num_calm: int = 0

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def restore(cls, values: dict[str, Any]) -> _Standing:
        restored: dict[str, Any] = {**values, "history": [Epoch(**epoch) for epoch in values["history"]]}
        return cls(**restored)


class Loop:
    """One run of training."""

    def __init__(
        self,
        framework: Framework,
        model: Any,
        step: Step,
        criterion: Criterion,
        settings: Settings,
        keeper: Keeper | None,
        watchers: Sequence[Progress],
        on_epoch: Callable[[Epoch], bool | None] | None = None,
        *,
        is_own_rule: bool = False,
    ) -> None:
        self._framework = framework
        self._model = model
        self._step = step
        self._criterion = criterion
        self._settings = settings
        self._keeper = keeper
        self._watchers = watchers
        self._on_epoch = on_epoch
        self._is_own_rule = is_own_rule
        """The optimizer is the framework's own."""
        self._is_ended = False
        self._standing = _Standing()
        self._best: Arrays | None = None

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self._standing.step

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            InputError: `bad_checkpoint`.
        """
        kept = self._keeper.load() if self._keeper else None
        if kept is None:
            return False
        state, values = kept
        best = self._keeper.load_best() if self._keeper and self._settings.patience is not None else None
        self._best = best and self._adopt(best)
        self._step.set_state(self._adopt(state))
        self._standing = _Standing.restore(values)
        return True

    def _adopt(self, state: Arrays) -> Arrays:
        """Leave of a parent's state what this run takes over."""
        if not (self._keeper and self._keeper.is_inherited and self._is_own_rule):
            return state
        # Frameworks keep settings, such as the learning rate, in what their optimizers remember: those of another run.
        fresh = {name: array for name, array in self._step.get_state().items() if not name.startswith(_WEIGHTS)}
        return fresh | {name: array for name, array in state.items() if name.startswith(_WEIGHTS)}

    def run(self, source: Source, validation: Dataset | None) -> tuple[Epoch, ...]:
        """Train until the epochs are over, or nothing gets better any more.

        Raises:
            ModelError: `not_finite`; the last good state is kept as a checkpoint.
        """
        while not self._is_over():
            self._fit_epoch(source)
            self._end_epoch(validation)
        if self._settings.patience is not None and self._best is not None:
            self._step.set_state(self._best)
        self._step.sync()
        if self._keeper:
            self._save()
        return tuple(self._standing.history)

    def _is_over(self) -> bool:
        standing, settings = self._standing, self._settings
        if self._is_ended:
            return True
        if settings.epochs is not None and len(standing.history) >= settings.epochs:
            return True
        if settings.tolerance is not None and standing.num_calm >= _CALM_EPOCHS:
            return True
        return settings.patience is not None and len(standing.history) - standing.best_epoch >= settings.patience

    def _fit_epoch(self, source: Source) -> None:
        """Take the steps of one epoch, or those that are left of it."""
        standing = self._standing
        started_s = time.perf_counter() - standing.epoch_s
        computes: list[Any] = []
        for x, y in source.iterate(standing.epoch, standing.batch):
            if not computes:
                computes = [self._criterion.get_metric(name, y) for name in self._list_means()]
                standing.sums = standing.sums or [0.0] * (1 + len(computes))
            loss, outputs = self._take_step(x, y)
            values = (loss, *(compute(outputs, y) for compute in computes))
            standing.sums = [total + len(x) * value for total, value in zip(standing.sums, values, strict=True)]
            standing.num_rows += len(x)
            standing.step += 1
            standing.batch += 1
            for watcher in self._watchers:
                watcher.end_step(standing.step, standing.sums[0] / standing.num_rows)
            if self._keeper and self._keeper.is_due(standing.step):
                standing.epoch_s = time.perf_counter() - started_s
                self._save()
        standing.epoch_s = time.perf_counter() - started_s

    def _list_means(self) -> list[str]:
        """Name the metrics that mini-batches tell."""
        return [name for name in self._settings.metrics if self._criterion.is_mean(name)]

    def _take_step(self, x: Any, y: Any) -> tuple[float, Any]:
        try:
            return self._step(x, y, self._standing.step + 1)
        except ModelError as error:
            if error.key != "not_finite" or self._keeper is None:
                raise
            self._save()
            fields: dict[str, Any] = {**error.fields, "kept": f"; the state before it is kept in {self._keeper.latest}"}
            raise ModelError("not_finite", **fields) from error

    def _end_epoch(self, validation: Dataset | None) -> None:
        standing, started_s = self._standing, time.perf_counter()
        means = [total / standing.num_rows for total in standing.sums]
        validation_loss, validation_metrics = None, dict[str, float]()
        if validation is not None:
            self._step.sync()
            outputs = self._framework.predict(self._model, validation.x)
            validation_loss = self._criterion.compute(outputs, validation.y)
            for name in self._settings.metrics:
                validation_metrics[name] = self._criterion.get_metric(name, validation.y)(outputs, validation.y)
        duration_s = standing.epoch_s + time.perf_counter() - started_s
        metrics = dict(zip(self._list_means(), means[1:], strict=True))
        epoch = Epoch(standing.epoch, means[0], metrics, validation_loss, validation_metrics, duration_s)
        self._judge(epoch)
        standing.epoch, standing.batch, standing.num_rows, standing.sums, standing.epoch_s = standing.epoch + 1, 0, 0, [], 0.0
        if self._on_epoch is not None:
            self._is_ended = self._on_epoch(epoch) is True

    def _judge(self, epoch: Epoch) -> None:
        """Take an epoch into the history; keep its state if it is the best so far."""
        standing, settings = self._standing, self._settings
        if settings.tolerance is not None and standing.history:
            before = standing.history[-1].loss
            is_calm = abs(before - epoch.loss) <= settings.tolerance * max(abs(before), np.finfo(np.float32).tiny)
            standing.num_calm = standing.num_calm + 1 if is_calm else 0
        standing.history.append(epoch)
        score = epoch.loss if epoch.validation_loss is None else epoch.validation_loss
        if score < standing.best_score:
            standing.best_score, standing.best_epoch = score, epoch.number
            if settings.patience is not None:
                self._best = self._step.get_state()
            if self._keeper:
                self._keeper.save_best(self._best or self._step.get_state(), standing.describe())
        for watcher in self._watchers:
            watcher.end_epoch(epoch)

    def _save(self) -> None:
        assert self._keeper is not None
        self._keeper.save(self._step.get_state(), self._standing.describe(), self._standing.step)
