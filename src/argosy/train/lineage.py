"""Where a version comes from, as JSON data: enough to say what was trained on what, with what, by which code."""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Collection, Iterable
from importlib import metadata
from typing import Any

import numpy as np

from argosy.frameworks.base import Batch, Framework
from argosy.frameworks.describe import digest_arrays
from argosy.frameworks.trees import Tree, is_ordered, list_leaves, map_tree

__all__ = ["describe_code", "describe_data", "describe_environment", "describe_tree", "describe_weights"]


def describe_data(data: Batch) -> dict[str, Any]:
    """Name a data set by its digest, with what a reader wants to see of it."""
    leaves = [
        np.asarray(leaf, "U") if leaf.dtype == object else leaf for part in data if part is not None for leaf in list_leaves(part)
    ]
    described: dict[str, Any] = {"digest": digest_arrays(*leaves), "rows": data.num_rows}
    for name, part in zip(("x", "y", "weights"), data, strict=True):
        if part is not None:
            described[name] = describe_tree(part)
    return described


def describe_tree(tree: Tree) -> Any:
    """Give type and shape of a row's tensors, in their form."""
    described = map_tree(lambda leaf: f"{leaf.dtype} {list(leaf.shape[1:])}", tree)
    return list(described) if is_ordered(described) else described


def describe_code(code: Any) -> dict[str, Any]:
    """Name a class or function by its module and the digest of its source; no digest where there is no source file."""
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        digest = None
    else:
        digest = f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
    return {"name": f"{code.__module__}.{code.__qualname__}", "digest": digest}


def describe_environment(packages: Iterable[str]) -> dict[str, str]:
    """Give the versions of Python, the platform and those of the packages that are installed."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_weights(framework: Framework, model: Any, frozen: Collection[str]) -> dict[str, Any]:
    """Say how many numbers of a model are trained, how many are not, and which adapters of PEFT's these belong to."""
    weights = framework.get_weights(model)
    trained = sum(weights[name].size for name in framework.list_trainable(model) if name not in frozen)
    described: dict[str, Any] = {"trained": trained, "other": sum(weight.size for weight in weights.values()) - trained}
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if isinstance(configs, dict) and configs:  # pyright: ignore[reportUnnecessaryIsInstance]
        described["adapters"] = [
            {
                "name": str(name),
                "kind": str(getattr(config.peft_type, "value", config.peft_type)),
                **{key: getattr(config, key) for key in ("r", "lora_alpha") if getattr(config, key, None) is not None},
            }
            for name, config in sorted(configs.items())
        ]
    return described
