"""A user's own training program: a function in a file that says what to train, on what, and how."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Final, cast

from argosy.errors import InputError
from argosy.frameworks.base import name_kind

__all__ = ["is_program", "load_program"]

_NEEDED: Final = ("model", "data")


def is_program(target: str) -> bool:
    """Say whether this names a function in a file, `FILE.py:FUNCTION`."""
    path, colon, function = target.rpartition(":")
    return bool(colon) and path.endswith(".py") and function.isidentifier()


def load_program(target: str) -> dict[str, Any]:
    """Import the file, with its folder on the path as `python FILE.py` would have it, and call the function.

    Args:
        target: `FILE.py:FUNCTION`. The function takes nothing and gives a dict with `model`, `data` and any other
            argument of `argosy.train`.

    Raises:
        InputError: `bad_program`, there is no such file or function, or it gives something else. What the
            program itself raises is raised as it is.
    """
    file, _, name = target.rpartition(":")
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError("bad_program", target=target, detail="there is no such file")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError("bad_program", target=target, detail=f"{path.name} defines no function {name}")
    made: object = function()
    kind = name_kind(made)
    arguments = cast("dict[str, Any]", made) if isinstance(made, dict) else {}
    if not set(_NEEDED) <= arguments.keys():
        detail = f"{name}() gives a {kind}, expected a dict with `model` and `data`"
        raise InputError("bad_program", target=target, detail=detail)
    return arguments
