"""`search`: train a program with parameters of a space, trial by trial, and publish the best within the guard."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from argosy.errors import ConflictError, InputError
from argosy.optim.schedules import check_count, check_number
from argosy.output_file import OutputFile
from argosy.search.crew import Crew
from argosy.search.journal import digest_file, empty_folder
from argosy.search.measure import COSTS, TIMED
from argosy.search.population import make_population
from argosy.search.publish import publish_best
from argosy.search.record import Direction, Record
from argosy.search.result import SearchResult
from argosy.search.runner import Plan, Runner, check_program, count_threads
from argosy.search.space import Space
from argosy.search.study import Study
from argosy.store.local import Store
from argosy.train.losses import METRICS
from argosy.train.program import check_importing, is_program

__all__ = ["choose_objectives", "search"]

_TRIALS: Final = 20
_GENERATIONS: Final = 10
"""Of a population."""


def search(
    program: str | Callable[..., Any],
    space: Space | Mapping[str, object],
    *,
    trials: int | None = None,
    method: str = "tpe",
    metric: str = "accuracy",
    objectives: Sequence[str] | Mapping[str, str] = (),
    guard: Mapping[str, float] = {},
    name: str | None = None,
    epochs: int | None = None,
    population: int | None = None,
    interval: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    max_s: float | None = None,
    max_trial_s: float | None = None,
    restart: bool = False,
    publish: bool = True,
    report: OutputFile | Path | str | None = None,
    store: Store | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SearchResult:
    """Search for the parameters with which a program trains the best model, and publish that model.

    Each trial trains in a process of its own: what crashes or runs out of memory is that trial's failure. What was found is kept
    trial by trial: killed at any moment, the same call goes on, and asks again what was running.

    Args:
        program: `FILE.py:FUNCTION`, or a function that stands in a file. Called with a value for each parameter, by name, it
            gives what `argosy train FILE.py:FUNCTION` takes: `model`, `data` with validation rows, and any other argument of
            `argosy.train`.
        space: what may be chosen, as `Space` takes it.
        trials: that the search has when it ends, with those of earlier calls; default: 20, and of `pbt` ten for each member.
        method: a name of `METHODS`, but not `gradient`.
        metric: what is measured on the validation rows after each epoch: `loss`, or a metric of the program. By it bad trials are
            stopped early; it is the first objective.
        objectives: more of them: `size`, `latency`, `throughput`, `memory` of the exported model, as a worker would run it. A
            mapping says `minimize` or `maximize`, which a metric of the program's own needs.
        guard: bounds by objective: at least, of one to maximize, at most, of one to minimize. Only what holds them is published.
        name: of the model, and of the search; default: the function's.
        epochs: of each trial, instead of the program's own. Not for `pbt`.
        population: members of `pbt`, default 8: so many trials are a generation.
        interval: epochs of a trial of `pbt`, default 1: it goes on from the weights of an earlier one.
        seed: of the method. The program has its own.
        jobs: trials at a time. Timings are measured alone, once all that run have ended.
        max_s: seconds after which no new trial is begun; None: no limit.
        max_trial_s: seconds after which a trial has failed; None: no limit.
        restart: forget what was searched under this name.
        publish: False only searches.
        report: HTML file for the front, the history and all trials; written also where nothing can be published.
        store: default: that of ARGOSY_HOME.
        say: is told what happens.

    Raises:
        InputError: `bad_program`, `trial_refused`, `bad_space`, `bad_option`, `unknown_choice`, `bad_name`, `method_unfit`,
            `missing_extra`, `bad_journal`, `file_exists`, `unwritable`.
        ConflictError: `search_differs`, `search_active`; `search_empty`, no trial holds the guard: nothing was published.
        StoreError: `disk_full`, `write_failed`.
    """
    started = time.monotonic()
    interval = _check_interval(method, epochs, interval)
    check_count("jobs", jobs)
    for option, limit in (("max_s", max_s), ("max_trial_s", max_trial_s)):
        if limit is not None:
            check_number(option, limit, "a number of seconds above 0, or None", lowest=0.0, is_open=True)
    if epochs is not None:
        check_count("epochs", epochs)
    if method == "gradient":
        detail = "it needs a score of each option, which a program does not give; it is for `argosy.search.Study`"
        raise InputError("method_unfit", method=method, detail=detail)
    given = space if isinstance(space, Space) else Space(space)
    directions = choose_objectives(metric, objectives)
    members = make_population(method, given, population, seed, metric, is_minimized=directions[metric] == "minimize")
    if trials is None:
        trials = _TRIALS if members is None else _GENERATIONS * members.size
    check_count("trials", trials)
    store = store or Store()
    target = _find_target(program)
    page = OutputFile(report) if isinstance(report, Path | str) else report
    if page is not None:
        importlib.import_module("argosy.train.report").check_report()
    described = _describe_program(target)
    options: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    plan = Plan(target, described["digest"], metric, options, trials, jobs, max_s, max_trial_s, interval)
    about = {"program": described, "options": options}
    about |= {} if interval is None else {"interval": interval}
    first = check_program(target, list(given), count_threads(jobs), max_trial_s)
    with Crew() as crew:
        crew.add(first)
        study = Study(
            given, directions, method=method, guard=guard, name=name or target.rpartition(":")[2], home=store.home, seed=seed,
            population=population, about=about, restart=restart,
        )  # fmt: skip
        with study:
            assert study.folder is not None
            try:
                Runner(study, plan, crew, first, TIMED & directions.keys(), say).run()
            except InputError as error:
                # What was refused at once is no beginning of a search, which other settings would then differ from.
                if error.key in ("trial_refused", "bad_program") and not any(one.seconds is not None for one in study.trials):
                    empty_folder(study.folder)
                raise
            result = _describe(study, time.monotonic() - started)
            if page is not None:
                importlib.import_module("argosy.search.report").write_report(page, result)
            if not publish:
                return result
            if result.best is None:
                raise ConflictError("search_empty", name=study.name, detail=_explain_empty(result.trials), folder=study.folder)
            return dataclasses.replace(result, version=publish_best(study, result.best, store, about, say))


def choose_objectives(metric: str, objectives: Sequence[str] | Mapping[str, str]) -> dict[str, Direction]:
    """Give the metric and what else is searched for, each with its direction.

    Raises:
        InputError: `bad_option`, nobody knows the direction of one, or it is given another than it has.
    """
    known: dict[str, str] = {
        "loss": "minimize",
        **{name: "maximize" if found.is_higher_better else "minimize" for name, found in METRICS.items()},
        **COSTS,
    }
    given: dict[str, str | None]
    given = dict(objectives) if isinstance(objectives, Mapping) else dict.fromkeys(objectives)
    found: dict[str, Direction] = {}
    for name in dict.fromkeys([metric, *given]):
        direction = given.get(name) or known.get(name)
        if direction not in ("minimize", "maximize") or known.get(name, direction) != direction:
            if name == metric:
                expected = (
                    f"a direction: --metric {name}:maximize or {name}:minimize, in Python objectives={{'{name}': 'maximize'}}"
                )
                raise InputError("bad_option", option="metric", got=name, expected=expected)
            expected = f"a direction, minimize or maximize, for {name}"
            raise InputError("bad_option", option="objectives", got={name: given.get(name)}, expected=expected)
        if name != metric and name not in COSTS:
            expected = f"the metric {metric} and any of {', '.join(COSTS)}"
            raise InputError("bad_option", option="objectives", got=name, expected=expected)
        found[name] = direction
    if metric in COSTS:
        raise InputError("bad_option", option="metric", got=metric, expected="loss, or a metric that the program measures")
    return found


def _check_interval(method: str, epochs: int | None, interval: int | None) -> int | None:
    """Give the epochs of a trial of a population, None for other methods."""
    if method != "pbt":
        if interval is not None:
            raise InputError("bad_option", option="interval", got=interval, expected=f"None with the method {method}")
        return None
    if epochs is not None:
        raise InputError("bad_option", option="epochs", got=epochs, expected="None with the method pbt: `interval` says how many")
    check_count("interval", interval := 1 if interval is None else interval)
    return interval


def _describe(study: Study, seconds: float) -> SearchResult:
    assert study.folder is not None
    return SearchResult(
        name=study.name,
        space=study.space,
        objectives=study.objectives,
        method=study.method,
        guard=study.guard,
        trials=tuple(study.trials),
        front=tuple(study.front()),
        best=study.best(),
        version=None,
        importance=study.importance(),
        folder=study.folder,
        journal=study.digest,
        seconds=seconds,
    )


def _explain_empty(trials: Sequence[Record]) -> str:
    """Say why there is no best trial, with the nearest one or the last reason."""
    done = [record for record in trials if record.state == "done"]
    if done:
        nearest = min(done, key=lambda record: record.violation)
        values = ", ".join(f"{name} {value:.4g}" for name, value in nearest.values.items())
        return f"none of {len(done)} holds the guard; the nearest is trial {nearest.number} with {values}"
    failed = [record for record in trials if record.state == "failed"]
    if failed:
        return f"{len(failed)} of {len(trials)} failed, the last one: {failed[-1].reason}"
    return "none has ended" if not trials else "all were stopped early"


def _find_target(program: str | Callable[..., Any]) -> str:
    if isinstance(program, str):
        if not is_program(program):
            raise InputError("bad_program", target=program, detail="expected FILE.py:FUNCTION")
        path = Path(program.rpartition(":")[0])
        target = program
    else:
        try:
            found = inspect.getsourcefile(program)
        except TypeError:
            found = None
        name = getattr(program, "__qualname__", "")
        if found is None or not name.isidentifier() or not found.endswith(".py"):
            raise InputError("bad_program", target=repr(program), detail="it is no function at the top of a file")
        path = Path(found)
        target = f"{path}:{name}"
    if not path.is_file():
        raise InputError("bad_program", target=target, detail="there is no such file")
    check_importing(target)
    return target


def _describe_program(target: str) -> dict[str, str]:
    path, _, function = target.rpartition(":")
    return {"file": Path(path).name, "function": function, "digest": digest_file(Path(path))}
