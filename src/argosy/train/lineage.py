"""Where a version comes from, as JSON data: enough to say what was trained on what, with what, by which code."""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from argosy.train.data import Dataset, digest_arrays

__all__ = ["describe_code", "describe_data", "describe_environment"]


def describe_data(data: Dataset) -> dict[str, Any]:
    """Name a data set by its digest, with what a reader wants to see of it."""
    return {
        "digest": digest_arrays(*data),
        "rows": len(data.x),
        "x": f"{data.x.dtype} {list(data.x.shape[1:])}",
        "y": f"{data.y.dtype} {list(data.y.shape[1:])}",
    }


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
