"""One run: its steps, checkpoints, watchers and loop are put together, and its result is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from argosy.errors import ConflictError, InputError
from argosy.frameworks.base import FitOptions, Framework, Step, count_weights
from argosy.frameworks.fitting import Journal, Listener, fail_not_finite
from argosy.frameworks.trees import is_ordered, map_tree
from argosy.group.exchange import Ended, Follower, Group
from argosy.optim import GradientFreeOptimizer
from argosy.store.temporary import explain_write
from argosy.train.average import Average, Ema
from argosy.train.checkpoint import Checkpoints, Keeper, open_checkpoints
from argosy.train.crew import Crew
from argosy.train.free import FreeStep
from argosy.train.lineage import describe_weights
from argosy.train.listening import Hooks, open_listener
from argosy.train.loop import Loop, Program
from argosy.train.moving import is_own
from argosy.train.opening import Opened
from argosy.train.pace import Pace
from argosy.train.progress import Watcher, open_progress
from argosy.train.publish import pick_sample
from argosy.train.rescue import Rescue
from argosy.train.result import Settings, TrainResult
from argosy.train.sharing import FedSource, Feeder, SharedArrays
from argosy.train.source import ArraySource, Source
from argosy.train.start import Beginning
from argosy.train.tensorboard import open_tensorboard

__all__ = ["Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is fitted, by what, and where it is kept and shown; see `run.train` for all of it."""

    framework: Framework
    model: Any
    rule: Any
    """One optimizer, or several by name."""
    frozen: frozenset[str]
    """Names of weights that stay as they are."""
    beginning: Beginning | None
    """Weights that the model takes before the first step."""
    step: Callable[[Any, Any, Any], Any] | None
    average: Ema | None
    plan: Checkpoints | None
    resume: bool | Literal["restart"]
    tensorboard: Path | None
    is_shown: bool
    """On stderr."""
    hooks: Hooks
    callbacks: tuple[Any, ...]
    """Of the framework's own."""
    is_tuned: bool = False
    """The number of workers is found out on the way."""

    @property
    def is_led(self) -> bool:
        """After any step, functions or callbacks may end the run, or the group of workers may change."""
        return self.is_tuned or self.hooks.on_step is not None or bool(self.callbacks)

    def follow(self, opened: Opened, settings: Settings, follower: Follower, *, is_led: bool) -> None:
        """Be another worker of a run that is led elsewhere, until it is over.

        Raises:
            Ended: one of the workers failed, or the leader is gone.
        """
        pace = Pace(self.framework, self.rule)
        program = self._write_program(opened, settings, pace, follower)
        loop = self._build_loop(program, settings, None, [], pace, None, follower, is_led=is_led)
        follower.say_ready()
        loop.run(SharedArrays(opened.source, follower) if isinstance(opened.source, ArraySource) else FedSource(follower), None)

    def run(self, opened: Opened, settings: Settings, crew: Crew | None = None) -> TrainResult:
        """Fit the model.

        Args:
            opened: the data.
            settings: as far as they were known before.
            crew: the other workers.

        Raises:
            InputError, ConflictError, ModelError, StoreError: see `run.train`.
        """
        settings = _complete(settings, opened)
        pace = Pace(self.framework, self.rule)
        pace.check(_list_measured(opened))
        with contextlib.ExitStack() as stack:
            run = _describe_run(self.framework, self.model, opened.source, settings) if self.plan is not None else {}
            keeper = stack.enter_context(open_checkpoints(self.plan, run))
            self._check_folder(keeper)
            with contextlib.nullcontext() if self.beginning is None else self.beginning.give(self.framework, self.model):
                program = self._write_program(opened, settings, pace, crew)
            num_batches = opened.source.num_batches
            num_steps = None if num_batches is None or settings.epochs is None else num_batches * settings.epochs
            shown = stack.enter_context(open_progress(self.is_shown, settings.epochs, num_steps))
            if crew is not None and crew.tuner is not None:
                crew.tuner.say = shown.say
            logged = stack.enter_context(open_tensorboard(self.tensorboard))
            listener = open_listener(
                self.framework,
                self.callbacks,
                self.model,
                program.step,
                epochs=settings.epochs,
                num_batches=num_batches,
                measured=None if self.step is not None else _list_measured(opened),
            )
            loop = self._build_loop(program, settings, keeper, [shown, logged] if logged else [shown], pace, listener, crew)
            if self.resume is True or (self.plan is not None and self.plan.parent is not None):
                loop.resume()
            source = opened.source if crew is None else self._share(opened.source, crew)
            try:
                history = loop.run(source, opened.validation)
            except Ended as ended:
                assert ended.error is not None
                if isinstance(ended.error, OSError):
                    raise explain_write("what the workers of a run share", ended.error) from ended.error
                raise ended.error from None
        self._check_weights(loop.num_steps)
        if crew is not None:
            settings = replace(settings, workers=crew.size)
        return TrainResult(
            self.model,
            self.framework,
            opened.objective,
            settings,
            history,
            loop.num_steps,
            opened.source.describe(),
            None if opened.sample is None else map_tree(pick_sample, opened.sample),
            keeper.latest if keeper else None,
            loop.skipped,
            describe_weights(self.framework, self.model, self.frozen),
        )

    def _share(self, source: Source, crew: Crew) -> Source:
        if isinstance(source, ArraySource):
            return SharedArrays(source, crew)
        return Feeder(source, crew, is_raw=self.step is not None)

    def _check_folder(self, keeper: Keeper | None) -> None:
        resume = self.resume
        if resume not in (True, False, "restart"):
            raise InputError("bad_option", option="resume", got=resume, expected="True, False or 'restart'")
        if keeper is None or self.plan is None:
            if resume:
                raise InputError("bad_option", option="resume", got=resume, expected="False without checkpoints")
            return
        if resume == "restart":
            keeper.clear()
        elif not resume and not keeper.is_empty:
            raise ConflictError("checkpoints_exist", folder=self.plan.folder)

    def _write_program(self, opened: Opened, settings: Settings, pace: Pace, group: Group | None) -> Program:
        journal = Journal()
        options = FitOptions(
            seed=settings.seed,
            precision=settings.precision,
            micro_batch_size=settings.micro_batch_size,
            loss_weights=opened.objective.factors,
            is_weighted=opened.is_weighted,
            step=self.step,
            journal=journal,
            frozen=self.frozen,
            exchange=group,
        )
        step = self._build_step(opened, pace.optimizer, options)
        objective = opened.objective
        return Program(self.framework, self.model, step, objective, objective.measures, journal, is_own(self.rule))

    def _build_step(self, opened: Opened, rule: Any, options: FitOptions) -> Step:
        if options.step is not None and options.micro_batch_size is not None:
            expected = "None with a step of one's own, which takes its batch as it sees fit"
            raise InputError("bad_option", option="micro_batch_size", got=options.micro_batch_size, expected=expected)
        if not isinstance(rule, GradientFreeOptimizer):
            return self.framework.build_step(self.model, opened.objective.loss, rule, options)
        for option in ("precision", "micro_batch_size", "step"):
            if getattr(options, option) is not None:
                raise InputError("bad_option", option=option, got=getattr(options, option), expected=f"None with {rule.name}")
        if options.frozen:
            raise InputError("bad_option", option="freeze", got=[*options.frozen], expected=f"nothing with {rule.name}")
        return FreeStep(self.framework, self.model, opened.objective, rule, options.seed)

    def _build_loop(
        self,
        program: Program,
        settings: Settings,
        keeper: Keeper | None,
        watchers: Sequence[Watcher],
        pace: Pace,
        listener: Listener | None,
        group: Group | None,
        *,
        is_led: bool | None = None,
    ) -> Loop:
        has_rescue = settings.rescue and not isinstance(self.rule, GradientFreeOptimizer)
        return Loop(
            program,
            settings,
            keeper,
            watchers,
            pace,
            hooks=self.hooks,
            listener=listener,
            average=None if self.average is None else Average(self.average, self.framework, self.model),
            rescue=Rescue() if has_rescue else None,
            group=group,
            is_led=self.is_led if is_led is None else is_led,
        )

    def _check_weights(self, num_steps: int) -> None:
        """A step checks what the step before made of the weights; only the last one is left to check."""
        for name, weight in self.framework.get_weights(self.model).items():
            if not np.isfinite(weight).all():
                rate = getattr(self.rule, "learning_rate", None)
                raise fail_not_finite(step=num_steps, what="weight", layer=name, learning_rate=rate)


