"""Which layers suffer: leave out as few of them as the guard takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.jury import Jury
from argosy.compress.recipe import Recipe, run_recipe
from argosy.compress.result import Sensitivity, Tried
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import LayerStep, Workshop
from argosy.errors import FaultError, InputError

__all__ = ["can_refine", "exclude_layers", "measure_sensitivity", "refine"]

_CALIBRATION_ROWS: Final = 48
"""For looking at single layers: what counts is their order."""
_MAX_LAYERS: Final = 48
"""Looked at one by one; of deeper networks neighbours are taken together."""


def can_refine(recipe: Recipe) -> bool:
    """Say whether the last step of a recipe can leave layers out."""
    return isinstance(recipe[-1], LayerStep)


def exclude_layers(recipe: Recipe, layers: Sequence[str]) -> Recipe:
    """Give a recipe whose last step leaves out these layers."""
    step = recipe[-1]
    assert isinstance(step, LayerStep)
    return (*recipe[:-1], msgspec.structs.replace(step, exclude=tuple(layers)))


def measure_sensitivity(
    recipe: Recipe, jury: Jury, workshop: Workshop, deadline: float, say: Callable[[str], None]
) -> list[Sensitivity]:
    """Compress each group of layers alone, and measure how far the answers move; the most sensitive first.

    Args:
        recipe: whose last step can leave out layers.
        jury: has the rows.
        workshop: makes artifacts.
        deadline: on the monotonic clock; groups that are not looked at by then count as the most sensitive.
        say: is told what happens.

    Raises:
        InputError, FaultError: the layers cannot be listed.
    """
    step = recipe[-1]
    assert isinstance(step, LayerStep)
    few = replace(workshop, calibration=thin_rows(workshop.calibration, _CALIBRATION_ROWS))
    base = run_recipe(recipe[:-1], jury.parent, few)
    layers = step.list_layers(base, few)
    size = -(-len(layers) // _MAX_LAYERS)
    groups = [tuple(layers[start : start + size]) for start in range(0, len(layers), size or 1)]
    say(f"looking at {len(groups)} layers of {Tried(recipe).title}")
    found: list[Sensitivity] = []
    for group in groups:
        distance = float("inf")
        if time.monotonic() < deadline:
            alone = msgspec.structs.replace(step, exclude=tuple(layer for layer in layers if layer not in group))
            try:
                distance = jury.measure_distance(alone.apply(base, few))
            except (InputError, FaultError):
                distance = float("inf")
        found.append(Sensitivity(group, distance))
    return sorted(found, key=lambda one: one.distance, reverse=True)


def refine(
    recipe: Recipe,
    ranked: Sequence[Sensitivity],
    judge: Callable[[Recipe], tuple[Tried, Artifact | None]],
    deadline: float,
) -> list[tuple[Tried, Artifact | None]]:
    """Find the fewest sensitive layers that have to be left out, by halving; returns all that was tried.

    Args:
        recipe: that loses too much.
        ranked: its layers, the most sensitive first.
        judge: tries a recipe.
        deadline: on the monotonic clock.
    """
    low, high = 0, len(ranked)
    found: list[tuple[Tried, Artifact | None]] = []
    # With `low` groups left out too much is lost, with `high` all is as it was.
    while high - low > 1 and time.monotonic() < deadline:
        count = max(low + 1, _middle(low, high))
        excluded = [layer for one in ranked[:count] for layer in one.layers]
        tried = judge(exclude_layers(recipe, excluded))
        found.append(tried)
        if tried[0].problem:
            low = count
        else:
            high = count
    return found


def _middle(low: int, high: int) -> int:
    """Between the two, nearer to the lower: few layers are sensitive, if any are."""
    return low + max(1, (high - low) // 3)
