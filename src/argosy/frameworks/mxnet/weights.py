"""The weights of a Gluon model, by names that are the same in every process."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.mxnet.library import copy_tensor
from argosy.signature import Arrays

__all__ = ["check_initialized", "get_weights", "list_parameters", "set_weights"]


def list_parameters(model: Any) -> dict[str, Any]:
    """Give the parameters of a model, each once, by their place in it, such as `features.0.weight`.

    Gluon's own names count the blocks that a process has made so far. A parameter that a block holds in no attribute
    has no place, and keeps the name that it has there.
    """
    placed: dict[str, Any] = model._collect_params_with_prefix()
    others = {name.removeprefix(model.prefix): parameter for name, parameter in model.collect_params().items()}
    named: dict[str, Any] = {}
    seen: set[int] = set()
    for name, parameter in itertools.chain(placed.items(), others.items()):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter
    return named


def check_initialized(model: Any) -> None:
    """See that a model has its weights, in one place.

    Raises:
        InputError: `bad_option`.
    """
    for name, parameter in list_parameters(model).items():
        if parameter._data is None:
            got = f"{type(model).__name__} whose {name} has no values yet"
            expected = "a model after initialize(), and after a first row if it finds its shapes by itself"
            raise InputError("bad_option", option="model", got=got, expected=expected)
        if len(parameter.list_ctx()) != 1 or parameter._stype != "default":
            got = f"{type(model).__name__} whose {name} is sparse or on {len(parameter.list_ctx())} devices"
            raise InputError("bad_option", option="model", got=got, expected="dense weights on one device")


def get_weights(model: Any) -> Arrays:
    """Give copies of all weights of a model, those that no optimizer changes among them."""
    check_initialized(model)
    return {name: parameter.data().asnumpy() for name, parameter in list_parameters(model).items()}


def set_weights(model: Any, weights: Arrays) -> None:
    """Set some or all of them."""
    parameters = list_parameters(model)
    for name, array in weights.items():
        parameters[name].set_data(copy_tensor(np.ascontiguousarray(array)))
