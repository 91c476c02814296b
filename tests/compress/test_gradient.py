"""The space of recipes, and how the method `gradient` walks it, on networks that are made up."""

from __future__ import annotations

import math

import pytest

from argosy.compress.gradient import GradientPlan
from argosy.compress.recipe import get_recipe
from argosy.compress.space import COMPRESSED, FLOAT, RECIPE, RecipeSpace
from argosy.compress.steps.int8 import Int8
from argosy.errors import ConflictError, InputError
from argosy.search import Study

LAYERS = [f"layer{place}" for place in range(10)]


def make_space(*names: str, num_layers: int = 10) -> RecipeSpace:
    return RecipeSpace([get_recipe(name) for name in names], num_layers)


def walk(space: RecipeSpace, losses: dict[str, float], looks: list[tuple[float, float]], max_loss: float = 0.01) -> Study:
    """Search, where the loss is the sum of those of the groups that are compressed, and every layer costs the same."""
    asked: list[str] = []

    def measure(title: str) -> list[tuple[float, float]]:
        asked.append(title)
        return looks

    plan = GradientPlan(space, "size", measure, lambda text: None)
    objectives = {"loss": "minimize", "size": "minimize"}
    with Study(space.space, objectives, method="gradient", guard={"loss": max_loss}, plan=plan) as study:
        while True:
            try:
                trial = study.ask()
            except ConflictError as error:
                assert error.key == "search_over"
                break
            compressed = [name for name in space.groups if trial.parameters[name] == COMPRESSED]
            if trial.parameters[RECIPE] == "float16":
                values = {"loss": 1e-6, "size": 0.5}
            else:
                size = 1.0 - 0.75 * len(compressed) / len(space.groups)
                values = {"loss": sum(losses.get(name, 1e-5) for name in compressed), "size": size}
            study.tell(trial, values)
    assert len(asked) == len(set(asked))
    return study


def test_point_stands_for_a_recipe_without_the_layers_of_its_groups() -> None:
    space = make_space("float16", "int8", num_layers=4)
    assert list(space.space) == [RECIPE, "layers01", "layers02", "layers03", "layers04"]
    point = {**space.make_plain("int8"), "layers02": FLOAT}
    assert space.make_recipe(point, lambda title: LAYERS) == (Int8(exclude=("layer2", "layer3", "layer4")),)
    assert space.make_recipe({**point, RECIPE: "float16"}, lambda title: LAYERS) == get_recipe("float16")
    assert space.make_recipe(space.make_plain("int8"), lambda title: []) == (Int8(),)
    assert [layer for group in space.split(LAYERS) for layer in group] == LAYERS
    assert space.split(["one"]).count(()) == 3


@pytest.mark.parametrize(("num_layers", "num_groups"), [(0, 0), (1, 0), (2, 2), (24, 24), (300, 24)])
def test_deep_networks_are_taken_in_groups(num_layers: int, num_groups: int) -> None:
    assert len(make_space("int8", num_layers=num_layers).groups) == num_groups


def test_fewest_sensitive_layers_stay_in_float_after_a_handful_of_trials() -> None:
    losses = {"layers03": 5.0, "layers08": 0.3}
    # What was looked at resembles what is lost, and is not it.
    looks = [(1e-7 * (place + 1), 1.0) for place in range(10)]
    looks[2], looks[7] = (40.0, 1.0), (0.9, 1.0)
    study = walk(make_space("float16", "int8"), losses, looks)
    best = study.best(objective="size")
    assert best is not None
    assert [name for name, value in best.parameters.items() if value == FLOAT] == ["layers03", "layers08"]
    assert len(study.trials) <= 8


def test_recipe_that_would_be_no_better_is_not_refined() -> None:
    study = walk(make_space("float16", "int8"), {}, [(1.0, 1.0)] * 10)
    assert len(study.trials) == 2


def test_layer_that_cannot_be_made_alone_counts_as_the_most_sensitive() -> None:
    looks = [(1e-6, 1.0)] * 10
    looks[4] = (math.inf, 1.0)
    study = walk(make_space("float16", "int8"), {"layers05": 9.0}, looks)
    best = study.best(objective="size")
    assert best is not None and best.parameters["layers05"] == FLOAT and best.values["size"] < 0.4


def test_plan_is_for_the_method_gradient_alone() -> None:
    space = make_space("int8")
    plan = GradientPlan(space, "size", lambda title: [], lambda text: None)
    with pytest.raises(InputError, match="plan"):
        Study(space.space, method="random", plan=plan)
