"""Which layers suffer: how far the answers move if each is compressed alone, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.jury import Jury
from argosy.compress.recipe import Recipe, list_step_layers, run_recipe
from argosy.compress.result import Sensitivity
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import LayerStep, Workshop
from argosy.errors import FaultError, InputError

__all__ = ["list_layers", "measure_sensitivity", "weigh_layers"]

_CALIBRATION_ROWS: Final = 48
"""For looking at single layers: what counts is their order."""


def list_layers(recipe: Recipe, parent: Artifact, workshop: Workshop) -> list[str]:
    """Name the layers that the last step of a recipe can leave out, in the network's order.

    Raises:
        InputError, FaultError: as the recipe's steps.
    """
    step = recipe[-1]
    assert isinstance(step, LayerStep)
    few = replace(workshop, calibration=thin_rows(workshop.calibration, _CALIBRATION_ROWS))
    return list_step_layers(step, run_recipe(recipe[:-1], parent, few), few)


def measure_sensitivity(
    recipe: Recipe, groups: Sequence[Sequence[str]], jury: Jury, workshop: Workshop, deadline: float
) -> list[Sensitivity]:
    """Compress each group of layers alone, and measure how far the answers move.

    Args:
        recipe: whose last step can leave out layers.
        groups: of layers.
        jury: has the rows.
        workshop: makes artifacts.
        deadline: on the monotonic clock; groups that are not looked at by then count as the most sensitive.

    Returns:
        One for each group, in their order.

    Raises:
        InputError, FaultError: the steps before the last one fail.
    """
    step = recipe[-1]
    few = replace(workshop, calibration=thin_rows(workshop.calibration, _CALIBRATION_ROWS))
    base = run_recipe(recipe[:-1], jury.parent, few)
    found: list[Sensitivity] = []
    for group in groups:
        distance = float("inf")
        if time.monotonic() < deadline:
            others = tuple(layer for other in groups for layer in other if layer not in group)
            try:
                one = run_recipe((msgspec.structs.replace(step, exclude=others),), base, few)
                distance = jury.measure_distance(one)
            except (InputError, FaultError):
                distance = float("inf")
        found.append(Sensitivity(tuple(group), distance))
    return found


def weigh_layers(artifact: Artifact, workshop: Workshop, count: int) -> list[tuple[float, float]]:
    """Give how many weights each layer of an artifact has, and how many products it takes for a row, by place.

    Args:
        artifact: the original.
        workshop: has it read, and is told where nothing is known.
        count: of layers that a step knows of it; where these are others than the file has, all count alike.

    Raises:
        InputError: `step_failed`, it cannot be read.
    """
    if artifact.path.suffix == ".onnx":
        kind, limit_s = list[tuple[float, float]], workshop.step_s
        costs = workshop.process.ask("weigh", artifact, workshop.folder, kind, method="search", limit_s=limit_s)
        if len(costs) == count:
            return costs
        workshop.say("what each layer costs is not known: they count alike")
    return [(1.0, 1.0)] * count
