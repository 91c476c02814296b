"""Write a torch model as ONNX, or in a form that `runtimes/torch.py` loads: the program of torch.export, or TorchScript."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.agreement import Saved, check_saved
from argosy.frameworks.base import import_extra
from argosy.frameworks.torch.branches import find_looks, refuse_tracer_warnings
from argosy.frameworks.trials import draw_trials
from argosy.runtimes.torch import TorchRuntime
from argosy.signature import Arrays

__all__ = ["PROGRAM_OPSET", "TRACE_OPSET", "export_onnx", "save_native"]

torch: Any = importlib.import_module("torch")

TRACE_OPSET: Final = 17
"""Of traced ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""
PROGRAM_OPSET: Final = 18
"""Of those made from exported programs: the lowest that torch writes."""

_TOLERANCE: Final = 1e-5
"""Largest difference from the model's answers, relative to their largest magnitude: the operators are the same."""
_MAX_DETAIL: Final = 300


def export_onnx(
    model: Any,
    rows: NDArray[Any],
    path: Path,
    *,
    input_name: str,
    output_name: str,
    free: Sequence[int] = (),
    minds_lengths: bool = True,
) -> None:
    """See `base.Framework.export_onnx`.

    Traced, unless the model looks at its numbers or lengths from Python; then by torch.export, where that follows, or from a
    script, which keeps the code.
    `minds_lengths=False` lets a tracer pass code that looks at lengths, where that is a library's, and fixes none.
    """
    model.eval()
    example, names = _take_two(rows), (input_name, output_name)
    routes = {
        "trace": lambda: _trace_onnx(model, example, path, names, free, minds_lengths),
        "program": lambda: _export_program(model, example, path, names, free),
        "script": lambda: _write_onnx(torch.jit.script(model), example, path, names, free),
    }
    reasons: list[str] = []
    with _keep_quiet():
        for route, write in routes.items():
            try:
                write()
            except Exception as error:  # Of the exporter, or of the model's own code when it is traced: any.
                reasons.append(f"{route}: {str(error).strip()[:_MAX_DETAIL]}")
            else:
                return
    raise ModelError("export_failed", detail="; ".join(reasons))


@contextlib.contextmanager
def _keep_quiet() -> Generator[None]:
    """Keep torch from printing the graph of each route that fails, and from warning of its own age."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _take_two(rows: NDArray[Any]) -> Any:
    # Two rows: of a single one, the tracers take the 1 for a constant that broadcasts.
    return torch.from_numpy(rows[np.arange(2) % len(rows)])


def _trace_onnx(model: Any, example: Any, path: Path, names: tuple[str, str], free: Sequence[int], minds_lengths: bool) -> None:
    _refuse_looks(model, example)
    with refuse_tracer_warnings() if minds_lengths else contextlib.nullcontext():
        _write_onnx(model, example, path, names, free)


def _write_onnx(model: Any, example: Any, path: Path, names: tuple[str, str], free: Sequence[int]) -> None:
    # The TorchScript exporter, deprecated though it is: it needs no onnxscript, takes 0.1 s where the other takes
    # 2 to 6, and keeps the batch dynamic. Of a script it keeps the branches, too.
    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=False,
        opset_version=TRACE_OPSET,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_axes={names[0]: {0: "batch"} | {axis: f"length_{axis}" for axis in free}, names[1]: {0: "batch"}},
    )


def _export_program(model: Any, example: Any, path: Path, names: tuple[str, str], free: Sequence[int]) -> None:
    import_extra("onnxscript", feature="The export of such a model to ONNX", extra="convert")
    # Not the model itself: where torch.export fails, the exporter would try ways of its own.
    written = torch.onnx.export(
        _make_program(model, example, free),
        dynamo=True,
        opset_version=PROGRAM_OPSET,
        input_names=[names[0]],
        output_names=[names[1]],
        verbose=False,
    )
    written.save(str(path))


def _refuse_looks(model: Any, example: Any, *, is_traced: bool = True) -> None:
    """Refuse a model that looks at its numbers from Python, for a tracer, or as text, for torch.export.

    Raises:
        ValueError: with the functions' names.
    """
    looks, as_text = find_looks(lambda: model(example))
    if found := looks if is_traced else as_text:
        raise ValueError(f"its code looks at numbers from Python ({', '.join(found)}), and what depends on them would be fixed")


def save_native(model: Any, rows: NDArray[Any], folder: Path, free: Sequence[int] = ()) -> Saved:
    """Write the first of program, script and trace that answers as the model does, any number of rows and other rows, too.

    A program keeps the operators that ran; a script keeps the code, with its branches; a trace is for what neither takes.

    Args:
        model: with one input and one output; it is put into the mode in which it is served.
        rows: real ones.
        folder: empty.
        free: axes of its input whose length is free, beside that of the rows.

    Returns:
        `model.pt2` or `model.ts`, and how it was held against the model.

    Raises:
        ModelError: `save_failed`; says why each of the three did not do.
    """
    model.eval()
    example = _take_two(rows)
    reasons: list[str] = []
    for name, write in (("model.pt2", _write_program), ("model.ts", _write_script), ("model.ts", _write_trace)):
        path = folder / name
        try:
            with _keep_quiet():
                write(model, example, path, free)
            saved = _check(model, rows, folder, name, free)
        except Exception as error:  # The compilers are made of passes that raise anything.
            path.unlink(missing_ok=True)
            text = error.fields["detail"] if isinstance(error, ModelError) else str(error)
            reasons.append(f"{write.__name__.removeprefix('_write_')}: {str(text).strip()[:_MAX_DETAIL]}")
        else:
            return saved
    raise ModelError("save_failed", detail="; ".join(reasons))


def _make_program(model: Any, example: Any, free: Sequence[int]) -> Any:
    _refuse_looks(model, example, is_traced=False)
    # What torch finds out of lengths, such as that two are one, is its own; whether others run is looked at.
    axes = {0: torch.export.Dim("rows")} | dict.fromkeys(free, torch.export.Dim.AUTO)
    return torch.export.export(model, (example,), dynamic_shapes=(axes,))


def _write_program(model: Any, example: Any, path: Path, free: Sequence[int]) -> None:
    program = _make_program(model, example, free)
    program.example_inputs = None  # It would be kept as a pickle.
    torch.export.save(program, str(path))


def _write_script(model: Any, example: Any, path: Path, free: Sequence[int]) -> None:
    torch.jit.save(torch.jit.script(model), str(path))


def _write_trace(model: Any, example: Any, path: Path, free: Sequence[int]) -> None:
    _refuse_looks(model, example)
    with torch.no_grad(), refuse_tracer_warnings():
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))


def _check(model: Any, rows: NDArray[Any], folder: Path, entry: str, free: Sequence[int]) -> Saved:
    """Run the file as a worker does.

    Raises:
        ModelError: `save_failed`, it fails or answers differently.
    """
    runtime = TorchRuntime()
    runtime.load(folder, entry, {"inputs": ["x"], "outputs": ["y"]})

    def expect(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            return {"y": model(torch.from_numpy(inputs["x"].copy())).numpy()}

    return check_saved(entry, runtime.infer, expect, draw_trials({"x": rows}, {"x": free}), _TOLERANCE)
