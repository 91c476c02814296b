"""Which layers suffer: how far the answers move if each is compressed alone, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.jury import Jury
from argosy.compress.recipe import Recipe, run_recipe
from argosy.compress.result import Sensitivity
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import LayerStep, Workshop, list_heavy, read_model
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
    return step.list_layers(run_recipe(recipe[:-1], parent, few), few)


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
                distance = jury.measure_distance(msgspec.structs.replace(step, exclude=others).apply(base, few))
            except (InputError, FaultError):
                distance = float("inf")
        found.append(Sensitivity(tuple(group), distance))
    return found


def weigh_layers(artifact: Artifact, count: int, say: Callable[[str], None]) -> list[tuple[float, float]]:
    """Give how many weights each layer of an artifact has, and how many products it takes for a row, by place.

    Args:
        artifact: the original.
        count: of layers that a step knows of it; where these are others than the file has, all count alike.
        say: is told so.
    """
    alike = [(1.0, 1.0)] * count
    if artifact.path.suffix != ".onnx":
        return alike
    model = read_model(artifact, "layers")
    if len(list_heavy(model)) != count:
        say("what each layer costs is not known: they count alike")
        return alike
    return _weigh_nodes(model)


def _weigh_nodes(model: Any) -> list[tuple[float, float]]:
    from math import prod

    import onnx

    inferred: Any = onnx.shape_inference.infer_shapes(model)
    shapes = {
        info.name: [dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    heavy = set(list_heavy(model))
    found: list[tuple[float, float]] = []
    for node in model.graph.node:
        if node.name in heavy:
            own = float(max(prod(weights[name]) for name in node.input if name in weights))
            shape = shapes.get(node.output[0], [])
            # Places at which the same weights are used: of a convolution all behind the channels, else those before them.
            places = shape[2:] if "Conv" in node.op_type else shape[1:-1]
            found.append((own, own * prod(places)))
    return found
