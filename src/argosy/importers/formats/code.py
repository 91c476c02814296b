"""The user's own program that builds a model, for files that hold weights alone. It runs in the confined process."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from argosy.errors import ArgosyError, InputError
from argosy.frameworks.base import name_kind
from argosy.importers.formats.base import Source

__all__ = ["build_model", "refuse_model"]


def build_model(source: Source) -> Any:
    """Import the program and call its function; what it returns.

    Raises:
        InputError: `bad_code`, the program has no such function, or one of them fails.
    """
    assert source.code is not None, "the caller of this process refuses such requests"
    # Not by its name, which may be that of a library.
    spec = importlib.util.spec_from_file_location("imported_model", source.code)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        return getattr(module, source.function)()
    except ArgosyError:
        raise
    except Exception as error:  # The edge of the user's program.
        raise _refuse(source, f"{type(error).__name__}: {error}") from error


def refuse_model(source: Source, model: object, expected: str) -> InputError:
    """Make the error of a function that gives something else than a model."""
    return _refuse(source, f"it gives a {name_kind(model)}, expected {expected}")


def _refuse(source: Source, detail: str) -> InputError:
    assert source.code is not None, "there is no fault in code that is not there"
    return InputError("bad_code", code=f"{source.code.name}:{source.function}", detail=detail)
