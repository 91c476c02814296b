"""Losses, gradient transformations and flax modules as JSON data."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.base import LossPart, MetricPart, name_kind
from argosy.frameworks.describe import Describer, is_library, list_attributes
from argosy.frameworks.jax.optimizer import RuleOptimizer

__all__ = ["describe_loss", "describe_metric", "describe_optimizer", "describe_program"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")
optax: Any = importlib.import_module("optax")

_PACKAGES: Final = ("jax", "jaxlib", "flax", "optax", "chex")

_TAKE_LOGITS: Final = ("ctc", "focal", "hinge", "logistic", "logit", "sigmoid", "softmax", "crossentropy")
"""Parts of the names of optax' losses that take logits, underscores aside."""

_MODES: Final = ("deterministic", "use_running_average")
"""Attributes of flax' layers that say whether the model is being trained: set before each pass."""

_MAX_DEPTH: Final = 12
"""Of transformations within transformations, in a description; more is a loop."""


def describe_loss(loss: object) -> LossPart | None:
    """See `base.Framework.describe_loss`."""
    if not callable(loss) or isinstance(loss, type | nnx.Module):
        return None
    parameters = _DESCRIBER.describe_named(loss)
    function: Any = loss
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    folded = name.lower().replace("_", "")
    return LossPart(name, parameters, takes_logits=any(part in folded for part in _TAKE_LOGITS))


def describe_metric(metric: object) -> MetricPart | None:
    """See `base.Framework.describe_metric`: one of `nnx.metrics`, or of a user's own, that takes `logits` and `labels`."""
    if not isinstance(metric, nnx.metrics.Metric):
        return None
    own: Any = metric
    if not {"logits", "labels"} <= inspect.signature(own.update).parameters.keys():
        return None

    def compute(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        fresh: Any = nnx.clone(own)
        fresh.reset()
        fresh.update(logits=jnp.asarray(outputs), labels=jnp.asarray(targets))
        return float(fresh.compute())

    return MetricPart(type(own).__name__, compute, is_mean=type(own) is nnx.metrics.Accuracy)


def describe_optimizer(optimizer: object) -> dict[str, Any] | None:
    """See `base.Framework.describe_optimizer`."""
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.rule.describe()
    if not isinstance(optimizer, optax.GradientTransformation):
        return None
    own: Any = optimizer
    return _describe_transformation(own.update)


def describe_program(model: Any) -> Any:
    """See `base.Framework.describe_program`."""
    return _DESCRIBER.describe(model, is_program=True)


def _describe_transformation(update: Any, depth: int = 0) -> dict[str, Any]:
    """Describe a transformation of optax by its `update`: the name of what made it, and what it closes over.

    Returns:
        JSON data; what it is made of stands under `parts`.
    """
    if not inspect.isfunction(update):
        return {"name": name_kind(update)}
    if not is_library(update.__module__, _PACKAGES):
        return _DESCRIBER.describe(update)
    name = f"{update.__module__}.{update.__qualname__.partition('.<locals>')[0]}"
    simple: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    for key, value in inspect.getclosurevars(update).nonlocals.items():
        if isinstance(value, dict):
            named = cast(dict[str, Any], value)
            simple |= {inner: _DESCRIBER.describe(named[inner]) for inner in named if _is_setting(named[inner])}
        elif _is_setting(value):
            simple[key] = _DESCRIBER.describe(value)
        elif depth < _MAX_DEPTH and not key.startswith("init"):
            parts += [_describe_transformation(inner, depth + 1) for inner in _list_functions(value)]
    if len(parts) == 1 and not simple:
        return parts[0]
    return {"name": name, **simple, **({"parts": parts} if parts else {})}


def _is_setting(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float | np.ndarray | np.generic | jax.Array)


def _list_functions(value: Any) -> list[Any]:
    """Give the functions that a value stands for: what transformations do, and schedules."""
    if isinstance(value, optax.GradientTransformation):
        return [value.update]
    several = [*cast(Sequence[Any], value)] if isinstance(value, list | tuple) else [value]
    return [function for function in several if inspect.isfunction(function)]


def _is_weight(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _to_array(value: Any) -> NDArray[Any] | None:
    own: Any = value[...] if isinstance(value, nnx.Variable) else value
    if not isinstance(own, jax.Array):
        return None
    if jax.dtypes.issubdtype(own.dtype, jax.dtypes.prng_key):
        own = jax.random.key_data(own)
    array: NDArray[Any] = np.asarray(own)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _list_parts(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, nnx.Module | nnx.Rngs | nnx.RngStream):
        return None
    own: dict[str, Any] = list_attributes(value)
    return {name: part for name, part in own.items() if name not in _MODES and not name.startswith(("_pytree__", "_object__"))}


_DESCRIBER: Final = Describer(_PACKAGES, _to_array, _list_parts, _is_weight)
