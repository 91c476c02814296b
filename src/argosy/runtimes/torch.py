"""Run programs of torch.export and TorchScript with PyTorch, on the CPU."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import blame_input
from argosy.runtimes.torch_files import check_file

__all__ = ["INPUT_ERRORS", "RUNTIME", "TorchRuntime"]

torch: Any = importlib.import_module("torch")
pytree: Any = importlib.import_module("torch.utils._pytree")

INPUT_ERRORS: Final = (RuntimeError, IndexError, ValueError, AssertionError)
"""What operators raise of their inputs, and a program whose guards do not hold for a shape."""


class TorchRuntime:
    """One program or script.

    Options: `threads` (of one operator, in the whole process; default: as they are), `inputs` and `outputs` (names of the
    tensors that go in and come out, in the order in which the file has them).
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Look through the file, and load it; what it is, its content tells.

        Raises:
            ValueError: it is neither a program nor a script, or holds what reaches out of it.
        """
        if "threads" in options:
            torch.set_num_threads(int(options["threads"]))
        self._inputs: list[str] = list(options["inputs"])
        self._outputs: list[str] = list(options["outputs"])
        path = folder / entry
        kind = check_file(path)
        with warnings.catch_warnings():
            # TorchScript is deprecated; the file is there, and works.
            warnings.simplefilter("ignore", DeprecationWarning)
            if kind == "program":
                # Opened here: torch wants a name that ends in .pt2, and a publisher may call the file what they like.
                with path.open("rb") as file:
                    program = torch.export.load(file)
                self._module, self._structure = program.module(), program.call_spec.in_spec
            else:
                self._module, self._structure = torch.jit.load(str(path), map_location="cpu").eval(), None

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """PyTorch changes their number at any time."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: the program cannot compute with what it gets.
        """
        tensors = [_to_tensor(inputs[name]) for name in self._inputs]
        with torch.inference_mode():
            arguments: Any = (tensors, {}) if self._structure is None else pytree.tree_unflatten(tensors, self._structure)
            positional, named = arguments
            try:
                leaves: list[Any] = pytree.tree_leaves(self._module(*positional, **named))
            except INPUT_ERRORS as error:
                # A script says where it is before it says what is wrong.
                told = error if self._structure is not None else RuntimeError(str(error).strip().rpartition("\n")[2])
                raise blame_input(told) from error
        answers = [leaf for leaf in leaves if leaf is not None]
        if len(answers) != len(self._outputs) or not all(map(torch.is_tensor, answers)):
            shown = ", ".join(type(answer).__name__ for answer in answers)
            raise ValueError(f"the model gives {shown}, expected {len(self._outputs)} tensors: {', '.join(self._outputs)}")
        return {name: np.asarray(answer.numpy(), order="C") for name, answer in zip(self._outputs, answers, strict=True)}


def _to_tensor(array: NDArray[Any]) -> Any:
    # torch warns of arrays that are read-only, once for each.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


RUNTIME: Final = TorchRuntime
