"""Models of TensorFlow as files: ONNX through tf2onnx, and SavedModel."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from argosy.errors import ModelError
from argosy.frameworks.base import import_extra
from argosy.frameworks.onnx import name_tensors
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree
from argosy.signature import Arrays

__all__ = ["SAVED_MODEL", "convert_function", "export_graph", "save_graph"]

tf: Any = importlib.import_module("tensorflow")

SAVED_MODEL: Final = "saved_model.pb"

_MAX_DETAIL: Final = 400
_INPUT: Final = "argosy_input_{}"
_OUTPUT: Final = "argosy_output_{}"

_OPSET: Final = 17
"""Of the ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""


def export_graph(call: Callable[[Tree], Tree], inputs: Arrays, path: Path, ports: Ports) -> None:
    """Write a function as an ONNX file whose open axes are of any length.

    Args:
        call: takes and gives trees of tensors; its variables become constants.
        inputs: some that it takes.
        path: of the file to write.
        ports: of the function.

    Raises:
        InputError: `missing_extra`, tf2onnx is not installed.
        ModelError: `export_failed`, the function has an operator that ONNX has not.
    """
    model = convert_function(_number_outputs(call, ports), _describe_inputs(inputs, ports), _OPSET)
    try:
        _order_outputs(model.graph)
        given = {item.name.partition(":")[0]: item.name for item in model.graph.input}
        names = [_INPUT.format(number) for number in range(len(inputs))]
        name_tensors(model, inputs, [given.get(name, name) for name in names], ports)
        importlib.import_module("onnx").checker.check_model(model)
    except Exception as error:  # Those of onnx share no base but this one.
        raise ModelError("export_failed", detail=str(error).strip()[:_MAX_DETAIL]) from error
    path.write_bytes(model.SerializeToString())


def convert_function(call: Callable[..., Any], specs: Sequence[Any], opset: int) -> Any:
    """Give an ONNX model of a function of tensors; what it uses beside them is constant.

    Args:
        call: takes one tensor for each of `specs`.
        specs: a `tf.TensorSpec` each.
        opset: of the model.

    Raises:
        InputError: `missing_extra`, tf2onnx is not installed.
        ModelError: `export_failed`, the function has an operator that ONNX has not.
    """
    onnx: Any = importlib.import_module("onnx")
    converter = import_extra("tf2onnx", feature="The export of TensorFlow's models to ONNX", extra="tensorflow")
    try:
        function = tf.function(call)
        # The converter makes constants of variables, and inputs of tensors that are none.
        captures = function.get_concrete_function(*specs).graph.captures
        fixed = {held.name: tensor.numpy() for tensor, held in captures if tensor.dtype != tf.resource}
        model, _ = converter.convert.from_function(function, list(specs), opset=opset)
        graph = model.graph
        for info in [info for info in graph.input if info.name in fixed]:
            graph.initializer.append(onnx.numpy_helper.from_array(fixed[info.name], info.name))
            graph.input.remove(info)
        # The converter leaves an operator that it does not know as it is, and only logs that.
        onnx.checker.check_model(model)
    except Exception as error:  # Those of tf2onnx, onnx and TensorFlow share no base but this one.
        raise ModelError("export_failed", detail=str(error).strip()[:_MAX_DETAIL]) from error
    return model


def save_graph(call: Callable[[Tree], Tree], owner: Any, inputs: Arrays, folder: Path, ports: Ports) -> None:
    """Write a function as a SavedModel, flat: `variables.index` stands for `variables/variables.index`.

    Its tensors are `argosy_input_0`, `argosy_output_0` and so on, which the runtime knows.

    Args:
        call: takes and gives trees of tensors.
        owner: a `tf.Module` that holds all variables, or anything else that TensorFlow tracks.
        inputs: some that it takes.
        folder: to write into.
        ports: of the function.

    Raises:
        ModelError: `save_failed`, it uses something that `owner` does not hold.
    """
    holder = tf.Module()
    holder.model = owner
    holder.serve = tf.function(_number_outputs(call, ports), input_signature=_describe_inputs(inputs, ports))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        try:
            tf.saved_model.save(holder, made, signatures=holder.serve)
        except Exception as error:  # Among them what the code of the model raises while it is traced.
            raise ModelError("save_failed", detail=str(error).strip()) from error
        for file in [file for file in Path(made).rglob("*") if file.is_file()]:
            file.rename(folder / file.name)


def _number_outputs(call: Callable[[Tree], Tree], ports: Ports) -> Callable[..., dict[str, Any]]:
    flat = ports.flatten(call)

    def answer(*tensors: Any) -> dict[str, Any]:
        # Outputs are tensors of their own: one that is a variable is kept apart otherwise.
        return {_OUTPUT.format(number): tf.identity(tensor) for number, tensor in enumerate(flat(*tensors))}

    return answer


def _describe_inputs(inputs: Arrays, ports: Ports) -> list[Any]:
    return [
        tf.TensorSpec(ports.open_shape(name, array.shape), array.dtype, _INPUT.format(number))
        for number, (name, array) in enumerate(inputs.items())
    ]


def _order_outputs(graph: Any) -> None:
    """Bring outputs, which the converter has by name, into their own order."""
    outputs = {item.name.partition(":")[0]: item.SerializeToString() for item in graph.output}
    del graph.output[:]
    for number in range(len(outputs)):
        graph.output.add().ParseFromString(outputs[_OUTPUT.format(number)])
