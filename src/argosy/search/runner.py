"""Carry out the trials of a program: begin them, hear what they come to, stop the bad ones, tell the study."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from argosy.errors import ArgosyError, ConflictError, InputError
from argosy.search.crew import Crew, Worker
from argosy.search.journal import digest_file
from argosy.search.measure import measure_costs
from argosy.search.record import Record
from argosy.search.study import Study, Trial
from argosy.serve.worker.cores import count_cores

__all__ = ["Plan", "Runner", "check_program", "count_threads", "describe_point", "find_home_of"]

_TURN_S: Final = 0.5
"""Between two looks at the clock."""


@dataclass(frozen=True)
class Plan:
    """What a search is to do."""

    target: str
    digest: str
    """Of its file."""
    metric: str
    options: dict[str, Any]
    """Arguments of `argosy.train` that win over the program's."""
    trials: int
    jobs: int
    max_s: float | None
    max_trial_s: float | None
    interval: int | None = None
    """Epochs after which a trial of a population ends; None: trials end by themselves."""


def check_program(target: str, names: list[str], threads: int | None, limit_s: float | None) -> Worker:
    """Begin the process of the first trial, and see that the program can be called; before a search is begun with it.

    Args:
        target: the program.
        names: of its parameters.
        threads: that its libraries may use; None: as many as they like.
        limit_s: that importing it may take.

    Raises:
        InputError: `bad_program`, `trial_refused`: it has no such function or parameters, or fails or hangs when it is imported.
    """
    with Crew() as crew:
        worker = Worker(target, names, threads)
        crew.add(worker)
        is_importing = False
        while True:
            for _, said in crew.wait(_TURN_S):
                if said["event"] == "ready":
                    return crew.release(worker)
                if said["event"] != "importing":
                    raise _refuse(said)
                is_importing, worker.started_s = True, time.monotonic()
            if is_importing and limit_s is not None and time.monotonic() - worker.started_s > limit_s:
                raise InputError("trial_refused", detail=f"it took more than {limit_s:g} s to be imported")


