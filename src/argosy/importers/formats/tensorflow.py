"""TensorFlow's SavedModel folders."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import InputError
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse
from argosy.importers.formats.graph import OPSET
from argosy.runtimes.tensorflow import TensorFlowRuntime, set_threads
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["SavedModel", "export_function", "load"]

tf: Any = importlib.import_module("tensorflow")

_FILE: Final = "saved_model.pb"
_SIGNATURE: Final = "serving_default"
_TITLE: Final = FORMATS["savedmodel"].title


class SavedModel(ForeignModel):
    """The signature `serving_default` of a SavedModel. See `base.ForeignModel`."""

    framework = "tensorflow"
    packages = ("tensorflow", "tensorflow-cpu", "tf2onnx")
    runtime = "tensorflow"

    def __init__(self, folder: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        """Load a folder, after its operators have been looked at.

        Raises:
            RuntimeError: some of them reach outside of the model; the text names them.
        """
        self.inputs = inputs
        self.outputs = outputs
        self.input_names = tuple(spec.name for spec in inputs)
        self._folder = folder
        self._runtime = TensorFlowRuntime()
        self._runtime.open(folder, _FILE, list(self.input_names), [spec.name for spec in outputs])

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            answers = self._runtime.infer(inputs)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[:400]}") from error
        return answers

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        # The object must live as long as its function.
        model = tf.saved_model.load(str(self._folder))
        call = model.signatures[_SIGNATURE]
        export_function(lambda *tensors: call(**dict(zip(self.input_names, tensors, strict=True))), self.inputs, path)

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        for file in [file for file in self._folder.rglob("*") if file.is_file()]:
            target = folder / file.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            # The content alone: a confined process may not set a file's mode.
            shutil.copyfile(file, target)
        return _FILE


def export_function(call: Callable[..., Any], inputs: Sequence[TensorSpec], path: Path) -> None:
    """Write a function of tensors as an ONNX file, with the axes free that the specifications leave free.

    Args:
        call: takes one tensor for each of `inputs`, and gives a dictionary of tensors.
        inputs: names, types and shapes.
        path: of the file to write.

    Raises:
        InputError: `missing_extra`, tf2onnx is not installed.
        ModelError: `export_failed`, the function has an operator that ONNX has not.
    """
    onnx: Any = importlib.import_module("onnx")
    files: Any = importlib.import_module("argosy.frameworks.tensorflow.files")
    specs = [tf.TensorSpec([None if dim < 0 else dim for dim in spec.shape], _to_dtype(spec), spec.name) for spec in inputs]
    onnx.save(files.convert_function(call, specs, OPSET), str(path))


def load(source: Source) -> SavedModel:
    """Load a folder.

    Raises:
        InputError: `bad_model_file`, it has no such signature, or a tensor of a type that no client can send.
    """
    # As the runtime will want it when it loads what is written here; a process cannot change its mind.
    set_threads(1)
    saved = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    saved.ParseFromString((source.path / _FILE).read_bytes())
    signatures = {name: value for graph in saved.meta_graphs for name, value in graph.signature_def.items()}
    if _SIGNATURE not in signatures:
        detail = f"it has no signature {_SIGNATURE}; save it with signatures=..., or model.export(...) of Keras"
        raise refuse(_TITLE, detail)
    chosen = signatures[_SIGNATURE]
    return SavedModel(source.path, _describe(chosen.inputs), _describe(chosen.outputs))


def _describe(tensors: Any) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for name, tensor in sorted(tensors.items()):
        if tensor.tensor_shape.unknown_rank:
            raise refuse(_TITLE, f"the number of axes of {name!r} is not told")
        dtype = np.dtype(tf.as_dtype(tensor.dtype).as_numpy_dtype)
        specs.append(TensorSpec(name, datatype_of(dtype), tuple(dim.size for dim in tensor.tensor_shape.dim)))
    return tuple(specs)


def _to_dtype(spec: TensorSpec) -> Any:
    return tf.string if spec.datatype == "BYTES" else tf.as_dtype(spec.dtype)
