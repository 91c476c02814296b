"""OpenVINO's own files (IR): a graph as `.xml`, its weights beside it as `.bin`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from argosy.errors import InputError, ModelError
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse
from argosy.runtimes.openvino import OpenvinoRuntime, openvino
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["OpenvinoModel", "load"]

_TITLE: Final = FORMATS["openvino"].title


class OpenvinoModel(ForeignModel):
    """A graph with its weights. See `base.ForeignModel`."""

    framework = "openvino"
    packages = ("openvino",)
    runtime = "openvino"

    def __init__(self, path: Path) -> None:
        """Load a file, as its runtime does.

        Raises:
            InputError: `bad_model_file`, it has tensors of a kind that its runtime does not serve.
        """
        model = openvino.Core().read_model(str(path))
        self.inputs = tuple(_describe(port, port.node) for port in model.inputs)
        self.outputs = tuple(_describe(port, port.node.input_value(0).node) for port in model.outputs)
        self.input_names = tuple(spec.name for spec in self.inputs)
        self._path = path
        self._runtime = OpenvinoRuntime()
        names = {"inputs": list(self.input_names), "outputs": [spec.name for spec in self.outputs]}
        try:
            self._runtime.load(path.parent, path.name, names)
        except ValueError as error:
            raise refuse(_TITLE, str(error)) from error

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            answers = self._runtime.infer(inputs)
        except (RuntimeError, ValueError) as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[:400]}") from error
        return {spec.name: answers[spec.name] for spec in self.outputs}

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        raise ModelError("export_failed", detail="OpenVINO reads ONNX, and does not write it")

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        for file in (self._path, self._path.with_suffix(".bin")):
            shutil.copyfile(file, folder / file.name)
        return self._path.name


def load(source: Source) -> ForeignModel:
    """Load a graph."""
    return OpenvinoModel(source.path)


def _describe(port: Any, node: Any) -> TensorSpec:
    """Describe a tensor; one without a name is called as the operator that makes it."""
    name = min(port.names) if port.names else str(node.friendly_name)
    kind = port.element_type.get_type_name()
    if kind in ("string", "bf16"):
        raise refuse(_TITLE, f"its tensor {name} is of type {kind}, which its runtime does not serve")
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise refuse(_TITLE, f"its tensor {name} has any number of axes")
    lengths = tuple(-1 if dim.is_dynamic else dim.get_length() for dim in shape)
    return TensorSpec(name, datatype_of(port.element_type.to_dtype()), lengths)
