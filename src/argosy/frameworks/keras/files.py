"""Keras models as files: ONNX by the backend's converter, and Keras' own format."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.agreement import Saved, check_saved
from argosy.frameworks.base import import_extra
from argosy.frameworks.keras.arrays import to_numpy
from argosy.frameworks.trials import draw_trials
from argosy.runtimes.keras import BACKEND_FILE, KerasRuntime

__all__ = ["export_onnx", "save_native"]

keras: Any = importlib.import_module("keras")

_MODEL_FILE: Final = "model.keras"

_SAVED_TOLERANCE: Final = 1e-4
"""Largest difference of a saved model's answers, relative to their largest magnitude; rounding is 1e-7 to 1e-6."""

_JAX_OPSET: Final = 21
"""Of the files that JAX's converter writes."""


def export_onnx(
    model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str, free: Sequence[int] = ()
) -> None:
    """Write a model as an ONNX file; see `base.Framework.export_onnx`."""
    backend = keras.backend.backend()
    names: dict[str, Any] = {"input_name": input_name, "output_name": output_name, "free": free}

    def call(x: Any) -> Any:
        return model(x, training=False)

    if backend == "tensorflow":
        files: Any = importlib.import_module("argosy.frameworks.tensorflow.files")
        files.export_graph(call, rows, path, **names)
    elif backend == "jax":
        _export_from_jax(call, rows, path, **names)
    else:
        files = importlib.import_module("argosy.frameworks.torch.files")
        # Keras asks for lengths from Python all along, which a tracer warns of; what that fixes, the trials find.
        files.export_onnx(model, rows, path, **names, minds_lengths=False)


def _export_from_jax(
    call: Callable[[Any], Any], rows: NDArray[Any], path: Path, *, input_name: str, output_name: str, free: Sequence[int]
) -> None:
    shape = [f"length_{axis}" if axis in free else length for axis, length in enumerate(rows.shape)]
    converter = import_extra("jax2onnx", feature="The export of Keras models on JAX to ONNX", extra="jax")
    try:
        with warnings.catch_warnings():
            # The converter makes 32 bits of integers of 64.
            warnings.filterwarnings("ignore", message="(.|\\n)*Explicitly requested dtype", category=UserWarning)
            model = converter.to_onnx(
                call,
                [importlib.import_module("jax").ShapeDtypeStruct(("batch", *shape[1:]), rows.dtype)],
                opset=_JAX_OPSET,
                enable_double_precision=rows.dtype == np.float64,
                input_names=[input_name],
                output_names=[output_name],
            )
    except Exception as error:  # Those of the converter share no base but this one.
        raise ModelError("export_failed", detail=str(error).strip()) from error
    _take_type(model.graph, rows.dtype)
    path.write_bytes(model.SerializeToString())


def _take_type(graph: Any, dtype: np.dtype[Any]) -> None:
    """Let a graph take this type, if it does not, and change it to its own first."""
    onnx: Any = importlib.import_module("onnx")
    (given,) = graph.input
    kind, own = onnx.helper.np_dtype_to_tensor_dtype(dtype), given.type.tensor_type.elem_type
    if kind == own:
        return
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    narrow = next(name for number in range(len(used) + 1) if (name := f"{given.name}__{number}") not in used)
    for node in graph.node:
        node.input[:] = [narrow if name == given.name else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Cast", [given.name], [narrow], to=own))
    given.type.tensor_type.elem_type = kind


def save_native(
    model: Any, rows: NDArray[Any], folder: Path, predict: Callable[[NDArray[Any]], NDArray[Any]], free: Sequence[int] = ()
) -> Saved:
    """Write a model in Keras' format, without optimizer, and its backend's name beside it.

    Args:
        model: to save.
        rows: some that it takes.
        folder: to write into.
        predict: the model's answers, to which those of the saved model are held.
        free: axes of its input whose length is free, beside that of the rows.

    Returns:
        The name of the file to load, and how it was held against the model.

    Raises:
        ModelError: `save_failed`, it has code that is not Keras' own, which a runtime does not load; or it answers otherwise.
    """
    (folder / BACKEND_FILE).write_text(json.dumps({"backend": keras.backend.backend()}))
    try:
        # A copy from the description alone has no optimizer, and shows that the description is enough.
        copy = keras.models.model_from_json(model.to_json())
        copy.set_weights([to_numpy(variable) for variable in model.weights])
        with warnings.catch_warnings():
            # NumPy warns of the way in which Keras converts TensorFlow's variables.
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            copy.save(folder / _MODEL_FILE)
        saved = KerasRuntime()
        saved.open(folder, _MODEL_FILE, ["input"], ["output"])
    except Exception as error:  # Layers may raise anything while they are described.
        raise ModelError("save_failed", detail=str(error).strip()) from error
    trials = draw_trials({"input": rows}, {"input": free})
    return check_saved(_MODEL_FILE, saved.infer, lambda inputs: {"output": predict(inputs["input"])}, trials, _SAVED_TOLERANCE)
