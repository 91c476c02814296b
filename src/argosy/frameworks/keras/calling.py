"""Call a Keras model with one tensor, several in order, or several by name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from argosy.frameworks.trees import Tree, list_leaves, map_tree, name_arguments, spread

__all__ = ["call_model", "list_arguments", "match_inputs", "order_outputs", "predict_batch"]

keras: Any = importlib.import_module("keras")

_MADE_UP: Final = re.compile(r"keras_tensor(_\d+)?|input_layer(_\d+)?")
"""Names that differ from process to process."""

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
    # Keras compiles for arrays alone: an optional input may be None.
    if _has_argument_each(model, inputs) or _has_gaps(inputs):
        return call_model(model, map_tree(keras.ops.convert_to_tensor, inputs), training=False)
    return model.predict_on_batch(_arrange(inputs))


def list_arguments(model: Any) -> tuple[str, ...]:
    """Name the inputs of a model in its order: those of a functional one have names of their own, unless Keras made them up."""
    if not _is_functional(model):
        return name_arguments(model.call, but=_OPTIONS)
    # A Sequential of layers of one's own does not tell.
    names = [*_name_tensors(model)]
    return () if any(_MADE_UP.fullmatch(name) for name in names) else tuple(names)


def match_inputs(model: Any, inputs: Tree) -> list[Any]:
    """Give the symbolic tensor of a functional model that each leaf of its inputs stands for; [] if it does not tell."""
    if not _is_functional(model) or not getattr(model, "inputs", None):
        return []
    if isinstance(inputs, Mapping):
        known, given = _name_tensors(model), cast("Mapping[str, Any]", inputs)
        names = [name for name, item in given.items() if item is not None]
        return [known[name] for name in names] if known.keys() >= {*names} else []
    return [*model.inputs] if len(list_leaves(inputs)) == len(model.inputs) else []


def order_outputs(names: Tree) -> list[str]:
    """Give the names of outputs in the order in which Keras flattens them."""
    return [name for name in keras.tree.flatten(names) if name is not None]


def _name_tensors(model: Any) -> dict[str, Any]:
    known, tensors = getattr(model, "input", None), cast("list[Any]", getattr(model, "inputs", None) or [])
    names = sorted(cast("dict[str, Any]", known)) if isinstance(known, dict) else [str(tensor.name) for tensor in tensors]
    return dict(zip(names, tensors, strict=True)) if len(names) == len(tensors) else {}


def _is_functional(model: Any) -> bool:
    return isinstance(model, keras.Sequential | keras.src.models.functional.Functional)


def _has_gaps(inputs: Tree) -> bool:
    given, named = spread(inputs) if isinstance(inputs, tuple | dict) else ((), {})
    return any(item is None or _has_gaps(item) for item in (*given, *named.values()))


def _arrange(inputs: Tree) -> Tree:
    """Give several inputs in order as a list, as functional models have them."""
    return list(cast("tuple[Any, ...]", inputs)) if isinstance(inputs, tuple) else inputs


def _has_argument_each(model: Any, inputs: Tree) -> bool:
    given, named = spread(inputs)
    if len(given) == 1 or _is_functional(model):
        return False
    arguments = [name for name in inspect.signature(model.call).parameters if name not in _OPTIONS]
    return named.keys() <= {*arguments} if named else len(given) <= len(arguments)
