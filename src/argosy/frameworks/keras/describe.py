"""Keras' losses, metrics, optimizers and models as JSON data."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.base import LossPart, MetricPart, name_kind
from argosy.frameworks.describe import Describer, list_attributes
from argosy.frameworks.keras.arrays import to_numpy
from argosy.frameworks.keras.losses import CompiledLoss
from argosy.frameworks.keras.optimizer import RuleOptimizer

__all__ = ["describe_callback", "describe_loss", "describe_metric", "describe_optimizer", "describe_program"]

keras: Any = importlib.import_module("keras")

Array = NDArray[Any]


def describe_loss(loss: object) -> LossPart | None:
    """See `base.Framework.describe_loss`."""
    if not callable(loss):
        return None
    loss = loss.func if isinstance(loss, CompiledLoss) else loss
    config = _get_config(loss)
    name = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    takes_logits = bool(config.get("from_logits")) or "hinge" in name.lower()
    named = {key: part for key, part in _DESCRIBER.describe_named(loss).items() if key != "config"}
    return LossPart(name, _DESCRIBER.describe_settings(config) | named, takes_logits)


def describe_metric(metric: object) -> MetricPart | None:
    """See `base.Framework.describe_metric`."""
    try:
        own: Any = keras.metrics.get(metric)
    except ValueError:
        return None
    if isinstance(own, keras.metrics.Metric):
        name = str(metric) if isinstance(metric, str) else str(own.name)
        return MetricPart(name, partial(_measure, own), isinstance(own, keras.metrics.MeanMetricWrapper))
    name = str(metric) if isinstance(metric, str) else getattr(own, "__name__", type(own).__name__)
    wrapped = keras.metrics.MeanMetricWrapper(own, name=name) if callable(own) else None
    return MetricPart(name, partial(_measure, wrapped), is_mean=True) if wrapped is not None else None


def describe_callback(callback: Any) -> dict[str, Any]:
    """See `fitting.TakesCallbacks`: what its user chose, and its code."""
    chosen = {
        name: part
        for name, part in list_attributes(callback).items()
        if not name.startswith("_") and (inspect.isfunction(part) or isinstance(part, bool | int | float | str))
    }
    return {"name": name_kind(callback), **_DESCRIBER.describe_code(callback), **_DESCRIBER.describe_settings(chosen)}


def describe_optimizer(optimizer: object) -> dict[str, Any] | None:
    """See `base.Framework.describe_optimizer`."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    own: Any = optimizer
    if isinstance(optimizer, RuleOptimizer):
        return own.rule.describe()
    schedule = _DESCRIBER.describe_code(getattr(own, "_learning_rate", None))
    code = _DESCRIBER.describe_code(own) | {f"schedule_{key}": part for key, part in schedule.items()}
    return {"name": name_kind(own), **code, **_DESCRIBER.describe_settings(_get_config(own))}


def describe_program(model: Any) -> Any:
    """See `base.Framework.describe_program`.

    Keras numbers layers by what was made in the process before; here they are numbered within the model.
    """
    layers = model._flatten_layers(include_self=True, recursive=True)
    names = {layer.name: f"{type(layer).__name__}-{index}" for index, layer in enumerate(layers)}
    return _rename(_DESCRIBER.describe(model, is_program=True), names)


def _measure(metric: Any, outputs: Array, y: Array) -> float:
    metric.reset_state()
    metric.update_state(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(outputs))
    return float(np.mean(to_numpy(metric.result())))


def _get_config(value: object) -> dict[str, Any]:
    """Give the settings that Keras knows of an object; what its class does not tell, its attributes do."""
    get: Any = getattr(value, "get_config", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That a lambda should not be loaded again; nothing here is.
        try:
            config: Any = get() if callable(get) and not inspect.isclass(value) else {}
        except Exception:  # Of the user's own code, or Keras' NotImplementedError: any.
            config = {}
    return {key: part for key, part in cast("dict[str, Any]", config).items() if key != "name"}


def _list_parts(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, keras.layers.Layer):
        return {"config": _get_config(value)} if type(value).__module__.startswith("keras.") else None
    own: Any = value
    is_own = not type(own).__module__.startswith("keras.")
    attributes = {name: part for name, part in list_attributes(own).items() if name not in _list_blank()}
    given = {name: part for name, part in attributes.items() if inspect.isfunction(part) or (is_own and _is_setting(name, part))}
    weights = [*own._trainable_variables, *own._non_trainable_variables] if hasattr(own, "_trainable_variables") else []
    layers = {f"layer-{index}": layer for index, layer in enumerate(own._flatten_layers(include_self=False, recursive=False))}
    return {"config": _get_config(own), **given, **({"weights": weights} if weights else {}), **layers}


def _is_setting(name: str, value: Any) -> bool:
    """Whether something that a user's layer keeps is a setting, and no layer, variable or work of Keras'."""
    if isinstance(value, list | tuple | dict):
        items: list[Any] = [*(cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("Any", value))]
        return not name.startswith("_") and all(_is_setting(name, item) for item in items)
    if isinstance(value, keras.layers.Layer):
        return False  # It is told among the layers.
    if name.startswith("_"):
        return type(value) in (int, float, str)  # Flags and objects that Keras keeps there come and go.
    return callable(value) or value is None or isinstance(value, bool | int | float | str | np.ndarray | np.generic)


def _list_blank() -> frozenset[str]:
    """Name what layers and compiled models keep themselves."""
    if not _BLANK:
        model = keras.Sequential([keras.Input((1,))])
        model.compile()
        _BLANK.update(*map(list_attributes, (model, keras.layers.Layer(), keras.Model())))
    return frozenset(_BLANK)


def _to_array(value: object) -> Array | None:
    return to_numpy(value) if isinstance(value, keras.Variable) or keras.ops.is_tensor(value) else None


def _rename(described: Any, names: Mapping[str, str]) -> Any:
    """Put names within the model for those within the process; leave out what Keras writes of functions that have no name."""
    if isinstance(described, dict):
        own = cast("dict[str, Any]", described)
        if own.get("class_name") == "__lambda__" or own.keys() == {"value"}:
            return "a function"
        return {names.get(key, key): _rename(part, names) for key, part in own.items()}
    if isinstance(described, list):
        return [_rename(part, names) for part in cast("list[Any]", described)]
    return names.get(described, described) if isinstance(described, str) else described


_BLANK: Final[set[str]] = set()

_DESCRIBER: Final = Describer(("keras", "tensorflow"), _to_array, _list_parts, lambda value: isinstance(value, keras.Variable))
