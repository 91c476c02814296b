"""Keras models for other processes: as Keras pickles them, with the classes that it would look for by name."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["reduce_model"]

keras: Any = importlib.import_module("keras")


def reduce_model(model: Any) -> Any:
    """Give what `__reduce__` would, so that classes and functions of the user's own are found again."""
    rebuild, arguments = model.__reduce__()
    return _rebuild, (rebuild, arguments, _find_own_classes(model))


def _rebuild(rebuild: Any, arguments: Any, classes: dict[str, Any]) -> Any:
    with keras.saving.custom_object_scope(classes):
        return rebuild(*arguments)


def _find_own_classes(model: Any) -> dict[str, Any]:
    kinds: set[Any] = {type(part) for part in model._flatten_layers()}
    own = {kind for kind in kinds if kind.__module__.partition(".")[0] != "keras"}
    return {name: kind for kind in own for name in (kind.__name__, keras.saving.get_registered_name(kind))}
