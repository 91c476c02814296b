"""Adapters of PEFT, such as LoRA's: merged into the weights before a model is written, so that serving does not pay for them."""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np

from argosy.errors import ModelError
from argosy.frameworks.base import Framework
from argosy.frameworks.trees import Tree, list_leaves

__all__ = ["merge_adapters"]

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
    is_adapted = any(base.__module__.partition(".")[0] == "peft" for base in type(model).__mro__)
    if not is_adapted or not hasattr(model, "merge_and_unload"):
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
