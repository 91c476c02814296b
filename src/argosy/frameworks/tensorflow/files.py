"""Models of TensorFlow as files: ONNX through tf2onnx, and SavedModel."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.base import import_extra

__all__ = ["SAVED_MODEL", "convert_function", "export_graph", "save_graph"]

tf: Any = importlib.import_module("tensorflow")

SAVED_MODEL: Final = "saved_model.pb"

_MAX_DETAIL: Final = 400
_OPSET: Final = 17
"""Of the ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""


def export_graph(
    call: Callable[[Any], Any],
    rows: NDArray[Any],
    path: Path,
    *,
    input_name: str,
    output_name: str,
    free: Sequence[int] = (),
) -> None:
    """Write a function of one tensor as an ONNX file whose first axis is any number of rows.

    Args:
        call: gives one tensor; its variables become constants.
        rows: some that it takes.
        path: of the file to write.
        input_name: of its input.
        output_name: of its output.
        free: axes of its input whose length is free, too.

    Raises:
        InputError: `missing_extra`, tf2onnx is not installed.
        ModelError: `export_failed`, the function has an operator that ONNX has not.
    """
    model = convert_function(call, [_describe_rows(rows, "x", free)], _OPSET)
    if len(model.graph.input) == len(model.graph.output) == 1:
        _rename_tensors(model.graph, {model.graph.input[0].name: input_name, model.graph.output[0].name: output_name})
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


def save_graph(call: Callable[[Any], Any], owner: Any, rows: NDArray[Any], folder: Path, free: Sequence[int] = ()) -> None:
    """Write a function of one tensor as a SavedModel, flat: `variables.index` stands for `variables/variables.index`.

    Args:
        call: gives one tensor.
        owner: a `tf.Module` that holds all variables, or anything else that TensorFlow tracks.
        rows: some that it takes.
        folder: to write into.
        free: axes of its input whose length is free, beside that of the rows.

    Raises:
        ModelError: `save_failed`, it uses something that `owner` does not hold.
    """

    def serve(x: Any) -> dict[str, Any]:
        return {"output": call(x)}

    holder = tf.Module()
    holder.model = owner
    holder.serve = tf.function(serve, input_signature=[_describe_rows(rows, "input", free)])
    with tempfile.TemporaryDirectory(dir=folder) as made:
        try:
            tf.saved_model.save(holder, made, signatures=holder.serve)
        except (AssertionError, KeyError, TypeError, ValueError, tf.errors.OpError) as error:
            raise ModelError("save_failed", detail=str(error).strip()) from error
        for file in [file for file in Path(made).rglob("*") if file.is_file()]:
            file.rename(folder / file.name)


def _describe_rows(rows: NDArray[Any], name: str, free: Sequence[int]) -> Any:
    shape = [None if axis in (0, *free) else length for axis, length in enumerate(rows.shape)]
    return tf.TensorSpec(shape, rows.dtype, name)


def _rename_tensors(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors of an ONNX graph, where they are made and used; others that have a new name already are moved away."""
    new = dict(names)
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {item.name for item in graph.initializer}
    for name in used & set(names.values()) - names.keys():
        new[name] = _find_free(name, used | set(names.values()))
    _rename_in(graph, new)


def _find_free(name: str, used: set[str]) -> str:
    return next(free for number in range(len(used) + 1) if (free := f"{name}__{number}") not in used)


def _rename_in(graph: Any, new: Mapping[str, str]) -> None:
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.name = new.get(item.name, item.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [new.get(name, name) for name in tensors]
        for attribute in node.attribute:
            # Bodies of loops and branches use what stands outside of them.
            for body in (attribute.g, *attribute.graphs):
                _rename_in(body, new)
