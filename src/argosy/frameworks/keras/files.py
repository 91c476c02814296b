"""Keras models as files: ONNX by the backend's converter, and Keras' own format."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import InputError, ModelError
from argosy.frameworks.agreement import Run, Saved, check_saved
from argosy.frameworks.keras.arrays import to_numpy
from argosy.frameworks.keras.calling import call_model, match_inputs, order_outputs
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree
from argosy.runtimes.keras import BACKEND_FILE, KerasRuntime
from argosy.signature import Arrays

__all__ = ["export_onnx", "save_native"]

keras: Any = importlib.import_module("keras")

_MODEL_FILE: Final = "model.keras"

_SAVED_TOLERANCE: Final = 1e-4
"""Largest difference of a saved model's answers, relative to their largest magnitude; rounding is 1e-7 to 1e-6."""


def export_onnx(model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
    """Write a model as an ONNX file; see `base.Framework.export_onnx`."""
    backend = keras.backend.backend()

    def call(tree: Tree) -> Tree:
        return call_model(model, tree, training=False)

    if backend == "tensorflow":
        files: Any = importlib.import_module("argosy.frameworks.tensorflow.files")
        files.export_graph(call, inputs, path, ports)
    elif backend == "jax":
        _export_from_jax(call, inputs, path, ports)
    else:
        files = importlib.import_module("argosy.frameworks.torch.files")
        # Keras asks for lengths from Python all along, which a tracer warns of; what that fixes, the trials find.
        files.export_onnx(model, inputs, path, ports, call=call, minds_lengths=False)


def _export_from_jax(call: Callable[[Tree], Tree], inputs: Arrays, path: Path, ports: Ports) -> None:
    export: Any = importlib.import_module("argosy.frameworks.jax.export")
    is_double = any(array.dtype == np.float64 for array in inputs.values())
    try:
        model = export.convert(ports.flatten(call), inputs, ports, is_double=is_double)
    except InputError:
        raise
    except Exception as error:  # Those of the converter share no base but this one.
        raise ModelError("export_failed", detail=str(error).strip()) from error
    path.write_bytes(model.SerializeToString())


def save_native(model: Any, inputs: Arrays, folder: Path, ports: Ports, expect: Run) -> Saved:
    """Write a model in Keras' format, without optimizer, and its backend's name beside it.

    Args:
        model: to save.
        inputs: some that it takes.
        folder: to write into.
        ports: of the model.
        expect: the model's answers, to which those of the saved model are held.

    Returns:
        The name of the file to load, how it was held against the model, and the runtime's options.

    Raises:
        ModelError: `save_failed`, it has code that is not Keras' own, which a runtime does not load; or it answers otherwise.
    """
    (folder / BACKEND_FILE).write_text(json.dumps({"backend": keras.backend.backend()}))
    inputs_in_order, outputs_in_order = _order_inputs(model, ports), order_outputs(ports.outputs)
    try:
        # A copy from the description alone has no optimizer, and shows that the description is enough.
        copy = keras.models.model_from_json(model.to_json())
        copy.set_weights([to_numpy(variable) for variable in model.weights])
        with warnings.catch_warnings():
            # NumPy warns of the way in which Keras converts TensorFlow's variables.
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            copy.save(folder / _MODEL_FILE)
        saved = KerasRuntime()
        saved.open(folder, _MODEL_FILE, inputs_in_order, outputs_in_order, has_rows=ports.has_rows)
    except Exception as error:  # Layers may raise anything while they are described.
        raise ModelError("save_failed", detail=str(error).strip()) from error
    options: dict[str, Any] = {"inputs": inputs_in_order, "outputs": outputs_in_order}
    options |= {} if ports.has_rows else {"has_rows": False}
    trials = ports.draw_trials(inputs)
    return check_saved(_MODEL_FILE, options, saved.infer, expect, trials, _SAVED_TOLERANCE, has_rows=ports.has_rows)


def _order_inputs(model: Any, ports: Ports) -> list[str]:
    """Give the names of the inputs in the order in which the model itself has them."""
    names = {id(tensor): name for tensor, name in zip(match_inputs(model, ports.inputs), ports.input_names, strict=False)}
    tensors: list[Any] = getattr(model, "inputs", None) or []
    own = [names[id(tensor)] for tensor in tensors if id(tensor) in names]
    return own if len(own) == len(ports.input_names) else ports.input_names
