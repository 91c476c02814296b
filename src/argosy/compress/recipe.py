"""Recipes: which steps make a smaller or faster artifact of another one, as data that a version keeps and that runs again."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows
from argosy.compress.retrain import RetrainingStep, check_rows, run_original
from argosy.compress.step_process import Made
from argosy.compress.steps.base import LayerStep, Step, Workshop
from argosy.errors import InputError, list_choices

__all__ = ["STEPS", "Recipe", "describe_recipe", "get_recipe", "list_step_layers", "read_recipe", "retrains", "run_recipe"]

_BYTES_PER_S: Final = 5 << 20
"""Steps on large files may take longer, by so much."""

STEPS: Final[Mapping[str, str]] = {
    "simplify": "argosy.compress.steps.simplify:Simplify",
    "float16": "argosy.compress.steps.half:Float16",
    "bfloat16": "argosy.compress.steps.openvino:Bfloat16",
    "openvino": "argosy.compress.steps.openvino:OpenVino",
    "dynamic-int8": "argosy.compress.steps.dynamic:DynamicInt8",
    "int8": "argosy.compress.steps.int8:Int8",
    "weights": "argosy.compress.steps.weights:Weights",
    "nncf-int8": "argosy.compress.steps.nncf:NncfInt8",
    "nncf-weights": "argosy.compress.steps.nncf:NncfWeights",
    "keras-int8": "argosy.compress.steps.native:KerasInt8",
    "torch-int8": "argosy.compress.steps.native:TorchInt8",
    "low-rank": "argosy.compress.steps.low_rank:LowRank",
    "merge-lora": "argosy.compress.steps.merge_lora:MergeLora",
    "prune": "argosy.compress.steps.prune:Prune",
    "distill": "argosy.compress.steps.distill:Distill",
    "fewer-trees": "argosy.compress.steps.trees:FewerTrees",
    "shallow-trees": "argosy.compress.steps.trees:ShallowTrees",
}
"""Where each step's class is, imported when it is asked for."""


Recipe = tuple[Step, ...]


def _import_step(name: str) -> type[Step]:
    if name not in STEPS:
        raise InputError("unknown_choice", kind="compression method", got=name, known=list_choices(STEPS))
    module, _, kind = STEPS[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def get_recipe(given: str | Step | Sequence[str | Step]) -> Recipe:
    """Give a recipe: of names with their default parameters (several with `+` between them), of steps, or of both.

    Raises:
        InputError: `unknown_choice`.
    """
    parts: Sequence[str | Step] = (
        given.split("+") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    )
    recipe = tuple(_import_step(part)() if isinstance(part, str) else part for part in parts)
    if not recipe:
        raise InputError("bad_option", option="method", got="no step", expected="one at least")
    for step in recipe:
        if not isinstance(cast("object", step), Step):
            raise InputError("bad_option", option="method", got=step, expected="names of steps with + between them, or steps")
    return recipe


def describe_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """Give a recipe as JSON data."""
    return [{"name": step.name, **msgspec.to_builtins(step)} for step in recipe]


def read_recipe(data: object) -> Recipe:
    """Give the recipe that `describe_recipe` wrote.

    Raises:
        InputError: `bad_option`, it is none.
    """
    try:
        steps: list[Step] = []
        for entry in msgspec.convert(data, list[dict[str, Any]]):
            fields = dict(entry)
            steps.append(msgspec.convert(fields, _import_step(str(fields.pop("name", "")))))
    except msgspec.ValidationError as error:
        raise InputError("bad_option", option="recipe", got=error, expected="a list of steps, each with its name") from error
    return tuple(steps)


def retrains(recipe: Recipe) -> bool:
    """Say whether one of its steps fits weights to training rows."""
    return any(step.retrains for step in recipe)


def run_recipe(
    recipe: Recipe, artifact: Artifact, workshop: Workshop, say: Callable[[str], None] = lambda text: None
) -> Artifact:
    """Carry out the steps, one after the other.

    Raises:
        InputError: as `Step.apply`.
    """
    for step in recipe:
        say(f"{step.name} ...")
        key = artifact.folder, step
        if key in workshop.made:
            artifact = workshop.made[key]
            continue
        artifact = _apply(step, artifact, workshop)
        if step.retrains:
            workshop.made[key] = artifact
    return artifact


def list_step_layers(step: LayerStep, artifact: Artifact, workshop: Workshop) -> list[str]:
    """Name the layers of an artifact that a step would change.

    Raises:
        InputError: as `Step.apply`.
    """
    if _reads_here(step):
        return step.list_layers(artifact, workshop)
    limit_s = _limit(step, artifact, workshop)
    job = {"step": describe_recipe((step,))[0]}
    return workshop.process.ask("list_layers", artifact, workshop.folder, list[str], method=step.name, limit_s=limit_s, job=job)


def _apply(step: Step, artifact: Artifact, workshop: Workshop) -> Artifact:
    """Carry out a step where it can do no harm: the only place in which files that may be a stranger's are read and rewritten."""
    if _reads_here(step):
        return step.apply(artifact, workshop)
    rows: dict[str, Rows] = {"calibration": workshop.calibration} if step.needs_calibration else {}
    job: dict[str, object] = {"step": describe_recipe((step,))[0]}
    if step.retrains:
        check_rows(workshop, step.name)
        rows |= {"training": workshop.training, "answers": run_original(artifact, workshop)}
        if workshop.targets:
            rows["targets"] = (workshop.targets,)
        # The clock is the machine's, the same for all processes.
        job |= {"meaning": workshop.meaning, "deadline": workshop.deadline if math.isfinite(workshop.deadline) else None}
    limit_s = _limit(step, artifact, workshop)
    process, name = workshop.process, step.name
    made = process.ask(
        "apply", artifact, workshop.folder, Made, method=name, limit_s=limit_s, rows=rows, job=job, say=workshop.say
    )
    return process.take(made, artifact, workshop.make_folder(), name)


def _reads_here(step: Step) -> bool:
    """Say whether a step is called in this process: one that has others read, and the caller's own code."""
    return step.is_apart or step.name not in STEPS or type(step) is not _import_step(step.name)


def _limit(step: Step, artifact: Artifact, workshop: Workshop) -> float:
    training_s = max(0.0, step.find_deadline(workshop) - time.monotonic()) if isinstance(step, RetrainingStep) else 0.0
    return workshop.step_s + artifact.size_bytes / _BYTES_PER_S + training_s
