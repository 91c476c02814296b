"""TensorFlow's losses, optimizers and modules as JSON data."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray

from argosy.frameworks.base import LossPart, name_kind
from argosy.frameworks.describe import Describer, list_attributes
from argosy.frameworks.tensorflow.step import is_optimizer

__all__ = ["describe_loss", "describe_optimizer", "describe_program"]

tf: Any = importlib.import_module("tensorflow")


def describe_loss(loss: object) -> LossPart | None:
    """See `base.Framework.describe_loss`."""
    if not callable(loss):
        return None
    config: dict[str, Any] = dict(getattr(loss, "get_config", dict)())
    name = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    parameters = _DESCRIBER.describe_settings({key: part for key, part in config.items() if key != "name"})
    takes_logits = bool(config.get("from_logits")) or any(part in name.lower() for part in ("logits", "hinge"))
    return LossPart(name, parameters | _DESCRIBER.describe_named(loss), takes_logits)


def describe_optimizer(optimizer: object) -> dict[str, Any] | None:
    """See `base.Framework.describe_optimizer`."""
    if not is_optimizer(optimizer):
        return None
    own: Any = optimizer
    config = {key: part for key, part in own.get_config().items() if key != "name"}
    return {"name": name_kind(own), **_DESCRIBER.describe_code(own), **_DESCRIBER.describe_settings(config)}


def describe_program(model: Any) -> Any:
    """See `base.Framework.describe_program`."""
    return _DESCRIBER.describe(model, is_program=True)


def _list_parts(value: Any) -> Mapping[str, Any] | None:
    if hasattr(value, "python_function"):
        return {"function": value.python_function}  # Of a `tf.function`.
    if not isinstance(value, tf.Module):
        return None
    own: Any = value
    return {
        name: part
        for name, part in list_attributes(own).items()
        if name not in _BLANK and not name.startswith(("_self_", "_obj_"))
    }


def _to_array(value: Any) -> NDArray[Any] | None:
    return value.numpy() if isinstance(value, tf.Variable) or (tf.is_tensor(value) and hasattr(value, "numpy")) else None


_BLANK: Final = frozenset(list_attributes(tf.Module()))

_DESCRIBER: Final = Describer(("tensorflow", "keras"), _to_array, _list_parts, lambda value: isinstance(value, tf.Variable))
