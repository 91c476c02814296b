"""What a runtime is, and where to find it by name."""

from __future__ import annotations

import importlib
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
    "Runtime",
    "StreamRuntime",
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
        """Run a batch; the inputs are views that are reused after the answer. First axis = rows."""
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
