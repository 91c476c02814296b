"""Write a torch model as ONNX, or in a form that `runtimes/torch.py` loads: the program of torch.export, or TorchScript."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

from argosy.errors import ModelError
from argosy.frameworks.agreement import Run, Saved, check_saved
from argosy.frameworks.base import import_extra
from argosy.frameworks.onnx import name_tensors
from argosy.frameworks.ports import Ports
from argosy.frameworks.torch.branches import find_looks, refuse_tracer_warnings
from argosy.frameworks.trees import name_arguments, spread
from argosy.runtimes.torch import TorchRuntime
from argosy.signature import Arrays

__all__ = ["PROGRAM_OPSET", "TRACE_OPSET", "export_onnx", "save_native"]

torch: Any = importlib.import_module("torch")

TRACE_OPSET: Final = 17
"""Of traced ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""
PROGRAM_OPSET: Final = 18
"""Of those made from exported programs: the lowest that torch writes."""

_INPUT: Final = "argosy_in_{}"
"""Of an ONNX file, until its tensors have the names asked for."""

_TOLERANCE: Final = 1e-5
"""Largest difference from the model's answers, relative to their largest magnitude: the operators are the same."""
_MAX_DETAIL: Final = 300


class _Flat(torch.nn.Module):
    """A model as a function of tensors in order, which gives a tuple of tensors."""

    def __init__(self, model: Any, call: Callable[..., tuple[Any, ...]]) -> None:
        torch.nn.Module.__init__(self)
        self.model = model
        self._call = call

    def forward(self, *tensors: Any) -> Any:
        return self._call(*tensors)


def export_onnx(
    model: Any,
    inputs: Arrays,
    path: Path,
    ports: Ports,
    *,
    call: Callable[[Any], Any] | None = None,
    minds_lengths: bool = True,
) -> None:
    """See `base.Framework.export_onnx`.

    Traced, unless the model looks at its numbers or lengths from Python; then by torch.export, where that follows, or from a
    script, which keeps the code.
    `call` runs the model on a tree, if that is not just to call it.
    `minds_lengths=False` lets a tracer pass code that looks at lengths, where that is a library's, and fixes none.
    """
    flat, example = _flatten(model, ports, call), _make_example(inputs, ports)
    routes = {
        "trace": lambda: _trace_onnx(flat, example, path, ports, minds_lengths),
        "program": lambda: _export_program(flat, example, path, ports),
        "script": lambda: _script_onnx(model, example, path, ports),
    }
    reasons: list[str] = []
    with _keep_quiet():
        for route, write in routes.items():
            try:
                write()
                _name_file(path, inputs, ports)
            except Exception as error:  # Of the exporter, or of the model's own code when it is traced: any.
                reasons.append(f"{route}: {str(error).strip()[:_MAX_DETAIL]}")
            else:
                return
    raise ModelError("export_failed", detail="; ".join(reasons))


def _flatten(model: Any, ports: Ports, call: Callable[[Any], Any] | None = None) -> Any:
    model.eval()

    def run(tree: Any) -> Any:
        given, named = spread(tree)
        return model(*given, **named)

    return _Flat(model, ports.flatten(call or run)).eval()


def _name_file(path: Path, inputs: Arrays, ports: Ports) -> None:
    onnx: Any = importlib.import_module("onnx")
    written = onnx.load(str(path), load_external_data=False)
    name_tensors(written, inputs, [_INPUT.format(number) for number in range(len(inputs))], ports)
    onnx.save(written, str(path))


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


def _make_example(inputs: Arrays, ports: Ports) -> tuple[Any, ...]:
    # Copies: torch warns of read-only arrays.
    return tuple(torch.from_numpy(array.copy()) for array in ports.make_example(inputs).values())


def _trace_onnx(flat: Any, example: Any, path: Path, ports: Ports, minds_lengths: bool) -> None:
    _refuse_looks(flat, example)
    with refuse_tracer_warnings() if minds_lengths else contextlib.nullcontext():
        _write_onnx(flat, example, path, range(len(example)), ports)


def _script_onnx(model: Any, example: Any, path: Path, ports: Ports) -> None:
    script, names = _make_script(model, ports)
    places = [ports.input_names.index(name) for name in names]
    _write_onnx(script, tuple(example[place] for place in places), path, places, ports)


def _write_onnx(model: Any, example: Any, path: Path, places: Sequence[int], ports: Ports) -> None:
    """Write a model that takes the inputs at these places, in this order."""
    axes: dict[str, dict[int, str]] = {}
    for place in places:
        own = {axis: f"length_{place}_{axis}" for axis in ports.list_open(ports.input_names[place])}
        axes[_INPUT.format(place)] = own | ({0: "batch"} if ports.has_rows else {})
    # The TorchScript exporter, deprecated though it is: it needs no onnxscript, takes 0.1 s where the other takes
    # 2 to 6, and keeps the batch dynamic. Of a script it keeps the branches, too.
    torch.onnx.export(
        model, example, str(path), dynamo=False, opset_version=TRACE_OPSET, input_names=list(axes), dynamic_axes=axes
    )


