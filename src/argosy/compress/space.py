"""Recipes as a space that a search may walk: one of the catalogue, and which groups of its layers stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from argosy.compress.recipe import Recipe
from argosy.compress.result import name_recipe
from argosy.compress.steps.base import LayerStep
from argosy.search.space import Choice, Space, Value

__all__ = ["COMPRESSED", "FLOAT", "RECIPE", "RecipeSpace", "can_refine"]

RECIPE: Final = "recipe"
"""The parameter that names a recipe of the catalogue."""
COMPRESSED, FLOAT = "compressed", "float"
"""What each of the other parameters may be."""
_MAX_GROUPS: Final = 24
"""Of deeper networks neighbours are taken together: a search has tens of trials."""


class RecipeSpace:
    """What may be tried.

    Layers are told apart by their place, from the first to the last, in groups of neighbours: so the same parameters stand for
    the same part of the network in every recipe, whatever its library calls the layers.

    Args:
        recipes: of the catalogue.
        num_layers: that a recipe may leave out; 0 where none can.
    """

    def __init__(self, recipes: Sequence[Recipe], num_layers: int) -> None:
        self.recipes = {name_recipe(recipe): recipe for recipe in recipes}
        num_groups = min(num_layers, _MAX_GROUPS) if num_layers > 1 else 0
        self.groups = [f"layers{place:02d}" for place in range(1, num_groups + 1)]
        choice = Choice((COMPRESSED, FLOAT))
        self.space = Space({RECIPE: Choice(tuple(self.recipes)), **dict.fromkeys(self.groups, choice)})

    def count(self) -> int:
        """Count the recipes that there are; where layers are left out, more than anyone can try."""
        choices = 2 ** len(self.groups)
        return sum(choices if can_refine(recipe) else 1 for recipe in self.recipes.values())

    def make_plain(self, title: str) -> dict[str, Value]:
        """Give the point of a recipe of which nothing is left out."""
        return {RECIPE: title, **dict.fromkeys(self.groups, COMPRESSED)}

    def make_recipe(self, point: Mapping[str, Value], list_layers: Callable[[str], Sequence[str]]) -> Recipe:
        """Give the recipe that a point stands for.

        Args:
            point: of the space.
            list_layers: gives the layers that a recipe, by its title, may leave out; asked only where some are.

        Raises:
            InputError, FaultError: the layers cannot be listed.
        """
        title = str(point[RECIPE])
        recipe = self.recipes[title]
        if not can_refine(recipe) or all(point[name] == COMPRESSED for name in self.groups):
            return recipe
        groups = zip(self.groups, self.split(list_layers(title)), strict=True)
        excluded = tuple(layer for name, group in groups if point[name] == FLOAT for layer in group)
        return (*recipe[:-1], msgspec.structs.replace(recipe[-1], exclude=excluded))

    def split(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        """Give the layers of each group, as even as can be."""
        count = len(self.groups)
        return [tuple(layers[place * len(layers) // count : (place + 1) * len(layers) // count]) for place in range(count)]


def can_refine(recipe: Recipe) -> bool:
    """Say whether the last step of a recipe can leave layers out."""
    return isinstance(recipe[-1], LayerStep)
