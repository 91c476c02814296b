"""Weights as safetensors, whatever the framework; the user's code builds the model."""

from __future__ import annotations

import importlib
from typing import Any, cast

from argosy.frameworks.base import get_framework
from argosy.importers.formats.base import ForeignModel, Source, refuse_weights
from argosy.importers.formats.code import build_model
from argosy.importers.formats.live import LiveModel, load_weights, refuse_names
from argosy.signature import Arrays

__all__ = ["load"]


def load(source: Source) -> ForeignModel:
    """Load weights into what the code builds.

    Raises:
        InputError: `weights_differ`; `bad_code`.
    """
    model = build_model(source)
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    # Keras' models derive from the classes of their backend, too.
    if "torch" in packages and "keras" not in packages:
        return _load_torch(model, source)
    weights: Arrays = importlib.import_module("safetensors.numpy").load_file(source.path)
    if "flax" in packages:
        flax: Any = importlib.import_module("argosy.importers.formats.jax")
        if (linen := flax.wrap_linen(model, _nest(weights))) is not None:
            return linen
    return load_weights(source, model, weights)


def _load_torch(model: Any, source: Source) -> ForeignModel:
    # Not by names alone: of weights that share their memory the file has one.
    try:
        missing, unknown = importlib.import_module("safetensors.torch").load_model(model, source.path, strict=False)
    except RuntimeError as error:
        raise refuse_weights(str(error)) from error
    if missing or unknown:
        raise refuse_names(missing, unknown)
    return LiveModel(get_framework("torch"), model.eval())


def _nest(weights: Arrays) -> dict[str, Any]:
    """Put arrays into dictionaries as their names say: `params.Dense_0.kernel`."""
    nested: dict[str, Any] = {}
    for name, array in weights.items():
        *places, last = name.split(".")
        inner = nested
        for place in places:
            inner = cast("dict[str, Any]", inner.setdefault(place, {}))
        inner[last] = array
    return nested
