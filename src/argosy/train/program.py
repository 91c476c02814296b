"""A user's own training program: a function in a file that says what to train, on what, and how."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from argosy import environment
from argosy.errors import InputError, list_choices
from argosy.frameworks.base import FRAMEWORKS, name_kind

__all__ = ["call_function", "call_program", "check_importing", "check_parameters", "find_function", "is_program", "load_program"]

_NEEDED: Final = ("model", "data")
_importing: Final[list[Path]] = []
"""Files of programs that are being imported."""


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
        InputError: `bad_program`, there is no such file or function, it takes something, or it gives something else;
            `missing_extra`, it imports a framework that is not installed. What else the program itself raises is raised
            as it is.
    """
    return _check_made(target, call_function(target))


def find_function(target: str) -> Callable[..., Any]:
    """Import the file of a program and give its function.

    Raises:
        InputError: `bad_program`, there is no such file or function, or the file ends the process; `missing_extra`, it imports a
            framework that is not installed. What else the file itself raises is raised as it is.
    """
    file, _, name = target.rpartition(":")
    path = Path(file).resolve()
    check_importing(target)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError("bad_program", target=target, detail="there is no such file")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    _importing.append(path)
    try:
        with _told_as_fault(target):
            spec.loader.exec_module(module)
    finally:
        _importing.remove(path)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError("bad_program", target=target, detail=f"{path.name} defines no function {name}")
    return function


def check_importing(target: str) -> None:
    """See that a program's file is not being imported now: what it does at its top would be done again, without end.

    Raises:
        InputError: `bad_program`.
    """
    path = Path(target.rpartition(":")[0]).resolve()
    if path in _importing:
        detail = (
            f"{path.name} calls this when it is imported, which it is for each call: put it under `if __name__ == '__main__':`"
        )
        raise InputError("bad_program", target=target, detail=detail)


def check_parameters(target: str, function: Callable[..., Any], names: Collection[str]) -> None:
    """See that a program's function can be called with parameters of these names, and needs no others.

    Raises:
        InputError: `bad_program`.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        given = f"the parameters {list_choices(names)}" if names else "no parameters"
        detail = f"{target.rpartition(':')[2]}{signature} cannot be called with {given}: {error}"
        raise InputError("bad_program", target=target, detail=detail) from error


def call_function(target: str) -> Any:
    """Import the file of a program, and give what its function gives, which takes nothing.

    Raises:
        InputError: `bad_program`, there is no such file or function, it takes parameters, or it ends the process;
            `missing_extra`, it imports a framework that is not installed. What it raises besides is raised as it is.
    """
    function = find_function(target)
    check_parameters(target, function, ())
    with _told_as_fault(target):
        return function()


def call_program(target: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Call a program's function, and see that it gives what `argosy.train` takes.

    Raises:
        InputError: `bad_program`, it gives something else, or ends the process; `missing_extra`, it imports a framework that is
            not installed.
    """
    with _told_as_fault(target):
        made: object = function(**parameters)
    return _check_made(target, made)


def _check_made(target: str, made: object) -> dict[str, Any]:
    is_dict = isinstance(made, dict)
    arguments = cast("dict[str, Any]", made) if is_dict else {}
    if missing := [name for name in _NEEDED if name not in arguments]:
        got = f"a dict without {' and '.join(f'`{name}`' for name in missing)}" if is_dict else f"a {name_kind(made)}"
        detail = f"{target.rpartition(':')[2]}() gives {got}, expected a dict with `model` and `data`"
        raise InputError("bad_program", target=target, detail=detail)
    return arguments


@contextmanager
def _told_as_fault(target: str) -> Generator[None]:
    """Tell what a program does beside its work.

    `sys.exit` is a fault of it: who called the command would take its end, in silence, for success. Of a framework that is not
    installed it is said which extra brings it, unless it lives apart.
    """
    try:
        yield
    except SystemExit as error:
        detail = f"it ends the process, by sys.exit({error.code!r}), and gives nothing"
        raise InputError("bad_program", target=target, detail=detail) from error
    except ModuleNotFoundError as error:
        extra = next((name for name, entry in FRAMEWORKS.items() if error.name in entry.packages), None)
        if extra is None or environment.lives_apart(str(error.name)):
            raise
        feature = f"Training program {target}"
        raise InputError("missing_extra", feature=feature, package=error.name, extra=extra) from error
