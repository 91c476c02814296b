"""The loop: epochs and steps, validation, early stopping, checkpoints, rescue. Knows no framework and no file."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, Framework, Step
from argosy.frameworks.fitting import Journal, Listener
from argosy.signature import Arrays
from argosy.train.average import Average
from argosy.train.checkpoint import Keeper
from argosy.train.measures import Measure
from argosy.train.objective import Objective
from argosy.train.pace import Pace
from argosy.train.progress import Progress
from argosy.train.rescue import Kept, Rescue, Skip, Verdict
from argosy.train.result import Epoch, Settings
from argosy.train.source import Source
from argosy.train.validation import Validation

__all__ = ["Hooks", "Loop", "Program", "Taken"]

_WEIGHTS: Final = "weights/"
"""Before the names of a model's arrays in the state of a step."""
_CALLBACKS: Final = "callbacks/"
"""Before the names of what a framework's callbacks remember."""
_CALM_EPOCHS: Final = 3
"""Epochs in a row whose loss must hardly change before a run counts as converged: one may be luck."""


class Taken(NamedTuple):
    """A step that was taken, as `on_step` is told of it."""

    number: int
    """Counted from 1."""
    epoch: int
    loss: float
    """Of the batch, before the step."""
    logged: dict[str, float]
    """What a step of the user's own logged."""


class Hooks(NamedTuple):
    """Functions of the user's that are called; one that gives True ends the run."""

    on_step: Callable[[Taken], bool | None] | None = None
    on_epoch: Callable[[Epoch], bool | None] | None = None


_NO_HOOKS: Final = Hooks()


class Program(NamedTuple):
    """What is fitted, and how it is judged."""

    framework: Framework
    model: Any
    step: Step
    objective: Objective
    measures: tuple[Measure, ...]
    journal: Journal
    is_own_rule: bool
    """An optimizer is the framework's own."""


@dataclass
class _Standing:
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
        return dataclasses.asdict(self)

    def copy(self) -> _Standing:
        logged = {name: list(pair) for name, pair in self.logged.items()}
        return dataclasses.replace(self, sums=list(self.sums), logged=logged)

    @classmethod
    def restore(cls, values: dict[str, Any]) -> _Standing:
        restored: dict[str, Any] = {**values, "history": [Epoch(**epoch) for epoch in values["history"]]}
        restored["skipped"] = [Skip(**skip) for skip in values.get("skipped", ())]
        return cls(**restored)


