"""Adapters of PEFT, such as LoRA's: merged into the weights before a model is written, so that serving does not pay for them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from argosy.errors import ModelError
from argosy.frameworks.base import Framework
from argosy.frameworks.trees import Tree, list_leaves

__all__ = ["merge_adapters", "name_plainly"]

_WRAPPED: Final = re.compile(r"\b(?:base_layer|original_module|modules_to_save\.\w+)\.")
"""What PEFT puts into the names of a layer's own weights."""

_TOLERANCE: Final = 1e-3
"""By which answers may move when matrices are added before they are multiplied, relative to their largest magnitude."""


def merge_adapters(framework: Framework, model: Any, sample: Tree) -> tuple[Any, list[dict[str, Any]]]:
    """Give a model whose adapters are merged into its weights, and what they were; the model itself stays as it is.

    Args:
        framework: the model's.
        model: any; one without adapters that can be merged is given back.
        sample: to hold the merged model against it.

    Raises:
        ModelError: `export_differs`, the merged model answers otherwise.
    """
    if not _is_adapted(model) or not hasattr(model, "merge_and_unload"):
        return model, []
    adapters = [
        {"name": str(name), "kind": str(getattr(config.peft_type, "value", config.peft_type)), "rank": getattr(config, "r", None)}
        for name, config in sorted(model.peft_config.items())
        if name in model.active_adapters
    ]
    merged = copy.deepcopy(model).merge_and_unload()
    before, after = (list_leaves(framework.answer(either, sample)) for either in (model, merged))
    for one, other in zip(before, after, strict=True):
        allowed = _TOLERANCE * max(float(np.abs(one).max()), 1e-30)
        difference = float(np.abs(other - one).max()) if one.shape == other.shape else float("inf")
        if not difference <= allowed:
            raise ModelError("export_differs", rows="merged", got=difference, allowed=allowed)
    return merged, adapters


def name_plainly(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Give the names that weights have in the model without its adapters; those of the adapters themselves are left out.

    Args:
        model: any; one without adapters has plain names.
        names: of its weights.
    """
    if not _is_adapted(model):
        return {name: name for name in names}
    own = str(getattr(getattr(model, "base_model", model), "prefix", "lora_"))
    return {
        name: _WRAPPED.sub("", name.removeprefix("base_model.").removeprefix("model."))
        for name in names
        if not any(part.startswith(own) for part in name.split("."))
    }


def _is_adapted(model: Any) -> bool:
    return any(base.__module__.partition(".")[0] == "peft" for base in type(model).__mro__)
