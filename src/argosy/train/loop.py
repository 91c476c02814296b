"""The loop: epochs and steps, validation, early stopping, checkpoints, rescue. Knows no framework and no file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, Framework, Step
from argosy.frameworks.fitting import Journal, Listener
from argosy.group.exchange import Changed, Group
from argosy.signature import Arrays
from argosy.train.average import Average
from argosy.train.checkpoint import Keeper
from argosy.train.listening import Hooks, Taken
from argosy.train.measures import Measure
from argosy.train.objective import Objective
from argosy.train.pace import Pace
from argosy.train.progress import Watcher
from argosy.train.rescue import Kept, Rescue, Skip, Verdict, is_due
from argosy.train.result import Epoch, Settings
from argosy.train.sharing import Spare
from argosy.train.source import Source
from argosy.train.standing import Standing
from argosy.train.state import RunState
from argosy.train.validation import Validation

__all__ = ["Loop", "Program"]

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


class Loop:
    """One run of training."""

    def __init__(
        self,
        program: Program,
        settings: Settings,
        keeper: Keeper | None,
        watchers: Sequence[Watcher],
        pace: Pace,
        *,
        hooks: Hooks = _NO_HOOKS,
        listener: Listener | None = None,
        average: Average | None = None,
        rescue: Rescue | None = None,
        group: Group | None = None,
        is_led: bool = False,
    ) -> None:
        self._step = program.step
        self._program = program
        self._settings = settings
        self._keeper = keeper
        self._watchers = watchers
        self._pace = pace
        self._hooks = hooks
        self._listener = listener
        self._average = average
        self._state = RunState(program.step, average, listener, is_own_rule=program.is_own_rule)
        self._rescue = rescue
        self._group = group
        """The workers of the run; None for one alone."""
        self._is_led = is_led
        """After each step, the leader of the group says whether it was the last."""
        self._kept: Kept | None = None
        """What the run goes back to."""
        means = [measure for measure in program.measures if measure.is_mean]
        self._names, self._computes = [mean.name for mean in means], [mean.compute for mean in means]
        self._is_ended = False
        self._standing = Standing()
        self._best: Arrays | None = None
        self._initial: Arrays | None = None

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self._standing.step

    @property
    def _is_over(self) -> bool:
        return self._is_ended or self._standing.is_over(self._settings)

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
        if self._keeper is None or kept is None:
            return False
        state, values = kept
        best = self._keeper.load_best() if self._settings.patience is not None else None
        self._best = self._state.resume(state, best, is_inherited=self._keeper.is_inherited)
        self._standing = Standing.restore(values)
        self._pace.set_state(self._standing.pace)
        if self._rescue:
            self._rescue.skipped = list(self._standing.skipped)
        return True

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
            self._is_ended = self._listener.begin(self._state.heard)
            return self._run(source, validation)
        finally:
            self._listener.close()

    def _run(self, source: Source, validation: Validation | None) -> tuple[Epoch, ...]:
        if not self._is_over and self._standing.step == 0:
            self._initial = self._step.get_state()
            if self._keeper:
                self._keeper.check_space(self._state.get())
        is_formed = self._group is None
        while not self._is_over:
            try:
                if not is_formed:
                    self._join_group()
                    is_formed = True
                self._fit_epoch(source)
                self._end_epoch(validation)
            except Changed:
                is_formed = False
        if self._settings.patience is not None and self._best is not None:
            self._state.set(self._best)
        self._step.sync()
        if self._keeper:
            self._save()
        if self._listener is not None:
            self._listener.end()
            self._step.sync()
        if self._average is not None:
            self._average.apply()
        return tuple(self._standing.history)

    def _join_group(self) -> None:
        """Begin where the leader of the group does, or go back to what it kept."""
        assert self._group is not None
        begun = (self._kept or self._keep(), self._rescue) if self._is_leader else None
        kept, self._rescue = self._group.begin(begun)
        self._return_to(kept)
        if self._rescue:
            self._rescue.doubted = None

    def _keep(self) -> Kept:
        self._kept = Kept(self._state.get(), self._standing.copy(), self._pace.get_state())
        return self._kept

    def _find_kept(self) -> Kept:
        """Give what was kept last; of several workers, the leader keeps it for all."""
        kept: Kept | None = self._kept if self._group is None else self._group.follow(self._kept)
        assert kept is not None
        return kept

    @property
    def _keeps(self) -> bool:
        """There is something to go back for."""
        return self._rescue is not None if self._group is None else self._is_leader

    @property
    def _is_leader(self) -> bool:
        return self._group is None or self._group.rank == 0

    def _return_to(self, kept: Kept) -> None:
        self._state.set(kept.state)
        self._pace.set_state(kept.pace)
        self._standing = kept.standing.copy()
        if self._is_leader:
            self._kept = kept

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
            if rescue and rescue.skipped and rescue.is_skipped(standing.epoch, standing.batch):
                self._pace.lower(rescue.factor)
                standing.batch += 1
                continue
            if self._keeps and is_due(self._kept, standing.epoch, standing.step, has_others=self._group is not None):
                self._keep()
            if journal.logged:
                journal.logged = {}
            if self._listener is not None:
                self._listener.begin_step(standing.batch)
            try:
                rows, values = self._take(batch)
            except ModelError as error:
                if error.key != "not_finite":
                    raise
                if rescue is None:
                    raise self._keep_and_fail(error) from error
                if rescue.doubted is not None:  # It tells nothing; its own turn comes.
                    continue
                self._go_back(rescue, math.nan, error, source)
                return False
            if rescue and (verdict := self._judge_loss(rescue, values[0], source)) is not Verdict.GOOD:
                if verdict is Verdict.DOUBTFUL:
                    continue
                return False
            self._count(rows, values)
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
            self._state.set(self._find_kept().state)
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

    def _take(self, batch: Batch) -> tuple[int, list[float]]:
        """Take a step; give its rows, and loss and metrics as means over them."""
        if self._group is not None:
            return self._take_with_others(self._group, batch)
        loss, outputs = self._take_step(batch)
        return batch.num_rows, [loss, *(compute(outputs, batch.targets) for compute in self._computes)]

    def _take_with_others(self, group: Group, batch: Batch) -> tuple[int, list[float]]:
        """Take a step of all workers with this one's rows; what it gives is of the rows of all."""
        rows = 0 if isinstance(batch, Spare) else batch.num_rows
        group.begin_step(rows)
        try:
            loss, outputs = self._take_step(batch)
        except ModelError as error:
            group.fail(error)
        journal = self._program.journal
        values = [loss, *(compute(outputs, batch.targets) for compute in self._computes), *journal.logged.values()]
        total, *sums = group.settle([rows, *(rows * value if rows else 0.0 for value in values)])
        means = [one / total for one in sums]
        count = 1 + len(self._computes)
        journal.logged = dict(zip(journal.logged, means[count:], strict=True))
        return int(total), means[:count]

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

    def _count(self, rows: int, values: Sequence[float]) -> None:
        """Take a step into the sums of the epoch, and tell of it."""
        standing, logged = self._standing, self._program.journal.logged
        standing.count(rows, values, logged)
        if self._average is not None and self._average.is_due(standing.step):
            self._step.sync()
            self._average.update()
        for watcher in self._watchers:
            watcher.end_step(standing.step, standing.loss)
        if self._listener is not None:
            means = {"loss": standing.loss, **standing.list_means(self._names)}
            self._is_ended = self._listener.end_step(standing.batch - 1, means) or self._is_ended
        if self._hooks.on_step is not None:
            taken = Taken(standing.step, standing.epoch, values[0], logged)
            self._is_ended = self._hooks.on_step(taken) is True or self._is_ended
        if self._group is not None:
            self._group.end_step(standing.step)
            if self._is_led:
                if self._group.is_changing:
                    self._keep()
                self._is_ended = self._group.follow(self._is_ended)

    def _go_back(self, rescue: Rescue, loss: float, error: ModelError | None, source: Source) -> None:
        """Return to the kept state; the batch at fault is left out from now on."""
        standing, kept = self._standing, self._find_kept()
        first = kept.standing.batch
        try:
            rescue.blame(standing.epoch, standing.batch, standing.step + 1, loss, error, first, getattr(source, "locate", None))
        except ModelError as final:
            raise self._keep_and_fail(final) from error
        self._return_to(kept)
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
        validation_loss, validation_metrics = None, dict[str, float]()
        if validation is not None:
            validation_loss, validation_metrics = self._validate(validation)
        if self._group is not None:
            validation_loss, validation_metrics = self._group.follow((validation_loss, validation_metrics))
        duration_s = standing.epoch_s + time.perf_counter() - started_s
        means = standing.list_means(self._names)
        epoch = Epoch(standing.epoch, standing.loss, means, validation_loss, validation_metrics, duration_s)
        if self._listener is not None:
            self._is_ended = self._listener.end_epoch(epoch.number, epoch.list_values()) or self._is_ended
        self._pace.end_epoch(epoch)
        self._judge(epoch)
        standing.begin_next()
        if self._hooks.on_epoch is not None:
            self._is_ended = self._hooks.on_epoch(epoch) is True or self._is_ended
        if self._group is not None:
            self._is_ended = self._group.follow(self._is_ended)

    def _validate(self, validation: Validation) -> tuple[float | None, dict[str, float]]:
        self._step.sync()
        if self._listener is not None:
            self._listener.begin_validation()
        own = None if self._average is None else self._average.apply()
        program = self._program
        score = validation.measure(program.framework, program.model, program.objective, program.measures)
        if own is not None:
            program.framework.set_weights(program.model, own)
        if self._listener is not None:
            loss = {} if score.loss is None else {"loss": score.loss}
            self._listener.end_validation({**loss, **score.metrics})
        return score.loss, score.metrics

    def _judge(self, epoch: Epoch) -> None:
        """Take an epoch into the history; keep its state if it is the best so far."""
        standing, settings = self._standing, self._settings
        if standing.note(epoch, settings.tolerance):
            if settings.patience is not None and self._is_leader:
                self._best = self._state.get()
            if self._keeper:
                standing.pace = self._pace.get_state()
                self._keeper.save_best(self._best or self._state.get(), standing.describe())
        for watcher in self._watchers:
            watcher.end_epoch(epoch)

    def _save(self) -> None:
        assert self._keeper is not None
        self._standing.pace = self._pace.get_state()
        self._keeper.save(self._state.get(), self._standing.describe(), self._standing.step)
