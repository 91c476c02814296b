"""The trials of a study, as Optuna keeps them: the only place that knows its objects."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import numpy as np

from argosy.errors import ConflictError, InputError
from argosy.frameworks.base import import_extra
from argosy.search.journal import open_storage
from argosy.search.methods import make_sampler
from argosy.search.record import Direction, Record
from argosy.search.space import Choice, Float, Parameter, Space, Value

__all__ = ["Book"]

_STUDY: Final = "study"
_MAX_TOLD: Final = 200


class Book:
    """Trials by number, each with parameters of a space.

    Args:
        path: of the journal; None: in memory.
        name: of the search, for messages.
        space: of the parameters.
        objectives: and their directions.
        settings: what must be the same to go on with a journal; JSON data, `method` and `seed` among it.

    Raises:
        ConflictError: `search_differs`.
        InputError: `missing_extra`, `bad_journal`.
        StoreError: `disk_full`, `write_failed`.
    """

    def __init__(
        self, path: Path | None, name: str, space: Space, objectives: Mapping[str, Direction], settings: Mapping[str, Any]
    ) -> None:
        optuna = import_extra("optuna", feature="A search", extra="search")
        logging.getLogger("optuna").setLevel(logging.WARNING)  # It tells of every trial.
        self._space, self._objectives = space, objectives
        self._method, self._seed = str(settings["method"]), int(settings["seed"])
        self._storage: Any = open_storage(path, name)
        directions = list(objectives.values())
        known = [study.study_name for study in self._storage.get_all_studies()]
        if not known and path is not None and path.stat().st_size:
            raise InputError("bad_journal", name=name, detail="it is that of no search")
        # To create one that is there would write to the journal.
        open_study = optuna.load_study if _STUDY in known else partial(optuna.create_study, directions=directions)
        self.study: Any = open_study(storage=self._storage, study_name=_STUDY)
        self._study_id: int = self._storage.get_study_id_from_name(_STUDY)
        self._trials: Any = optuna.trial
        self._distributions = {name: _make_distribution(optuna.distributions, parameter) for name, parameter in space.items()}
        self._check_settings(name, json.loads(json.dumps(settings)))
        self._check_records(name)

    def __len__(self) -> int:
        """Trials, whatever has become of them."""
        return len(self._list())

    def list_records(self) -> list[Record]:
        """Give those that have their parameters."""
        return [self._record(trial) for trial in self._list() if len(trial.params) == len(self._space) or _is_over(trial)]

    def get(self, number: int) -> Record:
        """Give one of them."""
        return self._record(self._storage.get_trial(self._find_id(number)))

    def list_running(self) -> list[int]:
        """Give the numbers of those that were begun and not told."""
        return [trial.number for trial in self._list() if trial.state.name == "RUNNING"]

    def list_waiting(self) -> list[int]:
        """Give the numbers of those that were enqueued and not begun."""
        return [trial.number for trial in self._list() if trial.state.name == "WAITING"]

    def enqueue(self, point: Mapping[str, Value]) -> None:
        """Have a point asked next, unless it was already."""
        queued = [trial.system_attrs.get("fixed_params") for trial in self._list()]
        if not any(dict(point) == known for known in (*queued, *(record.parameters for record in self.list_records()))):
            self.study.enqueue_trial(dict(point))

    def enqueue_child(self, point: Mapping[str, Value], parent: int) -> None:
        """Have a point asked next that goes on from the weights of a trial, whatever was asked before."""
        self.study.enqueue_trial(dict(point), user_attrs={"parent": parent})

    def begin(self) -> Record:
        """Begin the trial that waits longest, or a new one."""
        waiting = self.list_waiting()
        number = waiting[0] if waiting else len(self)
        self.study.sampler = make_sampler(self._method, self._seed, number)
        with np.errstate(all="ignore"):  # Samplers compute with values near the ends of what a float holds, too.
            trial = self.study.ask()
            assert trial.number == number
            return self._draw(trial)

    def begin_again(self, number: int) -> Record:
        """Begin a trial, under its own number, that a process had begun that is gone."""
        trial_id = self._find_id(number)
        attempts = self.get(number).attempts + 1
        self._storage.set_trial_user_attr(trial_id, "attempts", attempts)
        self.study.sampler = make_sampler(self._method, self._seed, number)
        with np.errstate(all="ignore"):
            return self._draw(self._trials.Trial(self.study, trial_id))

    def report(self, number: int, step: int, value: float) -> None:
        """Keep what a trial came to after a step; what an earlier attempt came to is forgotten."""
        self._storage.set_trial_intermediate_value(self._find_id(number), step, value)

    def end(
        self, number: int, state: Literal["done", "stopped", "failed"], told: Mapping[str, object], values: Sequence[float] = ()
    ) -> Record:
        """End a trial.

        Args:
            number: its.
            state: what has become of it.
            told: `notes`, `reason`, `violation`, `constraint`.
            values: of the objectives, of one that is done.
        """
        trial_id = self._find_id(number)
        self._storage.set_trial_user_attr(trial_id, "told", {"state": state, **told})
        self.study.sampler = make_sampler(self._method, self._seed, number)
        # Of several objectives Optuna knows no trials that were stopped.
        states = {"done": "COMPLETE", "stopped": "PRUNED" if len(self._objectives) == 1 else "FAIL", "failed": "FAIL"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if state == "done":
                self._trials.Trial(self.study, trial_id).set_constraint("guard", told["violation"])
            # The last line of a trial in the journal: without it, it is still to be tried.
            self.study.tell(number, list(values) or None, state=self._trials.TrialState[states[state]])
        return self.get(number)

    def _list(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _find_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _draw(self, trial: Any) -> Record:
        """Give a trial the parameters that it has not: its process may have been killed between one and the next."""
        number = trial.number
        # What is drawn for all parameters at once is drawn by the trial's own sampler.
        assert trial.relative_params is not None
        for name, given in self._distributions.items():
            self.study.sampler = make_sampler(self._method, self._seed, number, name)
            if isinstance(self._space[name], Choice):
                trial.suggest_categorical(name, given.choices)
            else:
                suggest = trial.suggest_float if isinstance(self._space[name], Float) else trial.suggest_int
                suggest(name, given.low, given.high, log=given.log, step=given.step)
        return self._note_double(number)

    def _note_double(self, number: int) -> Record:
        """Keep which earlier trial has the same parameters, from the same weights on, if one has."""
        own = self.get(number)
        earlier = [one for one in self.list_records() if one.number < number]
        same = [one.number for one in earlier if (one.parameters, one.parent) == (own.parameters, own.parent)]
        if same and own.same_as is None:
            self._storage.set_trial_user_attr(self._find_id(number), "same_as", same[0])
        return self.get(number)

    def _record(self, trial: Any) -> Record:
        attrs, name, start, end = trial.user_attrs, trial.state.name, trial.datetime_start, trial.datetime_complete
        told: dict[str, Any] = attrs.get("told", {}) if _is_over(trial) else {}
        return Record(
            number=trial.number,
            parameters={name: trial.params[name] for name in self._space if name in trial.params},
            state=told.get("state", "failed") if _is_over(trial) else name.lower(),
            values=dict(zip(self._objectives, trial.values, strict=True)) if name == "COMPLETE" else {},
            violation=float(told.get("violation", 0.0)),
            constraint=float(told.get("constraint", 0.0)),
            steps=dict(sorted(trial.intermediate_values.items())),
            reason=told.get("reason", ""),
            attempts=attrs.get("attempts", 1),
            same_as=attrs.get("same_as"),
            parent=attrs.get("parent"),
            notes=told.get("notes", {}),
            seconds=(end - start).total_seconds() if _is_over(trial) and start and end else None,
        )

    def _check_records(self, name: str) -> None:
        """See that what is kept of trials is what is kept of them: whoever asks later need not doubt it."""
        try:
            if not all(isinstance(trial.system_attrs, dict) for trial in self._list()):
                raise TypeError("what is kept of a trial is no table")
            for record in self.list_records():
                msgspec.convert(msgspec.to_builtins(record), Record)
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
            raise InputError("bad_journal", name=name, detail=f"{type(error).__name__}: {error}") from error

    def _check_settings(self, name: str, own: dict[str, Any]) -> None:
        kept: Any = self.study.user_attrs.get("search")
        if kept is None:
            self.study.set_user_attr("search", own)
        elif not isinstance(kept, dict):
            raise InputError("bad_journal", name=name, detail="it does not say what is searched")
        elif kept != own:
            raise ConflictError("search_differs", name=name, detail=_tell_difference(cast("dict[str, Any]", kept), own))


def _is_over(trial: Any) -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED", "FAIL")


def _make_distribution(kinds: Any, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return kinds.CategoricalDistribution(parameter.options)
    if isinstance(parameter, Float):
        # Optuna warns where the last step does not end at `high`.
        high = parameter.high if parameter.values is None else parameter.values[-1]
        return kinds.FloatDistribution(float(parameter.low), float(high), log=parameter.log, step=parameter.step)
    return kinds.IntDistribution(parameter.low, parameter.values[-1], log=parameter.log, step=parameter.step)


def _tell_difference(kept: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Name the first setting that differs, with both values."""
    for name in sorted({*kept, *own}):
        before, now = kept.get(name), own.get(name)
        if before == now:
            continue
        tables = [cast("dict[str, Any]", value) for value in (before, now) if isinstance(value, dict)]
        if len(tables) == 2:
            return f"{name}: {_tell_difference(*tables)}"
        return f"{name} was {json.dumps(before)[:_MAX_TOLD]}, is {json.dumps(now)[:_MAX_TOLD]}"
    return "they differ"
