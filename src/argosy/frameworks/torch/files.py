"""Write a torch model in a form that `runtimes/torch.py` loads: the program of torch.export, or TorchScript."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.runtimes.torch import TorchRuntime

__all__ = ["save_native"]

torch: Any = importlib.import_module("torch")

_CHECKED_ROWS: Final = (1, 2, 7)
"""One, the traced number, and one that nothing was traced with."""
_TOLERANCE: Final = 1e-5
"""Largest difference from the model's answers, relative to their largest magnitude: the operators are the same."""
_MAX_DETAIL: Final = 300


def save_native(model: Any, rows: NDArray[Any], folder: Path) -> str:
    """Write the first of program, script and trace that answers any number of rows as the model does.

    A program keeps the operators that ran; a script keeps the code, with its branches; a trace is for what neither takes.

    Args:
        model: with one input and one output; it is put into the mode in which it is served.
        rows: a few real ones.
        folder: empty.

    Returns:
        `model.pt2` or `model.ts`.

    Raises:
        ModelError: `save_failed`; says why each of the three did not do.
    """
    model.eval()
    # Two rows: of a single one, the tracers take the 1 for a constant that broadcasts.
    example = torch.from_numpy(rows[np.arange(2) % len(rows)])
    reasons: list[str] = []
    for name, write in (("model.pt2", _write_program), ("model.ts", _write_script), ("model.ts", _write_trace)):
        path = folder / name
        try:
            with warnings.catch_warnings():
                # Of TorchScript's age, and of what a tracer finds; whether it did right is looked at below.
                warnings.simplefilter("ignore")
                write(model, example, path)
            _check(model, rows, folder, name)
        except Exception as error:  # The compilers are made of passes that raise anything.
            path.unlink(missing_ok=True)
            reasons.append(f"{write.__name__.removeprefix('_write_')}: {str(error).strip()[:_MAX_DETAIL]}")
        else:
            return name
    raise ModelError("save_failed", detail="; ".join(reasons))


def _write_program(model: Any, example: Any, path: Path) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    program.example_inputs = None  # It would be kept as a pickle.
    torch.export.save(program, str(path))


def _write_script(model: Any, example: Any, path: Path) -> None:
    torch.jit.save(torch.jit.script(model), str(path))


def _write_trace(model: Any, example: Any, path: Path) -> None:
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))


def _check(model: Any, rows: NDArray[Any], folder: Path, entry: str) -> None:
    """Run the file as a worker does.

    Raises:
        ValueError: it answers differently.
    """
    runtime = TorchRuntime()
    runtime.load(folder, entry, {"inputs": ["x"], "outputs": ["y"]})
    for num_rows in _CHECKED_ROWS:
        picked = rows[np.arange(num_rows) % len(rows)]
        with torch.no_grad():
            expected: NDArray[Any] = model(torch.from_numpy(picked)).numpy()
        got = runtime.infer({"x": picked})["y"]
        if (got.shape, got.dtype) != (expected.shape, expected.dtype):
            raise ValueError(f"for {num_rows} rows it gives {got.dtype} of shape {got.shape}, the model {expected.shape}")
        scale = max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))
        if not float(np.max(np.abs(got - expected))) <= _TOLERANCE * scale:
            raise ValueError(f"for {num_rows} rows it gives other numbers than the model")
