"""`compress`: make a version smaller or faster, measure what that cost, and publish it if it cost little enough."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from argosy.bench.artifact import Artifact, open_version
from argosy.bench.rows import Rows
from argosy.compress.find import SEARCHES, Budget, Found, find
from argosy.compress.judge import Guard
from argosy.compress.jury import Jury
from argosy.compress.keeping import choose_keeping, explain_keeping, forget
from argosy.compress.kind import find_meaning
from argosy.compress.measure import OBJECTIVES
from argosy.compress.publish import publish_artifact
from argosy.compress.recipe import Recipe, get_recipe, retrains, run_recipe
from argosy.compress.result import CompressResult, Tried
from argosy.compress.sample import Sample, remove_known, split_sample, take_golden, take_sample
from argosy.compress.served import Stage, serve_finalists
from argosy.compress.steps.base import Step, Workshop
from argosy.compress.steps.distill import take_student
from argosy.compress.student import open_student
from argosy.deploy.spec import Arrival
from argosy.errors import ConflictError, FaultError, InputError, NotAllowedError, list_choices
from argosy.output_file import OutputFile
from argosy.runtimes.base import CODE_RUNTIMES
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.temporary import work_folder

__all__ = ["compress"]

_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
"""Target -> what a runtime is told."""

_OBJECTIVE, _SEARCH = "latency", "gradient"
_OF_SEARCH = {
    "objective": "--objective (objective=)",
    "search": "--search (search=)",
    "budget": "--trials or --max-seconds (budget=)",
}
"""What a search alone is told, as its users write it."""
_RUNTIMES = ("keras", "onnx", "openvino", "torch")
"""Whose files steps read."""
_BUDGET_S = 1.0
"""For timing a model at each batch size."""


def compress(
    reference: str | Version,
    *,
    method: str | Step | Sequence[str | Step] | None = None,
    objective: str | None = None,
    search: str | None = None,
    data: object = None,
    calibration: object = None,
    evaluation: tuple[object, object] | None = None,
    student: object = None,
    guard: Guard | None = None,
    budget: Budget | None = None,
    target: str = "cpu",
    allow_code: bool = False,
    served: bool | None = None,
    trace: Sequence[Arrival] = (),
    needs_gain: bool = True,
    publish: bool = True,
    report: OutputFile | Path | str | None = None,
    store: Store | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CompressResult:
    """Compress a version of the store and publish the result as the next version of its model.

    Candidates are judged in processes of their own, by the runtimes that would serve them, on rows that none of them saw.

    Args:
        reference: the version, or NAME, NAME@VERSION, NAME@ALIAS.
        method: a recipe: names of `STEPS` with `+` between them, or steps with their parameters set. None finds the best one for
            the objective.
        objective: what to look for without a method: `latency` (default), `throughput`, `size` or `memory`.
        search: how recipes are looked for without a method: `gradient` (default), `random`, `genetic` or `tpe`. Killed at any
            moment, the same call goes on, and loses no recipe that was tried.
        data: rows like those to come, without or with targets as a pair; they are split into rows to calibrate with and rows to
            judge on. As `calibration` and `evaluation`, which may be given instead. Where the version makes tensors of texts or
            pictures, a list of these.
        calibration: representative rows, such as those of training; an array, one for each input by name, or a list of requests
            of any shapes, each a mapping by input name. Rows that are among them are left out of the evaluation. Methods that
            train do so on these; given as a pair, with the targets.
        evaluation: rows and targets to judge on, before and after: targets one a row, or by output name, or None. Without
            targets the answers are held against the parent's; without rows, on its golden examples if they are real.
        student: a live model of any framework, or `FILE.py:FUNCTION` which makes one, that is taught to answer as the original;
            it is trained in place. Of a given method its step `distill` takes it.
        guard: how much may be lost of what; default: 0.01 of what the version was trained for (accuracy, or R2 of values),
            and of the fidelity to the original where nothing says what its outputs are.
        budget: of the search without a method; default: `Budget()`.
        target: what it will run on: `cpu`, or (untested) `gpu`, by ONNX Runtime's CUDA, which this machine must have. Models that
            use a GPU run unconfined.
        allow_code: compress a version that may run code of its maker, as `argosy deploy` is asked.
        served: measure what comes near, and the original, behind a server as well, by which the best is chosen; False: go by
            the time that models take in a process alone. Default: in a search, and with a trace.
        trace: recorded requests (`argosy.tune.trace.read_trace`), whose rows and lengths the requests to that server have;
            default: rows of those that are judged on, one by one.
        needs_gain: refuse what is larger, and what is neither smaller nor faster. False publishes what a given method makes all
            the same; a search publishes nothing but what is better.
        publish: False measures only.
        report: HTML file for all that was measured; written also where nothing is found.
        store: default: that of ARGOSY_HOME.
        say: is told what happens.

    Raises:
        ConflictError: `guard_failed`, too much was lost; `answers_ruined`, whatever its metric says; `no_gain`; `nothing_found`:
            nothing was published; `compression_active`.
        InputError: `needs_calibration`, `bad_data`, `bad_option`, `idle_option`, `unknown_choice`, `already_compressed`,
            `not_compressible`, `nothing_to_compress`, `missing_extra`, `step_unfit`, `step_failed`, `too_few_rows`,
            `too_few_training_rows`, `needs_student`, `student_unfit`, `bad_program`, `bad_kept_search`, `file_exists`,
            `unwritable`.
        FaultError: `engine_failed`, the version's own runtime cannot run it; or what a given method made cannot be run.
        NotAllowedError: `code_not_allowed`.
        NotFoundError: no such version.
        StoreError: the parent's files are damaged; `temp_full`.
    """
    _refuse_idle(method, needs_gain, objective=objective, search=search, budget=budget)
    objective, search = objective or _OBJECTIVE, search or _SEARCH
    store = store or Store()
    for option, got, kind in (("guard", guard, Guard), ("budget", budget, Budget)):
        if got is not None and not isinstance(cast("object", got), kind):
            raise InputError("bad_option", option=option, got=got, expected=f"an argosy {kind.__name__}, or None")
    guard = guard or Guard()
    recipe = None if method is None else get_recipe(method)
    taught = None if student is None else open_student(student)
    if recipe is not None and taught is not None:
        recipe = take_student(recipe, taught)
    for kind, got, known in (("objective", objective, OBJECTIVES), ("search", search, SEARCHES), ("target", target, _DEVICES)):
        if got not in tuple(known):
            raise InputError("unknown_choice", kind=kind, got=got, known=list_choices(known))
    if trace and served is False:
        raise InputError("bad_option", option="served", got=False, expected="True with a trace, which says what is served")
    page = OutputFile(report) if isinstance(report, Path | str) else report
    if page is not None:
        importlib.import_module("argosy.train.report").check_report()
    parent = store.get_version(reference) if isinstance(reference, str) else reference
    _check_parent(parent, allow_code=allow_code, has_student=taught is not None)
    if publish:
        store.check_writable()
    with work_folder("argosy-compress-") as work:
        artifact = _open_parent(store, parent, work / "parent", target)
        rows, training, sample = _take_rows(store, parent, artifact, recipe, data, calibration, evaluation)
        meaning, golden = find_meaning(parent), _take_golden(store, parent).rows if parent.manifest.num_golden else ()
        workshop = Workshop(work / "made", rows, training.rows, training.targets, meaning, taught, say=say)
        is_served = (recipe is None or bool(trace)) if served is None else served
        stage = Stage(artifact, parent, sample.rows, work / "stage", trace) if is_served else None
        with (
            closing(workshop.process),
            stage or nullcontext(),
            Jury(artifact, meaning, guard, sample, work / "jury", golden=golden, stage=stage) as jury,
        ):
            keeping = None
            if recipe is not None:
                found = _try_one(recipe, jury, workshop, say)
            else:
                wanted = (search, objective, target)
                keeping = choose_keeping(store.home, parent, workshop, sample, guard, wanted) if publish else None
                with explain_keeping(keeping, f"{parent.name}@{parent.number}"):
                    found = find(jury, workshop, objective, budget or Budget(), search=search, keeping=keeping, say=say)
            if found.best is None:
                forget(keeping)
                if page is not None:
                    _import_report().write_nothing_found(page, parent, found.tried, guard, objective, found.left)
                fields: dict[str, Any] = {"objective": objective, "max_loss": guard.max_loss, "tried": found.explanation}
                raise ConflictError("nothing_found", left=f"; not all was tried: {found.left}" if found.left else "", **fields)
            result = _tell(
                found, found.best, parent, guard, objective="" if recipe else objective, search="" if recipe else search
            )
            result = dataclasses.replace(result, unserved=stage.problem if stage is not None else "")
            if publish:
                if needs_gain and not result.gain.is_one and recipe is not None:
                    name = f"{parent.name}@{parent.number}"
                    raise ConflictError("no_gain", method=result.title, reference=name, found=result.gain.describe())
                assert found.artifact is not None
                version = publish_artifact(store, result, found.artifact, rows, training.rows)
                result = dataclasses.replace(result, version=version)
                forget(keeping)
    if page is not None:
        _import_report().write_report(page, result)
    return result


def _refuse_idle(method: object, needs_gain: bool, **of_search: object) -> None:
    """Refuse what would do nothing.

    Raises:
        InputError: `idle_option`.
    """
    given = [_OF_SEARCH[name] for name, value in of_search.items() if value is not None]
    if method is not None and given:
        instead = "leave it out; or leave the method out, and the best one is looked for"
        raise InputError(
            "idle_option", option=", ".join(given), where="beside a method, which is all that is tried", instead=instead
        )
    if method is None and not needs_gain:
        where = "without a method: a search publishes nothing but what is better"
        instead = "leave it out, or name the method whose result is wanted"
        raise InputError("idle_option", option="--without-gain (needs_gain=False)", where=where, instead=instead)


def _tell(found: Found, chosen: Tried, parent: Version, guard: Guard, **how: str) -> CompressResult:
    """Give what was found as a result that is not published yet; `how` are fields of it."""
    assert chosen.score is not None and chosen.before is not None and chosen.after is not None
    metric = "accuracy" if chosen.score.metric == "agreement" else chosen.score.metric
    return CompressResult(
        parent=parent,
        version=None,
        recipe=chosen.recipe,
        guard=dataclasses.replace(guard, metric=metric),
        score=chosen.score,
        before=chosen.before,
        after=chosen.after,
        tried=found.tried,
        examples=chosen.examples,
        sensitivity=found.sensitivity,
        **how,
    )


def _import_report() -> Any:
    """Import what draws, which most calls need not."""
    return importlib.import_module("argosy.compress.report")


def _open_parent(store: Store, parent: Version, folder: Path, target: str) -> Artifact:
    """Give a version's files, copied where some lie beside the entry: of these `onnx` reads none that has several names.

    Raises:
        InputError: `bad_option`, its runtime has no such target.
    """
    artifact = open_version(store, parent)
    if target != "cpu" and artifact.runtime != "onnx":
        raise InputError(
            "bad_option", option="target", got=target, expected=f"cpu, for a version of the runtime {artifact.runtime}"
        )
    if target != "cpu":
        options = {**artifact.options, "device": _DEVICES[target]}
        artifact = dataclasses.replace(artifact, options=options, has_devices=True)
    if len(artifact.files) == 1:
        return artifact
    store.copy_artifact(parent, folder)
    return dataclasses.replace(artifact, folder=folder)


def _check_parent(parent: Version, *, allow_code: bool, has_student: bool) -> None:
    """Refuse what was compressed already, what no step reads and no student learns from, and code that nobody has allowed."""
    lineage: dict[str, Any] = parent.manifest.lineage
    if "compression" in lineage:
        steps = lineage["compression"].get("recipe") or [lineage["compression"]["method"]]
        made_by = " + ".join(step["name"] for step in steps)
        origin = f"{lineage['parent']['name']}@{lineage['parent']['number']}"
        raise InputError("already_compressed", name=parent.name, version=parent.number, method=made_by, parent=origin)
    runtime = parent.manifest.runtime
    if runtime not in _RUNTIMES and not has_student:
        raise InputError("not_compressible", name=parent.name, version=parent.number, runtime=runtime)
    if runtime in CODE_RUNTIMES and not allow_code:
        raise NotAllowedError("code_not_allowed", name=parent.name, version=parent.number, runtime=runtime)


def _take_rows(
    store: Store,
    parent: Version,
    artifact: Artifact,
    recipe: Recipe | None,
    data: object,
    calibration: object,
    evaluation: object,
) -> tuple[Rows, Sample, Sample]:
    """Give the rows to calibrate with, those to train on, and those to judge on."""
    signature = parent.manifest.signature
    take = partial(take_sample, signature, folder=artifact.folder)
    rows: Rows = ()
    training, sample = Sample(()), None
    if data is not None:
        if calibration is not None or evaluation is not None:
            raise InputError(
                "bad_option", option="data", got="data and its parts", expected="either data, or calibration and evaluation"
            )
        whole, targets = _split_pair(data)
        rows, training, sample = split_sample(take(whole, targets))
    if calibration is not None:
        training = take(*_split_pair(calibration))
        rows = training.rows
    if evaluation is not None:
        got = type(evaluation).__qualname__
        pair = tuple(cast("Sequence[object]", evaluation)) if isinstance(evaluation, tuple | list) else ()
        if len(pair) != 2:
            detail = f"evaluation is a {got}, expected a pair of rows and targets; None for no targets"
            raise InputError("bad_data", detail=detail)
        sample = remove_known(take(*pair), rows)
    name = parent.name
    steps = "+".join(step.name for step in recipe) if recipe else "search"
    if not rows and (recipe is None or any(step.needs_calibration or step.retrains for step in recipe)):
        raise InputError("needs_calibration", method=steps, what="calibration rows", name=name)
    if sample is None:
        if not parent.manifest.num_golden or (recipe is None and parent.manifest.golden_is_synthetic):
            raise InputError("needs_calibration", method=steps, what="evaluation rows", name=name)
        sample = _take_golden(store, parent)
    return rows, training, sample


def _take_golden(store: Store, parent: Version) -> Sample:
    return take_golden(parent.manifest.signature, store.load_golden(parent))


def _split_pair(data: object) -> tuple[object, object]:
    parts: tuple[object, ...] = cast("Any", data) if isinstance(data, tuple) else ()
    return (parts[0], parts[1]) if len(parts) == 2 else (cast("object", data), None)


def _try_one(recipe: Recipe, jury: Jury, workshop: Workshop, say: Callable[[str], None]) -> Found:
    """Make and judge what a given recipe makes.

    Raises:
        ConflictError: `guard_failed`, `answers_ruined`.
        InputError, FaultError: as `compress`.
    """
    started = time.monotonic()
    made = run_recipe(recipe, jury.parent, workshop, say)
    title = Tried(recipe).title
    found = jury.judge(made, title, budget_s=_BUDGET_S, is_retrained=retrains(recipe))
    score, problem = found.score, jury.guard.find_problem(found.score)
    if problem:
        basis = f"{score.num_rows} {score.basis} rows"
        fields: dict[str, Any] = {"metric": score.metric, "before": score.before, "after": score.after, "basis": basis}
        if problem == score.ruin:
            raise ConflictError("answers_ruined", **fields, ruin=score.ruin)
        raise ConflictError("guard_failed", **fields, loss=score.loss, allowed=jury.guard.max_loss, reason=score.reason)
    seconds = time.monotonic() - started
    tried = [Tried(recipe, score, found.before, found.after, seconds=seconds, examples=found.examples)]
    serve_finalists(jury.stage, tried, {0: made}, [0], "", say)
    if tried[0].problem:
        raise FaultError("engine_failed", engine=tried[0].title, detail=tried[0].problem)
    return Found(made, tried[0], tuple(tried))