class Runner:
    """Trials of a study, some at a time.

    Args:
        study: is asked and told.
        plan: of the search.
        crew: the processes; they end with it.
        first: the process of the first trial, which is ready.
        timed: objectives that are measured while nothing else runs.
        say: is told what happens.
    """

    def __init__(
        self, study: Study, plan: Plan, crew: Crew, first: Worker, timed: frozenset[str], say: Callable[[str], None]
    ) -> None:
        assert study.folder is not None
        self._study, self._plan, self._crew, self._timed, self._say = study, plan, crew, timed, say
        self._folder = study.folder / "trials"
        self._ready: Worker | None = first
        self._deadline = None if plan.max_s is None else time.monotonic() + plan.max_s
        self._trials: dict[Worker, Trial] = {}
        self._reasons: dict[int, str] = {}
        self._finished: list[tuple[Trial, dict[str, Any]]] = []
        """Trained, and not yet measured."""
        self._is_over = False

    def run(self) -> None:
        """Go on until there are as many trials as planned, or time or points are over.

        Raises:
            InputError: `trial_refused`, `bad_program`.
            ConflictError: `search_differs`, the program was changed meanwhile.
        """
        while True:
            self._begin()
            if self._trials:
                for worker, said in self._crew.wait(_TURN_S):
                    self._take(worker, said)
                self._end_late()
            elif self._finished:
                for trial, notes in self._finished:
                    self._measure(trial, notes)
                self._finished.clear()
            else:
                return

    def _begin(self) -> None:
        while len(self._trials) < self._plan.jobs and self._may_begin():
            self._check_digest()
            try:
                trial = self._study.ask()
            except ConflictError as error:
                if error.key == "search_waits":
                    return
                self._is_over = True
                self._say(error.message)
                return
            if trial.attempt > 1:
                self._say(f"trial {trial.number} is begun again: it was running when its search was ended")
            earlier = next((one for one in self._study.trials if one.number == trial.same_as), None)
            if earlier is not None and earlier.seconds is not None:
                self._copy(trial, earlier)
                continue
            shutil.rmtree(self._folder / f"{trial.number:05d}", ignore_errors=True)
            self._start(trial)

    def _check_digest(self) -> None:
        """See that all trials are of one program: each process imports it anew.

        Raises:
            ConflictError: `search_differs`.
        """
        with contextlib.suppress(OSError):  # It is gone.
            if digest_file(Path(self._plan.target.rpartition(":")[0])) == self._plan.digest:
                return
        raise ConflictError("search_differs", name=self._study.name, detail="the program's file was changed while it went on")

    def _may_begin(self) -> bool:
        if self._is_over or (self._finished and self._timed):
            return False
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._is_over = True
            self._say(f"{self._plan.max_s:g} s are over: no other trial is begun")
            return False
        num_over = sum(1 for record in self._study.trials if record.seconds is not None)
        return num_over + len(self._trials) + len(self._finished) < self._plan.trials

    def _start(self, trial: Trial) -> None:
        worker, self._ready = self._ready, None
        if worker is None:
            worker = Worker(self._plan.target, list(self._study.space), count_threads(self._plan.jobs))
            self._crew.add(worker)
        else:
            self._send(worker, trial)
        worker.started_s = time.monotonic()
        self._trials[worker] = trial

    def _send(self, worker: Worker, trial: Trial) -> None:
        home = find_home_of(self._study, trial.number)
        told = {"parameters": trial.parameters, "options": self._plan.options, "metric": self._plan.metric, "home": str(home)}
        worker.say(**told, interval=self._plan.interval and self._describe_interval(trial, self._plan.interval))

    def _describe_interval(self, trial: Trial, interval: int) -> dict[str, Any]:
        """Say where a trial of a population goes on, and how far."""
        record = next((one for one in self._study.trials if one.number == trial.parent), None)
        return {
            "folder": str(self._find_checkpoint(trial.number)),
            "parent": trial.parent,
            "parent_folder": None if record is None else str(self._find_checkpoint(record.number)),
            "epochs": interval + max(() if record is None else record.steps, default=0),
        }

    def _find_checkpoint(self, number: int) -> Path:
        return self._folder / f"{number:05d}" / "checkpoint"

    def _take(self, worker: Worker, said: dict[str, Any]) -> None:
        if worker not in self._trials:  # The first one, which nobody needed.
            self._crew.remove(worker)
            self._ready = None
            return
        trial, event = self._trials[worker], said.pop("event")
        if event == "importing":
            return
        if event == "ready":
            self._send(worker, trial)
            return
        if event == "epoch":
            self._take_epoch(worker, trial, said)
            return
        if event == "refused":
            error = _refuse({"event": event, **said})
            # Where others work, it is this point that does not; a population goes on from weights, which are all of one kind.
            if self._plan.interval is not None or all(one.state not in ("done", "stopped") for one in self._study.trials):
                raise error
            event, said = "failed", {"reason": error.message}
        self._drop(worker)
        if event == "stopped":
            self._tell_stopped(trial, said)
        elif event == "failed":
            self._fail(trial, said["reason"], worker)
        elif self._timed:
            self._finished.append((trial, said))
        else:
            self._measure(trial, said)

    def _take_epoch(self, worker: Worker, trial: Trial, said: Mapping[str, Any]) -> None:
        try:
            trial.report(said["step"], said["value"])
        except InputError:
            self._drop(worker)
            self._fail(trial, f"{self._plan.metric} is {said['value']} after epoch {said['step']}", worker)
            return
        reason = self._study.find_reason_to_stop(trial)
        self._reasons[trial.number] = reason
        worker.say(stop=bool(reason))

    def _end_late(self) -> None:
        limit = self._plan.max_trial_s
        for worker, trial in list(self._trials.items()):
            if limit is not None and time.monotonic() - worker.started_s > limit:
                self._drop(worker)
                self._fail(trial, f"it took more than {limit:g} s", worker)

    def _drop(self, worker: Worker) -> None:
        self._crew.remove(worker)
        del self._trials[worker]

    def _measure(self, trial: Trial, notes: dict[str, Any]) -> None:
        score = notes.pop("score")
        try:
            costs = measure_costs(find_home_of(self._study, trial.number), self._study.objectives)
            record = self._study.tell(trial, {self._plan.metric: score, **costs}, notes=notes)
        except ArgosyError as error:
            self._fail(trial, error.message)
            return
        self._show(record)
        self._sweep()

    def _copy(self, trial: Trial, earlier: Record) -> None:
        """Tell a trial what one with the same parameters came to: training is repeatable."""
        if earlier.state == "done":
            self._study.tell(trial, earlier.values)
        elif earlier.state == "stopped":
            self._study.stop(trial, earlier.reason)
        else:
            self._study.fail(trial, earlier.reason)
        self._say(f"trial {trial.number} has the parameters of trial {earlier.number}, and what came of them")

    def _tell_stopped(self, trial: Trial, notes: dict[str, Any]) -> None:
        self._show(self._study.stop(trial, self._reasons.get(trial.number, ""), notes=notes))

    def _fail(self, trial: Trial, reason: str, worker: Worker | None = None) -> None:
        folder = self._folder / f"{trial.number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        # Without room for it, the reason is in the journal all the same.
        with contextlib.suppress(OSError):
            log = b"" if worker is None else worker.read_log()
            if log:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "log.txt").write_bytes(log)
        self._show(self._study.fail(trial, reason))

    def _sweep(self) -> None:
        """Remove the models of trials that are not on the front any more, and weights from which no other will go on."""
        front, parents = {record.number for record in self._study.front()}, self._study.list_parents()
        for record in self._study.trials:
            if record.state == "done" and record.number not in front:
                shutil.rmtree(find_home_of(self._study, record.number), ignore_errors=True)
            if record.state == "done" and record.number not in parents:
                shutil.rmtree(self._find_checkpoint(record.number), ignore_errors=True)
                if record.number not in front:
                    shutil.rmtree(self._folder / f"{record.number:05d}", ignore_errors=True)

    def _show(self, record: Record) -> None:
        if record.state == "done":
            outcome = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
            outcome += "" if record.is_valid else ", which breaks the guard"
        else:
            outcome = f"{record.state}: {record.reason}"
        self._say(f"trial {record.number}  {describe_point(record)}: {outcome}")


def count_threads(jobs: int) -> int | None:
    """Give how many threads each of so many trials may use; None for as many as it likes."""
    return max(1, count_cores() // jobs) if jobs > 1 else None


def describe_point(record: Record) -> str:
    """Give a trial's parameters in one line."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in record.parameters.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def find_home_of(study: Study, number: int) -> Path:
    """Give the home of the store that holds a trial's model."""
    assert study.folder is not None
    return study.folder / "trials" / f"{number:05d}" / "home"


def _refuse(said: Mapping[str, Any]) -> InputError:
    """Make the error of a program with which no trial can work."""
    if said["event"] == "refused":
        return InputError(said["key"], **said["fields"])
    return InputError("trial_refused", detail=said["reason"])
