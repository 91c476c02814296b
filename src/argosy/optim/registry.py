"""Optimizers by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from argosy.errors import InputError, list_choices
from argosy.optim.base import Optimizer
from argosy.optim.free import Genetic, RandomSearch
from argosy.optim.rules import SGD, Adam, Momentum, RMSprop

__all__ = ["OPTIMIZERS", "get_optimizer"]

OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {
    rule.name: rule for rule in (SGD, Momentum, RMSprop, Adam, RandomSearch, Genetic)
}


def get_optimizer(optimizer: str | Optimizer, **options: Any) -> Optimizer:
    """Give an optimizer by name or as it is, with some parameters set.

    Args:
        optimizer: a name of `OPTIMIZERS`, or an optimizer.
        options: parameters of the rule, such as `learning_rate`; those not named keep their values.

    Raises:
        InputError: `unknown_choice`, no such name; `bad_option`, no such parameter or not a value for it.

    >>> get_optimizer("sgd", learning_rate=0.1)
    SGD(learning_rate=0.1, weight_decay=0.0, clip_norm=None, clip_value=None, groups=(), form='common')
    """
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise InputError("unknown_choice", kind="optimizer", got=optimizer, known=list_choices(OPTIMIZERS))
        kind: type[Optimizer] = OPTIMIZERS[optimizer]
        values: dict[str, Any] = {}
    else:
        kind = type(optimizer)
        values = {key.name: getattr(optimizer, key.name) for key in dataclasses.fields(optimizer)}
    known = [key.name for key in dataclasses.fields(kind)]
    for option, value in options.items():
        if option not in known:
            raise InputError(
                "bad_option", option=option, got=value, expected=f"a parameter of {kind.name}: {list_choices(known)}"
            )
    return kind(**(values | options))
