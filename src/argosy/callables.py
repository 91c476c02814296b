"""Packages that are verbs as well: `argosy.train(...)` next to `argosy.train.run`.

Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


def make_callable(module: str, target: str) -> None:
    """Have calls of a package go to a function in it, which is imported at the first call.

    Args:
        module: the package's full name.
        target: `module:function`.
    """
    name, function = target.split(":")

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(name), function)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
