"""Losses as users give them, made one function: of one output or several, with factors, and functions of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, cast

from argosy.errors import InputError
from argosy.frameworks.trees import Tree

__all__ = ["Compute", "fail_unweighable", "is_targets_first", "open_losses", "takes_weights"]

Compute = Callable[[Tree, Tree, Any], Any]
"""From outputs, targets and weights of the rows (or None): a scalar."""

_WEIGHTS: Final = ("weights", "sample_weight", "sample_weights")
"""How a loss calls the weights of rows that it takes, if it can do without."""

_TARGETS: Final = frozenset(("label", "labels", "target", "targets", "true", "truth", "y", "y_true"))
_OUTPUTS: Final = frozenset(
    ("logits", "out", "output", "outputs", "pred", "prediction", "predictions", "preds", "y_hat", "y_pred", "yhat")
)


def open_losses(loss: Tree, factors: Tree, open_leaf: Callable[[Any], Compute]) -> Compute:
    """Give the sum of a tree of losses, each times its factor, as one function.

    Args:
        loss: see `base.Framework.build_step`.
        factors: in the form of the losses; None: all are 1.
        open_leaf: makes a function of one loss.
    """
    if isinstance(loss, Mapping):
        parts = cast("Mapping[Any, Any]", loss).items()
        return _add({str(name): open_losses(part, factors and factors[str(name)], open_leaf) for name, part in parts})
    if isinstance(loss, tuple):
        given = enumerate(cast("tuple[Any, ...]", loss))
        return _add({index: open_losses(part, factors and factors[index], open_leaf) for index, part in given})
    compute = open_leaf(loss)
    if factors is None or factors == 1:
        return compute
    return lambda outputs, targets, weights: factors * compute(outputs, targets, weights)


def _add(parts: Mapping[Any, Compute]) -> Compute:
    def compute(outputs: Any, targets: Any, weights: Any) -> Any:
        return sum(part(outputs[key], targets[key], weights) for key, part in parts.items())

    return compute


def takes_weights(function: Any) -> bool:
    """Say whether a loss takes the weights of rows as its third argument."""
    names, required = _list_places(function)
    return len(names) > 2 and (required > 2 or names[2] in _WEIGHTS)


def is_targets_first(function: Any, packages: Collection[str]) -> bool:
    """Say whether a function is called with targets and outputs, rather than with outputs and targets: its names tell.

    Args:
        function: of a user, or of a framework that has targets first.
        packages: whose functions have targets first.

    Raises:
        InputError: `bad_option`, they do not.
    """
    own: Any = inspect.unwrap(getattr(function, "func", function))
    if (getattr(own, "__module__", None) or "").partition(".")[0] in packages:
        return True
    names = _list_places(function)[0][:2]
    first, second = [*names, "", ""][:2]
    has_targets_first = first in _TARGETS or second in _OUTPUTS
    if has_targets_first != (first in _OUTPUTS or second in _TARGETS):
        return has_targets_first
    expected = "loss(outputs, targets) or loss(y_true, y_pred), whose arguments are called so: they tell which comes first"
    raise InputError("bad_option", option="loss", got=f"a function of ({', '.join(names)})", expected=expected)


def fail_unweighable(got: str) -> InputError:
    """Make the error of a loss that weights of rows cannot multiply."""
    expected = "one that gives a number for each row, or takes `weights` as third argument, with weights of rows or classes"
    return InputError("bad_option", option="loss", got=got, expected=expected)


def _list_places(function: Any) -> tuple[list[str], int]:
    """Name the arguments that are taken in order, and count those that must be given."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # A builtin.
        return [], 0
    places = [part for part in found if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)]
    return [part.name for part in places], sum(part.default is part.empty for part in places)