def _export_program(flat: Any, example: Any, path: Path, ports: Ports) -> None:
    import_extra("onnxscript", feature="The export of such a model to ONNX", extra="convert")
    # Not the model itself: where torch.export fails, the exporter would try ways of its own.
    written = torch.onnx.export(
        _make_program(flat, example, ports),
        dynamo=True,
        opset_version=PROGRAM_OPSET,
        input_names=[_INPUT.format(number) for number in range(len(example))],
        verbose=False,
    )
    written.save(str(path))


def _refuse_looks(model: Any, example: Any, *, is_traced: bool = True) -> None:
    """Refuse a model that looks at its numbers from Python, for a tracer, or as text, for torch.export.

    Raises:
        ValueError: with the functions' names.
    """
    looks, as_text = find_looks(lambda: model(*example))
    if found := looks if is_traced else as_text:
        raise ValueError(f"its code looks at numbers from Python ({', '.join(found)}), and what depends on them would be fixed")


def save_native(model: Any, inputs: Arrays, folder: Path, ports: Ports, expect: Run) -> Saved:
    """Write the first of program, script and trace that answers as the model does, any number of rows and other rows, too.

    A program keeps the operators that ran; a script keeps the code, with its branches; a trace is for what neither takes.

    Args:
        model: of any inputs and outputs; it is put into the mode in which it is served.
        inputs: real ones.
        folder: empty.
        ports: of the model.
        expect: the model's answers.

    Returns:
        `model.pt2` or `model.ts`, and how it was held against the model.

    Raises:
        ModelError: `save_failed`; says why each of the three did not do.
    """
    flat, example = _flatten(model, ports), _make_example(inputs, ports)
    routes: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
        "program": ("model.pt2", lambda path: _write_program(flat, example, path, ports)),
        "script": ("model.ts", lambda path: _write_script(model, path, ports)),
        "trace": ("model.ts", lambda path: _write_trace(flat, example, path, ports)),
    }
    reasons: list[str] = []
    for route, (name, write) in routes.items():
        path = folder / name
        try:
            with _keep_quiet():
                names = write(path)
            saved = _check(expect, inputs, folder, name, names, ports)
        except Exception as error:  # The compilers are made of passes that raise anything.
            path.unlink(missing_ok=True)
            text = error.fields["detail"] if isinstance(error, ModelError) else str(error)
            reasons.append(f"{route}: {str(text).strip()[:_MAX_DETAIL]}")
        else:
            return saved
    raise ModelError("save_failed", detail="; ".join(reasons))


def _make_program(flat: Any, example: Any, ports: Ports) -> Any:
    _refuse_looks(flat, example, is_traced=False)
    # What torch finds out of lengths, such as that two are one, is its own; whether others run is looked at.
    axes: list[dict[int, Any]] = [dict.fromkeys(ports.list_open(name), torch.export.Dim.AUTO) for name in ports.input_names]
    if ports.has_rows:
        axes = [own | {0: torch.export.Dim("rows")} for own in axes]
    return torch.export.export(flat, example, dynamic_shapes=(tuple(axes),))


def _write_program(flat: Any, example: Any, path: Path, ports: Ports) -> list[str]:
    program = _make_program(flat, example, ports)
    program.example_inputs = None  # It would be kept as a pickle.
    torch.export.save(program, str(path))
    return ports.input_names


def _write_script(model: Any, path: Path, ports: Ports) -> list[str]:
    script, names = _make_script(model, ports)
    torch.jit.save(script, str(path))
    return names


def _make_script(model: Any, ports: Ports) -> tuple[Any, list[str]]:
    """Give a script, and the names of its inputs in the order in which it takes them.

    Raises:
        ValueError: tensors are nested, or one between others is left out, which a call in order cannot do.
    """
    given, named = spread(ports.inputs)
    order: list[Any] = [*given]
    for argument in name_arguments(model.forward)[len(given) :]:
        if argument in named:
            order.append(named.pop(argument))
        elif named:
            break
    while order and order[-1] is None:
        order.pop()
    if named or not all(isinstance(name, str) for name in order):
        raise ValueError("a script takes tensors in order alone")
    return torch.jit.script(model), order


def _write_trace(flat: Any, example: Any, path: Path, ports: Ports) -> list[str]:
    _refuse_looks(flat, example)
    with torch.no_grad(), refuse_tracer_warnings():
        torch.jit.save(torch.jit.trace(flat, example, check_trace=False), str(path))
    return ports.input_names


def _check(expect: Run, inputs: Arrays, folder: Path, entry: str, names: list[str], ports: Ports) -> Saved:
    """Run the file as a worker does.

    Raises:
        ModelError: `save_failed`, it fails or answers differently.
    """
    runtime, options = TorchRuntime(), {"inputs": names, "outputs": ports.output_names}
    runtime.load(folder, entry, options)
    trials = ports.draw_trials(inputs)
    return check_saved(entry, options, runtime.infer, expect, trials, _TOLERANCE, has_rows=ports.has_rows)
