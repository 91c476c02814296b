"""ONNX files: what every framework exports to; run here by ONNX Runtime, alone, to check and to measure."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from argosy.errors import ModelError, list_choices
from argosy.frameworks.agreement import Differs, Evidence, Fails, Run, hold_against
from argosy.frameworks.ports import Ports
from argosy.signature import Arrays

__all__ = ["EXPORT_TOLERANCE", "OnnxModel", "check_export", "declare_shapes", "name_tensors"]

EXPORT_TOLERANCE: Final = 1e-4
"""Largest difference from the framework's own outputs, relative to their largest magnitude.

float32 kernels that sum in another order differ by 1e-7 to 1e-6; a wrong operator by 1e-2 and more."""

_SEVERITY_ERROR: Final = 3


class OnnxModel:
    """An ONNX file, loaded on one thread, so that its answers do not depend on the number of cores."""

    def __init__(self, source: Path | bytes) -> None:
        """Load a file or its content.

        Raises:
            ModelError: `export_failed`, ONNX Runtime refuses it.
        """
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERITY_ERROR
        model = source if isinstance(source, bytes) else str(source)
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base but this one.
            raise ModelError("export_failed", detail=str(error)) from error
        self.input_names: list[str] = [tensor.name for tensor in self._session.get_inputs()]
        self.output_names: list[str] = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Answer a batch."""
        return dict(zip(self.output_names, self._session.run(None, inputs), strict=True))


def check_export(model: OnnxModel, expect: Run, inputs: Arrays, ports: Ports) -> Evidence:
    """Hold an exported model against the framework's own answers, on the sample and on inputs that take other ways.

    Args:
        model: what was exported.
        expect: the framework's answers.
        inputs: real ones.
        ports: of the model.

    Raises:
        ModelError: `export_differs`, by more than `EXPORT_TOLERANCE`; `export_failed`, no answer to some inputs.
        InputError: `bad_option`, the model takes no other length along the free axes.
    """
    if sorted(model.input_names) != sorted(inputs) or model.output_names != ports.output_names:
        sides = f"takes {list_choices(model.input_names)} and gives {list_choices(model.output_names)}"
        expected = f"{list_choices(inputs)} and {list_choices(ports.output_names)}"
        raise ModelError("export_failed", detail=f"what was written {sides}, expected {expected}")
    trials = ports.draw_trials(inputs)
    try:
        return hold_against(model.run, expect, trials, EXPORT_TOLERANCE, has_rows=ports.has_rows)
    except Differs as error:
        raise ModelError("export_differs", rows=error.kind, got=error.difference, allowed=error.allowed) from error
    except Fails as error:
        raise ModelError("export_failed", detail=f"of what was written, {error}") from error


def declare_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the lengths of the outputs' axes as they were seen: a tracer declares those of its sample, and some exporters none.

    Args:
        path: of an ONNX file; its external data stays as it is.
        shapes: by output; -1 stands for any length.
    """
    onnx: Any = importlib.import_module("onnx")
    written = onnx.load(str(path), load_external_data=False)
    for tensor in written.graph.output:
        described = onnx.helper.make_tensor_value_info(
            tensor.name, tensor.type.tensor_type.elem_type, [None if length < 0 else length for length in shapes[tensor.name]]
        )
        tensor.type.CopyFrom(described.type)
    onnx.save(written, str(path))


def name_tensors(model: Any, inputs: Arrays, given: Sequence[str], ports: Ports) -> None:
    """Give the tensors of an exported model the names asked for, and its inputs the types of real ones.

    Args:
        model: an `onnx.ModelProto`, changed in place; it gives the outputs in their order.
        inputs: real ones, by the names asked for.
        given: what the inputs are called in the model, in the same order. One that the model does not use may be missing
            there, since some exporters leave it out.
        ports: of the model.
    """
    onnx: Any = importlib.import_module("onnx")
    graph = model.graph
    _part_outputs(onnx, graph)
    known = {item.name: item for item in graph.input}
    for inner, (name, array) in zip(given, inputs.items(), strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if inner not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(inner, kind, ports.open_shape(name, array.shape)))
        elif known[inner].type.tensor_type.elem_type != kind:
            _take_type(onnx, graph, known[inner], kind)
    names = dict(zip(given, inputs, strict=True)) | dict(
        zip((item.name for item in graph.output), ports.output_names, strict=True)
    )
    used = _list_names(graph)
    for name in sorted(used & set(names.values()) - names.keys()):
        names[name] = _find_unused(name, used | set(names.values()))
    _rename_in(graph, names)


def _part_outputs(onnx: Any, graph: Any) -> None:
    """Let every output be a tensor of its own: neither an input, nor a weight, nor another output."""
    taken = {item.name for item in (*graph.input, *graph.initializer)}
    for item in graph.output:
        if item.name in taken:
            fresh = _find_unused(item.name, _list_names(graph))
            graph.node.append(onnx.helper.make_node("Identity", [item.name], [fresh]))
            item.name = fresh
        taken.add(item.name)


def _take_type(onnx: Any, graph: Any, item: Any, kind: int) -> None:
    """Let an input be of another type, and be changed to the one that the graph computes with."""
    wide, narrow = item.name, _find_unused(item.name, _list_names(graph))
    _rename_in(graph, {wide: narrow})
    graph.node.insert(0, onnx.helper.make_node("Cast", [wide], [narrow], to=item.type.tensor_type.elem_type))
    item.name, item.type.tensor_type.elem_type = wide, kind


def _list_names(graph: Any) -> set[str]:
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {item.name for item in (*graph.input, *graph.output, *graph.initializer)}


def _find_unused(name: str, used: set[str]) -> str:
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
