"""Run a user's own class: a file with a class `Model` that has `load(folder)`, and `infer(inputs)` or `raw(request)` or both.

Its code runs with the rights of the server's user, so a deployment must allow it (`--allow-code`); the
control process checks that before it asks for a worker.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from argosy.raw import Request

__all__ = ["RUNTIME", "PythonRuntime"]


class PythonRuntime:
    """One instance of the user's class."""

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Import the file and call `Model().load(folder)`."""
        spec = importlib.util.spec_from_file_location("argosy_user_model", folder / entry)
        if spec is None or spec.loader is None:
            raise ImportError(f"{entry} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        self._model = module.Model()
        self._model.load(folder)

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """It has none to settle."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch. The model may keep or change what it is given: the memory that it came in is the next batch's."""
        return self._model.infer({name: array.copy() for name, array in inputs.items()})

    @property
    def raw(self) -> Callable[[Request], Any]:
        """The model's method that answers a raw request; called in several threads at once."""
        return self._model.raw


RUNTIME: Final = PythonRuntime