class Loop:
    """One run of training."""

    def __init__(
        self,
        program: Program,
        settings: Settings,
        keeper: Keeper | None,
        watchers: Sequence[Progress],
        pace: Pace,
        *,
        hooks: Hooks = _NO_HOOKS,
        listener: Listener | None = None,
        average: Average | None = None,
        rescue: Rescue | None = None,
    ) -> None:
        self._framework = program.framework
        self._model = program.model
        self._step = program.step
        self._program = program
        self._settings = settings
        self._keeper = keeper
        self._watchers = watchers
        self._pace = pace
        self._hooks = hooks
        self._listener = listener
        self._heard: Arrays | None = None
        """What callbacks remembered in the checkpoint that the run goes on from."""
        self._average = average
        self._rescue = rescue
        self._computes = [measure.compute for measure in program.measures if measure.is_mean]
        self._is_ended = False
        self._standing = _Standing()
        self._best: Arrays | None = None
        self._initial: Arrays | None = None

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self._standing.step

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """The batches that were left out."""
        return tuple(self._standing.skipped)

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
        is_inherited = self._keeper is not None and self._keeper.is_inherited
        self._heard = None if is_inherited else {n: array for n, array in state.items() if n.startswith(_CALLBACKS)}
        self._set_state(self._adopt(state))
        self._standing = _Standing.restore(values)
        self._pace.set_state(self._standing.pace)
        if self._rescue:
            self._rescue.skipped = list(self._standing.skipped)
        return True

    def _adopt(self, state: Arrays) -> Arrays:
        """Leave of a parent's state what this run takes over."""
        if not (self._keeper and self._keeper.is_inherited and self._program.is_own_rule):
            return state
        # Frameworks keep settings, such as the learning rate, in what their optimizers remember: those of another run.
        fresh = {name: array for name, array in self._get_state().items() if not name.startswith(_WEIGHTS)}
        return fresh | {name: array for name, array in state.items() if name.startswith(_WEIGHTS)}

    def _get_state(self) -> Arrays:
        state = self._step.get_state()
        if self._listener is not None:
            state = {**state, **self._listener.get_state()}
        return state if self._average is None else {**state, **self._average.get_state()}

    def _set_state(self, state: Arrays) -> None:
        self._step.set_state({n: array for n, array in Average.leave_out(state).items() if not n.startswith(_CALLBACKS)})
        if self._average is not None:
            if self._keeper and self._keeper.is_inherited and not Average.is_in(state):
                self._step.sync()
                self._average.restart()
            else:
                self._average.set_state(state)

    def run(self, source: Source, validation: Validation | None) -> tuple[Epoch, ...]:
        """Train until the epochs are over, or nothing gets better any more.

        Raises:
            InputError: `bad_data`, `bad_loss`; if in the first step, the model is as it was.
            StoreError: `disk_full`, before the first step if that can be said; `write_failed`.
            ModelError: `not_finite`, `loss_rose`; the last good state is kept as a checkpoint.
        """
        if self._listener is None:
            return self._run(source, validation)
        try:
            self._is_ended = self._listener.begin(self._heard)
            return self._run(source, validation)
        finally:
            self._listener.close()

    def _run(self, source: Source, validation: Validation | None) -> tuple[Epoch, ...]:
        if not self._is_over() and self._standing.step == 0:
            self._initial = self._step.get_state()
            if self._keeper:
                self._keeper.check_space(self._get_state())
        while not self._is_over():
            self._fit_epoch(source)
            self._end_epoch(validation)
        if self._settings.patience is not None and self._best is not None:
            self._set_state(self._best)
        self._step.sync()
        if self._keeper:
            self._save()
        if self._listener is not None:
            self._listener.end()
            self._step.sync()
        if self._average is not None:
            self._average.apply()
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
        self._program.journal.epoch = self._standing.epoch
        if self._listener is not None and self._standing.batch == 0:
            self._listener.begin_epoch(self._standing.epoch)
        started_s = time.perf_counter() - self._standing.epoch_s
        while not self._take_batches(source, started_s):
            pass
        if self._standing.num_rows == 0 and self._rescue and self._rescue.first_error is not None:
            raise self._keep_and_fail(self._rescue.first_error)
        self._standing.epoch_s = time.perf_counter() - started_s

    def _take_batches(self, source: Source, started_s: float) -> bool:
        """Take batches to the end of the epoch; False where the run went back, and is to begin from there."""
        standing, rescue, journal = self._standing, self._rescue, self._program.journal
        standing.sums = standing.sums or [0.0] * (1 + len(self._computes))
        for batch in self._read(source):
            if rescue:
                if rescue.skipped and rescue.is_skipped(standing.epoch, standing.batch):
                    self._pace.lower(rescue.factor)
                    standing.batch += 1
                    continue
                if rescue.is_due(standing.epoch, standing.step):
                    rescue.kept = Kept(self._get_state(), standing.copy(), self._pace.get_state())
            if journal.logged:
                journal.logged = {}
            if self._listener is not None:
                self._listener.begin_step(standing.batch)
            try:
                loss, outputs = self._take_step(batch)
            except ModelError as error:
                if error.key != "not_finite":
                    raise
                if rescue is None:
                    raise self._keep_and_fail(error) from error
                if rescue.doubted is not None:  # It tells nothing; its own turn comes.
                    continue
                self._go_back(rescue, math.nan, error, source)
                return False
            if rescue and (verdict := self._judge_loss(rescue, loss, source)) is not Verdict.GOOD:
                if verdict is Verdict.DOUBTFUL:
                    continue
                return False
            self._count(batch, loss, outputs)
            if self._keeper and self._keeper.is_due(standing.step):
                standing.epoch_s = time.perf_counter() - started_s
                self._save()
            if self._is_ended:
                break
        if rescue and rescue.doubted is not None:  # There is no other batch.
            rescue.settle()
            return False
        return True

    def _judge_loss(self, rescue: Rescue, loss: float, source: Source) -> Verdict:
        """Judge a loss; unless it is good, the state is that before the step again."""
        doubted, verdict = rescue.doubted, rescue.judge(loss, self._standing.largest, self._standing.step)
        if verdict is Verdict.BAD:
            self._go_back(rescue, loss if doubted is None else doubted, None, source)
        elif verdict is not Verdict.GOOD:
            assert rescue.kept is not None
            self._set_state(rescue.kept.state)
        return verdict

    def _read(self, source: Source) -> Iterator[Batch]:
        """Give the batches that are left of the epoch; before data that fails ends the run, its state is kept."""
        batches = source.iterate(self._standing.epoch, self._standing.batch)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except InputError:
                if self._keeper and self._standing.step:
                    self._save()
                raise
            yield batch

    def _take_step(self, batch: Batch) -> tuple[float, Any]:
        if self._initial is None:
            return self._step(batch, self._standing.step + 1)
        try:
            taken = self._step(batch, self._standing.step + 1)
        except InputError:
            self._step.set_state(self._initial)
            self._step.sync()
            raise
        self._initial = None
        return taken

    def _count(self, batch: Batch, loss: float, outputs: Any) -> None:
        """Take a step into the sums of the epoch, and tell of it."""
        standing = self._standing
        rows = batch.num_rows
        values = (loss, *(compute(outputs, batch.targets) for compute in self._computes))
        standing.sums = [total + rows * value for total, value in zip(standing.sums, values, strict=True)]
        standing.num_rows += rows
        standing.step += 1
        standing.batch += 1
        standing.largest = max(standing.largest, abs(loss))
        logged = self._program.journal.logged
        for name, value in logged.items():
            total, count = standing.logged.get(name, (0.0, 0.0))
            standing.logged[name] = [total + rows * value, count + rows]
        if self._average is not None and self._average.is_due(standing.step):
            self._step.sync()
            self._average.update()
        for watcher in self._watchers:
            watcher.end_step(standing.step, standing.sums[0] / standing.num_rows)
        if self._listener is not None:
            means = {"loss": standing.sums[0] / standing.num_rows, **self._list_means()}
            self._is_ended = self._listener.end_step(standing.batch - 1, means) or self._is_ended
        if self._hooks.on_step is not None:
            taken = Taken(standing.step, standing.epoch, loss, logged)
            self._is_ended = self._hooks.on_step(taken) is True or self._is_ended

    def _go_back(self, rescue: Rescue, loss: float, error: ModelError | None, source: Source) -> None:
        """Return to the kept state; the batch at fault is left out from now on."""
        standing, kept = self._standing, rescue.kept
        assert kept is not None
        try:
            rescue.blame(standing.epoch, standing.batch, standing.step + 1, loss, error, getattr(source, "locate", None))
        except ModelError as final:
            raise self._keep_and_fail(final) from error
        self._set_state(kept.state)
        self._pace.set_state(kept.pace)
        self._standing = kept.standing.copy()
        self._standing.skipped = list(rescue.skipped)

    def _keep_and_fail(self, error: ModelError) -> ModelError:
        """Keep the state, and give the error that says where."""
        if self._keeper is None:
            return error
        self._save()
        if error.key != "not_finite":
            return error
        fields: dict[str, Any] = {**error.fields, "kept": f"; the state before it is kept in {self._keeper.latest}"}
        return ModelError("not_finite", **fields)

    def _end_epoch(self, validation: Validation | None) -> None:
        standing, started_s = self._standing, time.perf_counter()
        loss = standing.sums[0] / standing.num_rows
        validation_loss, validation_metrics = None, dict[str, float]()
        if validation is not None:
            validation_loss, validation_metrics = self._validate(validation)
        duration_s = standing.epoch_s + time.perf_counter() - started_s
        epoch = Epoch(standing.epoch, loss, self._list_means(), validation_loss, validation_metrics, duration_s)
        if self._listener is not None:
            self._is_ended = self._listener.end_epoch(epoch.number, epoch.list_values()) or self._is_ended
        self._pace.end_epoch(epoch)
        self._judge(epoch)
        standing.epoch, standing.batch, standing.num_rows, standing.sums, standing.epoch_s = standing.epoch + 1, 0, 0, [], 0.0
        standing.logged = {}
        if self._hooks.on_epoch is not None:
            self._is_ended = self._hooks.on_epoch(epoch) is True or self._is_ended

    def _list_means(self) -> dict[str, float]:
        """Give metrics and what was logged as means over the rows of the epoch so far."""
        standing = self._standing
        names = [measure.name for measure in self._program.measures if measure.is_mean]
        means = {name: total / standing.num_rows for name, total in zip(names, standing.sums[1:], strict=True)}
        return means | {name: total / rows for name, (total, rows) in standing.logged.items()}

    def _validate(self, validation: Validation) -> tuple[float | None, dict[str, float]]:
        self._step.sync()
        if self._listener is not None:
            self._listener.begin_validation()
        own = None if self._average is None else self._average.apply()
        program = self._program
        score = validation.measure(program.framework, program.model, program.objective, program.measures)
        if own is not None:
            self._framework.set_weights(self._model, own)
        if self._listener is not None:
            loss = {} if score.loss is None else {"loss": score.loss}
            self._listener.end_validation({**loss, **score.metrics})
        return score.loss, score.metrics

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
                self._best = self._get_state()
            if self._keeper:
                standing.pace = self._pace.get_state()
                self._keeper.save_best(self._best or self._get_state(), standing.describe())
        for watcher in self._watchers:
            watcher.end_epoch(epoch)

    def _save(self) -> None:
        assert self._keeper is not None
        self._standing.pace = self._pace.get_state()
        self._keeper.save(self._get_state(), self._standing.describe(), self._standing.step)
