"""Call a Keras model with one tensor, several in order, or several by name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Final, cast

from argosy.frameworks.trees import Tree, map_tree, spread

__all__ = ["call_model", "predict_batch"]

keras: Any = importlib.import_module("keras")

_OPTIONS: Final = ("training", "mask")
"""Arguments of a model's `call` that are none of its inputs."""


def call_model(model: Any, inputs: Tree, **options: Any) -> Tree:
    """Call a model with inputs, and with `training` where its `call` takes that.

    A functional model takes several inputs as a list or a dict; the `call` of another has an argument for each, or one for all.
    """
    known = inspect.signature(model.call).parameters
    chosen = {name: value for name, value in options.items() if name in known}
    if _has_argument_each(model, inputs):
        given, named = spread(inputs)
        return model(*given, **named, **chosen)
    return model(_arrange(inputs), **chosen)


def predict_batch(model: Any, inputs: Tree) -> Tree:
    """Answer rows as the model is served, compiled by Keras where it does that."""
    if _has_argument_each(model, inputs):
        return call_model(model, map_tree(keras.ops.convert_to_tensor, inputs), training=False)
    return model.predict_on_batch(_arrange(inputs))


def _arrange(inputs: Tree) -> Tree:
    """Give several inputs in order as a list, as functional models have them."""
    return list(cast("tuple[Any, ...]", inputs)) if isinstance(inputs, tuple) else inputs


def _has_argument_each(model: Any, inputs: Tree) -> bool:
    given, named = spread(inputs)
    if len(given) == 1 or isinstance(model, keras.Sequential | keras.src.models.functional.Functional):
        return False
    arguments = [name for name in inspect.signature(model.call).parameters if name not in _OPTIONS]
    return named.keys() <= {*arguments} if named else len(given) <= len(arguments)
