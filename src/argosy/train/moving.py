"""What moves the weights of a run, and which of them stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework, name_kind
from argosy.frameworks.trees import is_named
from argosy.optim import OPTIMIZERS, GradientFreeOptimizer, Optimizer, get_optimizer
from argosy.optim.groups import match_names

__all__ = ["describe_optimizers", "find_frozen", "is_own", "resolve_optimizers"]


def resolve_optimizers(optimizer: Any, framework: Framework) -> Any:
    """Give one optimizer, or several by name: ours, or the framework's own as they are.

    Raises:
        InputError: `unknown_choice`, `bad_option`.
    """
    if not is_named(optimizer):
        return _resolve_optimizer(optimizer, framework)
    named = {str(name): _resolve_optimizer(one, framework) for name, one in optimizer.items()}
    if not named or any(isinstance(one, GradientFreeOptimizer) for one in named.values()):
        raise InputError("bad_option", option="optimizer", got=[*named], expected="optimizers that follow a gradient, by name")
    return named


def _resolve_optimizer(optimizer: Any, framework: Framework) -> Any:
    if isinstance(optimizer, str | Optimizer):
        return get_optimizer(optimizer)
    if framework.describe_optimizer(optimizer) is None:
        expected = f"a name ({list_choices(OPTIMIZERS)}), one of argosy.optim, or an optimizer of {framework.name}"
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
    return optimizer


def describe_optimizers(rule: Any, framework: Framework) -> dict[str, Any]:
    """Give their names and parameters as JSON data."""
    if is_named(rule):
        return {name: describe_optimizers(one, framework) for name, one in rule.items()}
    return rule.describe() if isinstance(rule, Optimizer) else framework.describe_optimizer(rule) or {}


def is_own(rule: Any) -> bool:
    """Whether an optimizer is the framework's own."""
    if is_named(rule):
        return any(is_own(one) for one in rule.values())
    return not isinstance(rule, Optimizer)


def find_frozen(framework: Framework, model: Any, freeze: Sequence[str] | str) -> frozenset[str]:
    """Give the names of the weights that stay as they are.

    Raises:
        InputError: `bad_option`, a pattern means none.
    """
    patterns = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    if not patterns:
        return frozenset()
    names = framework.list_trainable(model)
    found: set[str] = set()
    for pattern in patterns:
        matched = match_names(str(pattern), names)
        if not matched:
            raise InputError("bad_option", option="freeze", got=pattern, expected=f"names of weights: {list_choices(names)}")
        found.update(matched)
    return frozenset(found)
