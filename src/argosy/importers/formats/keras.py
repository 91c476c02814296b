"""Keras' archives (.keras), on whichever backend is installed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.environment import is_importable
from argosy.errors import InputError
from argosy.frameworks.base import get_framework
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import map_tree
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse
from argosy.runtimes.keras import BACKEND_FILE
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["KerasFile", "load"]

_BACKENDS: Final = ("tensorflow", "jax", "torch")
"""In the order in which they are taken: the first converts most models to ONNX, with free axes."""
_FILE: Final = "model.keras"
_OUTPUT: Final = "output"
_TITLE: Final = FORMATS["keras"].title


class KerasFile(ForeignModel):
    """A model of Keras. See `base.ForeignModel`."""

    framework = "keras"
    runtime = "keras"

    def __init__(self, path: Path, model: Any) -> None:
        """Take what was loaded.

        Raises:
            InputError: `bad_model_file`, it does not tell its inputs.
        """
        if not getattr(model, "inputs", None):
            raise refuse(_TITLE, "it does not tell its inputs; build the model with keras.Input before it is saved")
        self.inputs = tuple(_describe(tensor.name, tensor) for tensor in model.inputs)
        self.input_names = tuple(spec.name for spec in self.inputs)
        names = _name_outputs(model)
        self.outputs = tuple(_describe(name, tensor) for name, tensor in zip(names, model.outputs, strict=True))
        self._path, self._model = path, model
        self._keras: Any = importlib.import_module("keras")
        self.packages = ("keras", *get_framework(self._keras.backend.backend()).packages)

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            answers = self._call(*(self._keras.ops.convert_to_tensor(array) for array in inputs.values()))
            return {name: np.asarray(self._keras.ops.convert_to_numpy(answer), order="C") for name, answer in answers.items()}
        except Exception as error:  # Those of the backends share no base but this one.
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[:400]}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        if self._keras.backend.backend() == "tensorflow":
            files: Any = importlib.import_module("argosy.importers.formats.tensorflow")
            files.export_function(self._call, self.inputs, path)
        else:
            get_framework("keras").export_onnx(self._model, inputs, path, self._describe_ports())

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        (folder / BACKEND_FILE).write_text(json.dumps({"backend": self._keras.backend.backend()}))
        shutil.copyfile(self._path, folder / _FILE)
        return _FILE

    def _describe_ports(self) -> Ports:
        """Give the names of the tensors in the form in which the model takes and gives them."""
        given: Any = self.input_names[0]
        if not isinstance(self._model, self._keras.Sequential):
            given = self._keras.tree.pack_sequence_as(self._model.input, list(self.input_names))
        made = self._keras.tree.pack_sequence_as(self._model.output, [spec.name for spec in self.outputs])
        has_rows = all(spec.shape[:1] == (-1,) for spec in self.inputs)
        return Ports(inputs=map_tree(str, given), outputs=map_tree(str, made), free=self.free_axes, has_rows=has_rows)

    def _call(self, *tensors: Any) -> dict[str, Any]:
        nested: Any = tensors[0]
        if not isinstance(self._model, self._keras.Sequential):
            nested = self._keras.tree.pack_sequence_as(self._model.input, list(tensors))
        answers = self._keras.tree.flatten(self._model(nested, training=False))
        return {spec.name: answer for spec, answer in zip(self.outputs, answers, strict=True)}


def load(source: Source) -> KerasFile:
    """Load an archive. Code in it is refused: layers of Keras' own, and what it registers, are all that there is.

    Raises:
        InputError: `bad_model_file`; `missing_extra`, no backend is installed.
    """
    installed = [backend for backend in _BACKENDS if is_importable(backend)]
    if not installed:
        raise InputError("missing_extra", feature=f"The import of {_TITLE}", package="tensorflow", extra="tensorflow")
    backend = os.environ.setdefault("KERAS_BACKEND", installed[0])
    # As the runtime will want it when it loads what is written here; a process cannot change its mind.
    if backend == "tensorflow":
        importlib.import_module("argosy.runtimes.tensorflow").set_threads(1)
    elif backend == "jax":
        os.environ["NPROC"] = "1"
    keras: Any = importlib.import_module("keras")
    return KerasFile(source.path, keras.saving.load_model(source.path, compile=False, safe_mode=True))


def _describe(name: str, tensor: Any) -> TensorSpec:
    dtype = np.dtype(object if tensor.dtype == "string" else tensor.dtype)
    return TensorSpec(name, datatype_of(dtype), tuple(-1 if dim is None else dim for dim in tensor.shape))


def _name_outputs(model: Any) -> list[str]:
    keras: Any = importlib.import_module("keras")
    if len(model.outputs) == 1:
        return [_OUTPUT]
    places = [place for place, _ in keras.tree.flatten_with_path(model.output)]
    # A dictionary's keys are names; a place in a list is none.
    names = ["_".join(map(str, place)) for place in places]
    return names if all(isinstance(place[0], str) for place in places) else [f"{_OUTPUT}_{name}" for name in names]
