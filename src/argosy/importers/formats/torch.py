"""PyTorch's files: TorchScript, torch.export, and what torch.save wrote."""

from __future__ import annotations

import importlib
import io
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.environment import is_importable
from argosy.errors import InputError, ModelError
from argosy.frameworks.base import get_framework, name_kind
from argosy.frameworks.torch.files import PROGRAM_OPSET, TRACE_OPSET
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse, refuse_weights
from argosy.importers.formats.code import build_model, refuse_model
from argosy.importers.formats.live import LiveModel
from argosy.runtimes.torch_files import check_file
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["TorchFile", "load"]

torch: Any = importlib.import_module("torch")
pytree: Any = importlib.import_module("torch.utils._pytree")

_OUTPUT: Final = "output"
_FLOATS: Final = (torch.float32, torch.float64, torch.float16)
_MAX_DETAIL: Final = 400
_FAULTS: Final = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)
"""What torch raises on inputs that it cannot take."""


class _Flat(torch.nn.Module):
    """A module of tensors by position and a flat tuple of outputs. Its mode cannot be changed: exported programs have none."""

    def __init__(self, module: Any, structure: Any = None) -> None:
        """Wrap a module; `structure` tells how its arguments are nested, None is by position."""
        torch.nn.Module.__init__(self)
        self.module = module
        self.structure = structure

    def train(self, mode: bool = True) -> Any:
        return self

    def run(self, *tensors: Any) -> dict[str, Any]:
        """Give the outputs by name."""
        nested: Any = (tensors, {}) if self.structure is None else pytree.tree_unflatten(tensors, self.structure)
        positional, named = nested
        leaves, _ = pytree.tree_flatten_with_path(self.module(*positional, **named))
        if strange := [name_kind(leaf) for _, leaf in leaves if not torch.is_tensor(leaf)]:
            raise TypeError(f"it gives {strange[0]}, expected tensors")
        return {_name_output(place): leaf for place, leaf in leaves}

    def forward(self, *tensors: Any) -> Any:
        return tuple(self.run(*tensors).values())


def _name_output(place: Sequence[Any]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in place]
    # A place in a tuple is no name.
    return "_".join(parts if parts and not parts[0].isdigit() else [_OUTPUT, *parts])


class TorchFile(ForeignModel):
    """A TorchScript or an exported program. See `base.ForeignModel`."""

    framework = "torch"
    packages = ("torch",)
    runtime = "torch"

    def __init__(
        self, path: Path, flat: Any, input_names: tuple[str, ...], inputs: tuple[TensorSpec, ...], program: Any = None
    ) -> None:
        """Take what was loaded.

        Args:
            path: of the file.
            flat: a `_Flat`.
            input_names: in the order of its tensors.
            inputs: what the file tells of them; () if it does not.
            program: the exported program, if it is one.
        """
        self.input_names = input_names
        self.inputs = inputs
        self._path, self._flat, self._program = path, flat, program

    def arrange(self, inputs: Arrays) -> Arrays:
        if self.inputs:
            return super().arrange(inputs)
        # A script does not tell types: numbers with a fraction get that of its weights.
        kinds = (
            np.dtype(str(weight.dtype).removeprefix("torch.")) for weight in self._flat.parameters() if weight.dtype in _FLOATS
        )
        dtype = next(kinds, np.dtype(np.float32))
        return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in inputs.items()}

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            with torch.no_grad():
                answers = self._flat.run(*_to_tensors(inputs))
            return {name: np.asarray(tensor.detach().numpy(), order="C") for name, tensor in answers.items()}
        except _FAULTS as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[-_MAX_DETAIL:]}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        outputs = list(self.predict(inputs))
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                if self._program is not None and is_importable("onnxscript"):
                    _export_program(self._program, list(inputs), outputs, path)
                else:
                    self._trace(inputs, outputs, path)
            except Exception as error:  # An exporter is made of passes that raise anything.
                raise ModelError("export_failed", detail=str(error).strip()[:_MAX_DETAIL]) from error

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        shutil.copyfile(self._path, folder / self._path.name)
        return self._path.name

    def _trace(self, inputs: Arrays, outputs: list[str], path: Path) -> None:
        is_fixed = any(spec.shape[:1] != (-1,) for spec in self.inputs)
        # Two rows: a single one lets the tracer take its 1 for a constant that broadcasts.
        rows = inputs if is_fixed else {name: array[np.arange(2) % len(array)] for name, array in inputs.items()}
        torch.onnx.export(
            # The tracer cannot look through a module that is a script into one; its outputs must be flat as they are.
            self._flat if self._program is not None else self._flat.module,
            tuple(_to_tensors(rows)),
            str(path),
            dynamo=False,
            opset_version=TRACE_OPSET,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={} if is_fixed else {name: {0: "rows"} for name in outputs} | self._name_axes(),
        )

    def _name_axes(self) -> dict[str, dict[int, str]]:
        return {name: {0: "rows"} | {axis: f"{name}_{axis}" for axis in axes} for name, axes in self.free_axes.items()}


