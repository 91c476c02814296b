"""Recipes are data: described, read, named, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from argosy.compress import get_recipe
from argosy.compress.recipe import STEPS, describe_recipe, read_recipe
from argosy.compress.result import name_recipe
from argosy.compress.steps.int8 import Int8
from argosy.compress.steps.nncf import NncfWeights
from argosy.compress.steps.simplify import Simplify
from argosy.compress.steps.weights import Weights
from argosy.errors import InputError


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_found_under_its_name_and_comes_back_from_its_description(name: str) -> None:
    recipe = get_recipe(name)
    assert [step.name for step in recipe] == [name]
    described = json.loads(json.dumps(describe_recipe(recipe)))
    assert described[0]["name"] == name
    assert read_recipe(described) == recipe
    assert name_recipe(recipe) == name


def test_recipe_of_several_steps_keeps_order_and_parameters() -> None:
    recipe = (Simplify(), Int8(per_channel=False, exclude=("first", "last")))
    assert read_recipe(json.loads(json.dumps(describe_recipe(recipe)))) == recipe
    assert get_recipe("simplify+int8") == (Simplify(), Int8()) == get_recipe(["simplify", Int8()])
    assert get_recipe(Int8()) == (Int8(),)
    assert name_recipe(recipe) == "simplify + int8(exclude=2 nodes, per_channel=False)"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param([{"name": "int3"}], "Unknown compression method 'int3'; known: ", id="name"),
        pytest.param([{"per_channel": True}], "Unknown compression method ''; known: ", id="no-name"),
        pytest.param([{"name": "int8", "channels": 3}], "unknown field `channels`", id="field"),
        pytest.param([{"name": "int8", "per_channel": "yes"}], "Expected `bool`, got `str`", id="type"),
        pytest.param([{"name": "int8", "ranges": "mean"}], "Invalid enum value 'mean'", id="choice"),
        pytest.param([{"name": "weights", "bits": 3}], "Invalid enum value 3", id="bits"),
        pytest.param([{"name": "low-rank", "energy": 2.0}], "low-rank.energy", id="range"),
        pytest.param([3], "Expected `object`, got `int`", id="number"),
        pytest.param({"name": "int8"}, "Expected `array`, got `object`", id="no-list"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(data: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(data)
    assert words in caught.value.message


def test_empty_recipe_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="no step"):
        get_recipe([])
    for name in ("", "int8+", "int8 + simplify", "Int8"):
        with pytest.raises(InputError, match="Unknown compression method"):
            get_recipe(name)


def test_parameters_out_of_range_are_named() -> None:
    for make, words in (
        (lambda: Weights(block_size=48), r"weights\.block_size"),
        (lambda: Weights(block_size=8), r"weights\.block_size"),
        (lambda: NncfWeights(ratio=0.0), r"nncf-weights\.ratio"),
        (lambda: Int8(max_calibration_rows=0), r"int8\.max_calibration_rows"),
    ):
        with pytest.raises(InputError, match=words):
            make()


def test_every_step_has_a_module_in_the_list_of_its_folder() -> None:
    import argosy.compress.steps

    folder = Path(argosy.compress.steps.__file__).parent
    assert argosy.compress.steps.__doc__ is not None
    for path in folder.glob("*.py"):
        assert path.name == "__init__.py" or path.name in argosy.compress.steps.__doc__, path.name


def test_every_step_stands_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compressing.md").read_text()
    assert [name for name in STEPS if f"`{name}`" not in page] == []
    for name in STEPS:
        (row,) = [line for line in page.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
        assert re.search(r"card\]\(\.\./src/argosy/compress/steps/[\w-]+\.md\)", row), f"{name} has no card"
