"""A Gluon model as an ONNX file, by MXNet's exporter, which was written for the onnx of 2021."""

from __future__ import annotations

import importlib
import logging
import types
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import ModelError
from argosy.frameworks.mxnet.graph import collect_parameters, name_inputs, trace
from argosy.frameworks.mxnet.library import FAILURES, explain, mx
from argosy.frameworks.onnx import name_tensors
from argosy.frameworks.ports import Ports
from argosy.signature import Arrays

__all__ = ["export_onnx"]

onnx: Any = importlib.import_module("onnx")
exporter: Any = importlib.import_module("mxnet.onnx")

_OUTPUT: Final = "argosy_out_{}"

_OPSET: Final = 13
"""What MXNet's exporter writes nodes for."""

_IR_VERSION: Final = 8
"""Of the files: read by every runtime that knows the opset."""

_KINDS: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
"""ONNX's numbers of the types that MXNet has."""


def export_onnx(model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
    """Write a model as an ONNX file; see `base.Framework.export_onnx`."""
    try:
        symbol = trace(model, ports)
        names = name_inputs(len(inputs))
        arrays = dict(zip(names, inputs.values(), strict=True))
        shapes = {inner: ports.open_shape(name, inputs[name].shape) for inner, name in zip(names, inputs, strict=True)}
        # The exporter takes them in the order in which the graph uses them, and knows no unused ones.
        used = [name for name in symbol.list_inputs() if name in arrays]
        with _mend():
            exporter.export_model(
                _mark_outputs(symbol),
                collect_parameters(model, symbol),
                in_shapes=[arrays[name].shape for name in used],
                in_types=[arrays[name].dtype for name in used],
                onnx_file_path=str(path),
                dynamic=True,
                dynamic_input_shapes=[shapes[name] for name in used],
            )
        exported = onnx.load(str(path))
        _complete(exported)
        _order_outputs(exported.graph)
        name_tensors(exported, inputs, names, ports)
        onnx.checker.check_model(exported)
    except (*FAILURES, onnx.checker.ValidationError) as error:
        raise ModelError("export_failed", detail=explain(error)) from error
    onnx.save(exported, str(path))


def _mark_outputs(symbol: Any) -> Any:
    """Give outputs names by which they are found again: the exporter writes them in the order in which they are computed."""
    num_outputs = len(symbol.list_outputs())
    if num_outputs == 1:
        return symbol
    return mx.sym.Group([mx.sym.identity(symbol[number], name=_OUTPUT.format(number)) for number in range(num_outputs)])


def _order_outputs(graph: Any) -> None:
    if len(graph.output) > 1:
        items = {item.name: item.SerializeToString() for item in graph.output}
        del graph.output[:]
        for number in range(len(items)):
            graph.output.append(onnx.ValueInfoProto.FromString(items[_OUTPUT.format(number)]))


@contextmanager
def _mend() -> Generator[None]:
    """Let the exporter work, for the time of the block.

    It asks for a module that onnx has dropped, stamps and checks its nodes by the newest opset that onnx knows, and
    logs through the root logger, which sets that up as a side effect.
    """
    mapping: Any = types.ModuleType("onnx.mapping")
    mapping.NP_TYPE_TO_TENSOR_TYPE = {np.dtype(name): kind for name, kind in _KINDS.items()}
    mapping.TENSOR_TYPE_TO_NP_TYPE = {kind: np.dtype(name) for name, kind in _KINDS.items()}
    replaced: list[tuple[Any, str, Any]] = [
        (onnx, "mapping", mapping),
        (onnx.defs, "onnx_opset_version", lambda: _OPSET),
        (onnx.checker, "check_graph", _skip),
        (logging.root, "handlers", [logging.NullHandler()]),
    ]
    with warnings.catch_warnings(), ExitStack() as undo:
        warnings.simplefilter("ignore")
        for owner, name, value in replaced:
            if name in vars(owner):
                undo.callback(setattr, owner, name, getattr(owner, name))
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


def _skip(graph: Any) -> None:
    """Check nothing; the finished model is checked."""


def _complete(exported: Any) -> None:
    """State the versions that the nodes are of."""
    exported.ir_version = _IR_VERSION
    del exported.opset_import[:]
    exported.opset_import.extend([onnx.helper.make_opsetid("", _OPSET)])
