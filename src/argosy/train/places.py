"""Losses where outputs are: one for the only output, or a tree of them in a form that the outputs have, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from argosy.errors import InputError, list_choices
from argosy.frameworks.trees import Tree, is_named, is_ordered, map_tree
from argosy.train.elements import describe_form
from argosy.train.losses import Criterion

__all__ = ["Place", "check_form", "get_part", "join_parts", "list_places", "match_factors", "name_place", "spread_losses"]

Place = tuple[str | int, ...]
"""Where an output stands among several: names and numbers from the outside to the inside; () is the only one."""


def list_places(criteria: Tree, place: Place = ()) -> list[tuple[Place, Criterion]]:
    """List the losses with where they stand; none of None."""
    if criteria is None:
        return []
    if isinstance(criteria, Criterion):
        return [(place, criteria)]
    items = criteria.items() if is_named(criteria) else enumerate(criteria)
    return [found for key, part in items for found in list_places(part, (*place, key))]


def get_part(tree: Tree, place: Place) -> Any:
    """Give what stands at a place."""
    for key in place:
        tree = tree[key]
    return tree


def name_place(place: Place) -> str:
    """Name a place, for the end of a message; nothing for the only one."""
    return f" for output {'.'.join(map(str, place))}" if place else ""


def join_parts(criteria: Tree, function: Callable[[Any, Any], Any]) -> Tree:
    """Give a tree of one level of the losses' form, of what a function makes of each key and part."""
    if is_named(criteria):
        return {key: function(key, part) for key, part in criteria.items()}
    return tuple(function(index, part) for index, part in enumerate(criteria))


def spread_losses(criteria: Tree, outputs: Tree) -> Tree:
    """Give losses in a form that the outputs have: one of ours, named for several, is that of each.

    Raises:
        InputError: `bad_option`, they have another form.
    """
    if isinstance(criteria, Criterion):
        if criteria.is_ours and (is_named(outputs) or is_ordered(outputs)):
            return map_tree(lambda leaf: criteria, outputs)
        return criteria
    check_form(criteria, outputs, "the model")
    return join_parts(criteria, lambda key, part: spread_losses(part, outputs[key]))


def match_factors(factors: Tree, criteria: Tree) -> Tree:
    """Give a factor for each loss; a dict may leave some out, which have 1.

    Raises:
        InputError: `bad_option`, they have another form than the losses.
    """
    if isinstance(criteria, Criterion) and isinstance(factors, float):
        return factors
    if is_named(criteria) and is_named(factors) and factors.keys() <= criteria.keys():
        return {key: match_factors(factors.get(key, 1.0), part) for key, part in criteria.items()}
    if is_ordered(criteria) and is_ordered(factors) and len(factors) == len(criteria):
        return tuple(map(match_factors, factors, criteria))
    got = factors if isinstance(factors, float) else describe_form(factors)
    raise InputError("bad_option", option="loss_weights", got=got, expected="numbers in the form of the losses")


def check_form(criteria: Tree, given: Tree, whose: str) -> None:
    """See that something has the parts that losses are for.

    Raises:
        InputError: `bad_option`.
    """
    if is_named(criteria):
        is_alike = is_named(given) and criteria.keys() <= given.keys()
        got = f"a dict for {list_choices(criteria)}"
    else:
        is_alike = is_ordered(given) and len(given) == len(criteria)
        got = f"a tuple of {len(criteria)}"
    if not is_alike:
        shown = "nothing" if given is None else describe_form(given)
        raise InputError("bad_option", option="loss", got=got, expected=f"losses for what {whose} gives: {shown}")