def _export_program(program: Any, inputs: list[str], outputs: list[str], path: Path) -> None:
    """Export without a trace, which would take the sizes in a program for constants."""
    written = torch.onnx.export(
        program, dynamo=True, opset_version=PROGRAM_OPSET, input_names=inputs, output_names=outputs, verbose=False
    )
    written.save(str(path))


def load(source: Source) -> ForeignModel:
    """Load a file."""
    with warnings.catch_warnings():
        # TorchScript is deprecated, and people have files of it.
        warnings.simplefilter("ignore")
        if source.format == "torch":
            return _load_saved(source)
        try:
            # Looked through by the runtime that would serve it, before torch opens it.
            is_program = check_file(source.path) == "program"
        except ValueError as error:
            raise refuse(FORMATS[source.format].title, str(error)) from error
        return _load_program(source.path) if is_program else _load_script(source.path)


def _load_script(path: Path) -> TorchFile:
    script = torch.jit.load(str(path), map_location="cpu").eval()
    needed = [argument for argument in script.forward.schema.arguments[1:] if not argument.has_default_value()]
    if strange := [f"{argument.name}: {argument.type}" for argument in needed if str(argument.type) != "Tensor"]:
        raise refuse(FORMATS["torchscript"].title, f"its forward takes {strange[0]}, expected tensors")
    return TorchFile(path, _Flat(script), tuple(argument.name for argument in needed), ())


def _load_program(path: Path) -> TorchFile:
    title = FORMATS["pt2"].title
    program = torch.export.load(str(path))
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names = tuple(program.graph_signature.user_inputs)
    if strange := [name for name in names if not isinstance(name, str) or not torch.is_tensor(values[name])]:
        raise refuse(title, f"its input {strange[0]} is no tensor")
    specs = tuple(_describe(name, values[name]) for name in names)
    return TorchFile(path, _Flat(program.module(), program.call_spec.in_spec), names, specs, program)


def _load_saved(source: Source) -> ForeignModel:
    title = FORMATS["torch"].title
    framework = get_framework("torch")
    if source.code is None:
        # The one place where a pickle of torch's is opened as such: the user allows it, and this process reaches nothing.
        model = torch.load(source.path, map_location="cpu", weights_only=False)
        if framework.is_model(model):
            return LiveModel(framework, model.eval())
        if isinstance(model, Mapping):
            raise InputError("needs_code", title=title)
        raise refuse(title, f"it holds a {name_kind(model)}, expected a model")  # pyright: ignore[reportUnknownArgumentType]
    model, weights = build_model(source), torch.load(source.path, map_location="cpu", weights_only=True)
    if not framework.is_model(model):
        raise refuse_model(source, model, "a torch.nn.Module")
    # Checkpoints keep more than weights, under names that have become usual.
    state = next(
        (weights[key] for key in ("state_dict", "model_state_dict", "model") if isinstance(weights.get(key), dict)), weights
    )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise refuse_weights(str(error)) from error
    return LiveModel(framework, model.eval())


def _describe(name: str, value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    return TensorSpec(name, datatype_of(np.dtype(str(value.dtype).removeprefix("torch."))), shape)


def _to_tensors(inputs: Arrays) -> list[Any]:
    # Copies: torch warns of arrays that are read-only.
    return [torch.from_numpy(np.array(array)) for array in inputs.values()]