def _complete(settings: Settings, opened: Opened) -> Settings:
    """Give the settings with what the data said."""
    objective = opened.objective
    labels = {".".join(map(str, place)): names for place, names in objective.labels.items()}
    metrics = tuple(measure.name for measure in objective.measures)
    factors = list(objective.factors) if is_ordered(objective.factors) else objective.factors
    return replace(settings, loss=objective.describe(), loss_weights=factors, metrics=metrics, labels=labels or None)


def _list_measured(opened: Opened) -> list[str]:
    """Name what an epoch measures."""
    measures = opened.objective.measures
    names = ["loss", *(measure.name for measure in measures if measure.is_mean)]
    if opened.validation is None:
        return names
    validated = [f"validation_{measure.name}" for measure in measures]
    return [*names, *(["validation_loss"] if opened.objective.criteria is not None else []), *validated]


def _describe_run(framework: Framework, model: Any, source: Source, settings: Settings) -> dict[str, Any]:
    """Say what a run must have in common with the one whose checkpoint it goes on from; it may be longer."""
    described = settings.describe()
    for free in ("epochs", "tolerance", "patience", "num_threads", "metrics", "own_metrics", "rescue", "callbacks", "workers"):
        described.pop(free, None)
    data = source.describe()
    if "max_bad_rows" in data:
        # Rows that are left out move no others: a run may go on with another limit of them, and counts them anew.
        data = {key: value for key, value in data.items() if key not in ("max_bad_rows", "left_out", "rows")}
    identity = {"framework": framework.name, "weights": count_weights(framework, model), "data": data, **described}
    return identity | {"program": framework.describe_program(model)}
