"""A Gluon model as an ONNX file, by MXNet's exporter, which was written for the onnx of 2021."""

from __future__ import annotations

import importlib
import logging
import types
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.mxnet.graph import INPUT, collect_parameters, trace
from argosy.frameworks.mxnet.library import FAILURES, explain

__all__ = ["export_onnx"]

onnx: Any = importlib.import_module("onnx")
exporter: Any = importlib.import_module("mxnet.onnx")

_OPSET: Final = 13
"""What MXNet's exporter writes nodes for."""

_IR_VERSION: Final = 8
"""Of the files: read by every runtime that knows the opset."""

_KINDS: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
"""ONNX's numbers of the types that MXNet has."""


def export_onnx(
    model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str, free: Sequence[int] = ()
) -> None:
    """Write a model as an ONNX file; see `base.Framework.export_onnx`."""
    try:
        symbol = trace(model)
        with _mend():
            exporter.export_model(
                symbol,
                collect_parameters(model, symbol),
                in_shapes=[rows.shape],
                in_types=[rows.dtype],
                onnx_file_path=str(path),
                dynamic=True,
                dynamic_input_shapes=[tuple(None if axis in (0, *free) else dim for axis, dim in enumerate(rows.shape))],
            )
        exported = onnx.load(str(path))
        _complete(exported)
        _rename(exported.graph, {INPUT: input_name, exported.graph.output[0].name: output_name})
        onnx.checker.check_model(exported)
    except (*FAILURES, onnx.checker.ValidationError) as error:
        raise ModelError("export_failed", detail=explain(error)) from error
    onnx.save(exported, str(path))


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


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename values of a graph; others that have one of the new names make way."""
    tensors = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {tensor.name for tensor in tensors}
    for name in taken & {*names.values()} - names.keys():
        free = f"{name}_inner"
        while free in taken or free in names.values():
            free += "_inner"
        names = {**names, name: free}
    for tensor in tensors:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
