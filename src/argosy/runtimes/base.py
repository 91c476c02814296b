"""What a runtime is, and where to find it by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from argosy.raw import Request

__all__ = [
    "ALSO_RUNS",
    "CODE_RUNTIMES",
    "NUM_TOKENS",
    "OWN_THREADS",
    "PACKAGES",
    "PRECISIONS",
    "RUNTIMES",
    "BadInput",
    "Runtime",
    "StreamRuntime",
    "blame_input",
    "lacks_memory",
    "load_runtime_class",
]

RUNTIMES: Final = ("jax", "keras", "mxnet", "onnx", "openvino", "python", "tensorflow", "torch")

CODE_RUNTIMES: Final = frozenset({"python", "tensorflow", "torch"})
"""Those whose artifacts may do what their maker wrote: Python, or graphs with operators that read and write files."""

PACKAGES: Final = {
    "jax": "jax",
    "keras": "keras",
    "mxnet": "mxnet",
    "openvino": "openvino",
    "tensorflow": "tensorflow",
    "torch": "torch",
}
"""Runtime -> the package that its interpreter must have beside Argosy's own; the extra has the runtime's name."""

ALSO_RUNS: Final = {"onnx": ("openvino",)}
"""Runtime of an artifact -> other runtimes that can load the same files."""

PRECISIONS: Final = {"openvino": ("float32", "bfloat16")}
"""Runtime -> what it can be told to compute in; the first is what it does untold. Others compute as the artifact says."""

OWN_THREADS: Final = ("python",)
"""Runtimes whose models see to threads themselves: `threads` is nothing to them."""

NUM_TOKENS: Final = "num_tokens"
"""Output in which preprocessing counts the tokens of each row, where it is asked to."""


_OUT_OF_MEMORY: Final = re.compile(r"\ballocat(e|ing)\b|bad_?alloc|out of memory|memoryerror|resource_exhausted", re.IGNORECASE)
_MAX_DETAIL: Final = 500


class BadInput(ValueError):
    """What a request holds cannot be computed with, and its sender is at fault; the worker tells the front so."""

    is_input_fault = True


def blame_input(error: Exception) -> Exception:
    """Say who is at fault where a graph does not run.

    What a graph does follows from its inputs alone: one that was loaded, and fails, was asked for what it cannot compute, such as
    an index that is out of range or a length that it has no weights for.

    Args:
        error: what a framework raised while it computed.

    Returns:
        `BadInput` with its text; or the error itself, where memory is what was missing.
    """
    return error if lacks_memory(error) or isinstance(error, BadInput) else BadInput(str(error)[:_MAX_DETAIL])


def lacks_memory(error: BaseException | str) -> bool:
    """Say whether an error, or what it came from, is a lack of memory, for which each library has words of its own."""
    found: BaseException | str | None = error
    while found is not None:
        if isinstance(found, MemoryError) or _OUT_OF_MEMORY.search(str(found)):
            return True
        found = None if isinstance(found, str) else found.__cause__
    return False


class Runtime(Protocol):
    """Executes one artifact in a worker. Imports its framework, and is the only one to do so."""

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Load the artifact; whatever it raises is shown to the user as the reason.

        Args:
            folder: the version's files under their own names.
            entry: the file to load.
            options: `threads` and what the version's manifest adds.
        """
        ...

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """Say whether the first model that a process loads settles how many threads all of them have; it may import."""
        ...

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch; the inputs are views that are reused after the answer. First axis = rows.

        Raises:
            BadInput: a row holds what cannot be computed with. Anything else that is raised is the model's own fault.
        """
        ...


class StreamRuntime(Runtime, Protocol):
    """A runtime whose artifacts may answer raw requests."""

    @property
    def raw(self) -> Callable[[Request], Any]:
        """What answers a raw request; called in several threads at once.

        Raises:
            AttributeError: the artifact answers none.
        """
        ...


def load_runtime_class(name: str) -> type[Runtime]:
    """Import a runtime by name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
        ImportError: its framework is not installed.
    """
    if name not in RUNTIMES:
        raise ValueError(f"Unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return importlib.import_module(f"argosy.runtimes.{name}").RUNTIME
