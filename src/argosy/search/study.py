"""A study: ask for parameters, tell what came of them, for loops of any kind. Kept in a journal, if it has a name."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, cast

from argosy.errors import ConflictError, InputError
from argosy.optim.schedules import check_count
from argosy.search.book import Book
from argosy.search.importance import measure_importance
from argosy.search.journal import JOURNAL_FILE, digest_file, find_folder, hold_folder
from argosy.search.linear import Scores
from argosy.search.methods import Plan, get_rule, make_plan
from argosy.search.population import make_population
from argosy.search.record import (
    Record,
    check_objectives,
    choose_best,
    find_front,
    measure_hypervolume,
    measure_violation,
)
from argosy.search.space import Space, Value, is_finite, is_text
from argosy.store.manifest import check_data

__all__ = ["Study", "Trial"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_TOLD: Final = 200


@dataclass(frozen=True)
class Trial:
    """What to try: parameters, by a study."""

    study: Study = field(repr=False)
    number: int
    """Counted from 0."""
    parameters: dict[str, Value]
    attempt: int = 1
    """More than 1: an earlier process was killed before it told what came of it."""
    same_as: int | None = None
    """An earlier trial with the same parameters (and parent), whose values may be told again."""
    parent: int | None = None
    """The trial from whose weights it is to go on, by the method `pbt`; None: it begins anew."""

    def report(self, step: int, value: float) -> None:
        """Say how far it has come: the watched objective after a step, which grows from report to report."""
        self.study.report(self, step, value)

    def should_stop(self) -> bool:
        """Say whether it is not worth going on with, by what was reported of it and of others; end it by `study.stop` then."""
        return self.study.should_stop(self)


class Study:
    """A context: trials of a space, in search of what is best for some objectives.

    Args:
        space: what may be chosen, as `Space` takes it.
        objectives: names, each with `minimize` or `maximize`.
        method: a name of `METHODS`.
        guard: what values of objectives must reach: at least, of one to maximize, at most, of one to minimize.
        name: of the search, which is kept in ARGOSY_HOME/search/NAME; opened again, it goes on. None: in memory.
        home: default: ARGOSY_HOME.
        seed: the same seed, space, objectives, method and answers give the same trials.
        watch: the objective that is reported step by step; default: the first.
        scores: of each option, for the method `gradient`.
        plan: chooses the points of the method `gradient` by itself, instead of a linear programme over scores.
        population: members of the method `pbt`, default 8.
        about: what else must be the same to go on with a search; JSON data.
        restart: forget the search of this name.

    Raises:
        InputError: `bad_space`, `bad_option`, `unknown_choice`, `bad_name`, `method_unfit`, `missing_extra`, `bad_journal`.
        ConflictError: `search_differs`, the search of this name has another space, objectives, method, seed or guard;
            `search_active`.
        StoreError: `disk_full`, `write_failed`.
    """

    def __init__(
        self,
        space: Space | Mapping[str, object],
        objectives: Mapping[str, str] = {"value": "minimize"},
        *,
        method: str = "tpe",
        guard: Mapping[str, float] = {},
        name: str | None = None,
        home: Path | str | None = None,
        seed: int = 0,
        watch: str | None = None,
        scores: Scores | None = None,
        plan: Plan | None = None,
        population: int | None = None,
        about: Mapping[str, object] = {},
        restart: bool = False,
    ) -> None:
        self.space = space if isinstance(space, Space) else Space(space)
        self.objectives = check_objectives(objectives)
        self.method, self.seed = method, seed
        self.watch = watch or next(iter(self.objectives))
        check_count("seed", seed, 0)
        self.guard = self._check_guard(guard)
        if self.watch not in self.objectives:
            raise InputError("bad_option", option="watch", got=watch, expected="one of the objectives")
        self._plan = make_plan(method, self.space, scores, plan)
        is_minimized = self.objectives[self.watch] == "minimize"
        self._population = make_population(method, self.space, population, seed, self.watch, is_minimized=is_minimized)
        if name is not None and not (is_text(name) and _NAME.fullmatch(name)):
            raise InputError("bad_name", kind="search", got=name)
        self.name = name or "in memory"
        self.folder = None if name is None else find_folder(home, name)
        """Where it is kept; None: nowhere."""
        self._lock = threading.RLock()
        self._asked: dict[int, int] = {}
        """Trials of this process, with the last step that was reported in it."""
        self._is_closed, self._pid = False, os.getpid()
        self._stack = ExitStack()
        try:
            if self.folder is not None:
                self._stack.enter_context(hold_folder(self.folder, self.name, restart=restart))
            told = None if self._plan is None else self._plan.describe()
            settings = {**self.describe(), "scores": told, "about": check_data("about", about)}
            path = None if self.folder is None else self.folder / JOURNAL_FILE
            self._book = Book(path, self.name, self.space, self.objectives, settings)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Study:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others go on with it; what is known of its trials can still be asked."""
        self._is_closed = True
        self._stack.close()

    @property
    def trials(self) -> list[Record]:
        """All of them, by number."""
        with self._lock:
            return self._book.list_records()

    @property
    def digest(self) -> str:
        """Of the journal, SHA-256; "" in memory."""
        return "" if self.folder is None else digest_file(self.folder / JOURNAL_FILE)

    def ask(self) -> Trial:
        """Give what to try next: first what an earlier process had begun when it was killed, then what was enqueued.

        Raises:
            ConflictError: `search_over`, a grid or a linear programme has nothing left, or no member of a population is;
                `search_waits`, trials of a population must be told first; `search_closed`; `search_active`, this process was
                forked from the one that holds the search.
        """
        with self._lock:
            self._check_open()
            begun = [number for number in self._book.list_running() if number not in self._asked]
            if not begun and not self._book.list_waiting():
                self._plan_next()
            record = self._book.begin_again(begun[0]) if begun else self._book.begin()
            self._asked[record.number] = -1
            return Trial(self, record.number, record.parameters, record.attempts, record.same_as, record.parent)

    def enqueue(self, parameters: Mapping[str, Value]) -> None:
        """Have a point tried next, such as what is used today; not a second time.

        Raises:
            InputError: `bad_space`, it is not in the space.
        """
        self.space.check(parameters)
        with self._lock:
            self._check_open()
            self._book.enqueue({name: parameters[name] for name in self.space})

    def report(self, trial: Trial | int, step: int, value: float) -> None:
        """Say how far a trial has come; see `Trial.report`.

        Raises:
            InputError: `bad_told`, no finite number, or a step that is not after the last one.
            ConflictError: `trial_over`.
        """
        with self._lock:
            number = self._check_running(trial)
            last = self._asked.get(number, -1)
            if type(step) is not int or step <= last:
                raise InputError("bad_told", number=number, got=f"step {step!r}", expected=f"a whole number above {last}")
            self._book.report(number, step, self._check_value(number, value))
            self._asked[number] = step

    def should_stop(self, trial: Trial | int) -> bool:
        """Say whether a trial is not worth going on with; see `Trial.should_stop`."""
        return bool(self.find_reason_to_stop(trial))

    def find_reason_to_stop(self, trial: Trial | int) -> str:
        """Say why a trial is not worth going on with, "" while it is."""
        with self._lock:
            number = self._check_running(trial)
            last = self._asked.get(number, -1)
            sign = 1.0 if self.objectives[self.watch] == "minimize" else -1.0
            if not self._may_stop(self._book.get(number), last):
                return ""
            records = [_turn(record, sign) for record in self.trials]
            own = next(record for record in records if record.number == number)
            steps = {step: value for step, value in own.steps.items() if step <= last}
            others = [record for record in records if record.number != number and record.same_as is None]
            return get_rule(self.method)(number, steps, others) if steps else ""

    def tell(
        self,
        trial: Trial | int,
        values: float | Mapping[str, float],
        *,
        constraint: float = 0.0,
        notes: Mapping[str, object] = {},
    ) -> Record:
        """Say what came of a trial.

        Args:
            trial: it, or its number.
            values: the objective's, or of several each by its name.
            constraint: how far it breaks what you demand beside the guard; at most 0 where it holds.
            notes: what else is to be kept of it; JSON data.

        Raises:
            InputError: `bad_told`, no finite numbers, or not one for each objective; `bad_option`, the notes are no JSON data.
            ConflictError: `trial_over`, `search_closed`.
        """
        with self._lock:
            number = self._check_running(trial)
            told = self._check_values(number, values)
            limit = max(0.0, self._check_value(number, constraint))
            violation = measure_violation(told, self.guard, self.objectives) + limit
            return self._end(
                number,
                "done",
                {"notes": check_data("notes", notes), "violation": violation, "constraint": limit},
                list(told.values()),
            )

    def stop(self, trial: Trial | int, reason: str = "", *, notes: Mapping[str, object] = {}) -> Record:
        """End a trial early that was not worth going on with; what it reported counts.

        Raises:
            ConflictError: `trial_over`.
        """
        with self._lock:
            number = self._check_running(trial)
            return self._end(number, "stopped", {"notes": check_data("notes", notes), "reason": _check_reason(reason)})

    def fail(self, trial: Trial | int, reason: str, *, notes: Mapping[str, object] = {}) -> Record:
        """Say that a trial came to nothing, and why.

        Raises:
            ConflictError: `trial_over`.
        """
        with self._lock:
            number = self._check_running(trial)
            return self._end(number, "failed", {"notes": check_data("notes", notes), "reason": _check_reason(reason)})

    def front(self) -> list[Record]:
        """Give the trials within the guard that no other is as good as in every objective and better in one."""
        return find_front(self.trials, self.objectives)

    def best(self, guard: Mapping[str, float] | None = None, *, objective: str | None = None) -> Record | None:
        """Give the best trial within a guard, None if none holds it.

        Args:
            guard: bounds by objective; default: the study's own.
            objective: what is to be best; default: the first that the guard does not name.

        Raises:
            InputError: `unknown_choice`; `bad_option`, a bound is no finite number.
        """
        return choose_best(self.trials, self.objectives, self.guard if guard is None else guard, objective)

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Give the volume between the front and a point that is worse than all of it; see `measure_hypervolume`."""
        return measure_hypervolume(self.trials, self.objectives, reference)

    def importance(self, objective: str | None = None) -> dict[str, float]:
        """Say how much of reaching the best values each parameter decides: parts of 1, the largest first; {} of too few trials.

        Source: Watanabe et al. 2023, PED-ANOVA, arXiv:2304.10255.

        Args:
            objective: default: the watched one.

        Raises:
            InputError: `unknown_choice`.
        """
        with self._lock:
            return measure_importance(self._book.study, self.objectives, objective or self.watch)

    def describe(self) -> dict[str, Any]:
        """Give what it searches, as JSON data."""
        return {
            "space": self.space.describe(),
            "objectives": dict(self.objectives),
            "method": self.method,
            "guard": self.guard,
            "seed": self.seed,
            "watch": self.watch,
            **({} if self._population is None else {"population": self._population.size}),
        }

    def list_parents(self) -> set[int]:
        """Give the numbers of the trials from whose weights others may go on; none but by the method `pbt`."""
        with self._lock:
            return set() if self._population is None else set(self._population.list_parents(len(self._book)))

    def _plan_next(self) -> None:
        """Enqueue the next point, where no sampler gives it."""
        if self._plan is not None:
            point = self._plan.choose(self.trials)
            if point is None:
                detail = f"{self.method} gives no more than {len(self.trials)} points"
                raise ConflictError("search_over", name=self.name, detail=detail)
            self._book.enqueue(point)
        elif self._population is not None and len(self._book) >= self._population.size:
            child = self._population.choose(self.trials, len(self._book))
            if child is None:
                detail = f"all {self._population.size} members of the last generation failed"
                raise ConflictError("search_over", name=self.name, detail=detail)
            self._book.enqueue_child(*child)

    def _may_stop(self, record: Record, last: int) -> bool:
        """Say whether what was watched can tell that a trial is bad.

        Of several objectives it is one: a small model that is a little worse may be just what is looked for. Only what breaks the
        guard is none; but who asks for hyperband is told that it goes by the watched one alone.
        """
        if len(self.objectives) == 1 or self.method == "hyperband":
            return True
        known = [value for step, value in record.steps.items() if step <= last]
        bounds = {name: bound for name, bound in self.guard.items() if name == self.watch}
        return bool(bounds and known) and all(
            measure_violation({self.watch: value}, bounds, self.objectives) > 0.0 for value in known
        )

    def _end(
        self, number: int, state: Literal["done", "stopped", "failed"], told: Mapping[str, object], values: Sequence[float] = ()
    ) -> Record:
        self._asked.pop(number, None)
        return self._book.end(number, state, told, values)

    def _check_open(self) -> None:
        """Whoever has closed a search holds it no longer, and would write into another's journal; so would who was forked."""
        if self._is_closed:
            raise ConflictError("search_closed", name=self.name)
        if self._pid != os.getpid():
            raise ConflictError("search_active", name=self.name)

    def _check_running(self, trial: Trial | int) -> int:
        self._check_open()
        number = trial.number if isinstance(trial, Trial) else trial
        if type(number) is not int or not 0 <= number < len(self._book):
            raise InputError("bad_option", option="trial", got=number, expected="a trial that this study was asked for")
        if isinstance(trial, Trial) and trial.study is not self:
            raise InputError("bad_option", option="trial", got=number, expected="a trial that this study was asked for")
        record = self._book.get(number)
        if record.state != "running":
            raise ConflictError("trial_over", number=number, name=self.name, state=record.state)
        return number

    def _check_values(self, number: int, values: float | Mapping[str, float]) -> dict[str, float]:
        names = list(self.objectives)
        if not isinstance(values, Mapping):
            if len(names) > 1:
                raise InputError("bad_told", number=number, got=values, expected=f"a value for each of {', '.join(names)}")
            values = {names[0]: values}
        if values.keys() != self.objectives.keys():
            raise InputError("bad_told", number=number, got=sorted(values), expected=f"a value for each of {', '.join(names)}")
        return {name: self._check_value(number, values[name]) for name in names}

    def _check_value(self, number: int, value: object) -> float:
        try:
            # What `float` makes of a text, or of a truth, was not measured.
            found = math.nan if isinstance(value, str | bytes | bool) else float(cast("Any", value))
        except Exception:  # whatever a number of another library raises, such as that it is several
            found = math.nan
        if not math.isfinite(found):
            raise InputError("bad_told", number=number, got=repr(value)[:_MAX_TOLD], expected="a finite number")
        return found

    def _check_guard(self, guard: Mapping[str, float]) -> dict[str, float]:
        given = cast("object", guard)
        if not isinstance(given, Mapping):
            raise InputError("bad_option", option="guard", got=given, expected="bounds by the names of objectives")
        for name, bound in guard.items():
            is_number = type(bound) in (int, float) and is_finite(bound)
            if name not in self.objectives or not is_number:
                expected = f"finite bounds of objectives: {', '.join(self.objectives)}"
                raise InputError("bad_option", option="guard", got={name: bound}, expected=expected)
        return {name: float(bound) for name, bound in guard.items()}


def _check_reason(reason: object) -> str:
    """Give a reason as it is kept.

    Raises:
        InputError: `bad_option`, it is no text.
    """
    if not isinstance(reason, str):
        raise InputError("bad_option", option="reason", got=reason, expected="a text")
    # It is shown in one line of a terminal, and by a page.
    return "".join(letter if letter.isprintable() else " " for letter in reason[:_MAX_TOLD])


def _turn(record: Record, sign: float) -> Record:
    steps = {step: sign * value for step, value in record.steps.items()}
    return Record(record.number, record.parameters, record.state, steps=steps, same_as=record.same_as)
