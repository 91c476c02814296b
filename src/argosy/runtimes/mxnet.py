"""Run MXNet graphs on the CPU: `model-symbol.json` with its parameters beside it, as `HybridBlock.export` writes them."""

from __future__ import annotations

import ctypes
import importlib
import os
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import blame_input
from argosy.runtimes.mxnet_files import Graph, Node, read_graph, read_parameters

__all__ = ["RUNTIME", "MxnetRuntime"]

# A worker runs one batch at a time: operators in its own thread save the way to another and back, leave nothing
# running in the template that is forked, and take the number of threads that is asked for.
os.environ.setdefault("MXNET_ENGINE_TYPE", "NaiveEngine")
os.environ.setdefault("MXNET_OMP_MAX_THREADS", str(os.cpu_count() or 1))
# Threads that spin between batches would take the fronts' cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
with warnings.catch_warnings():
    # It uses distutils and names that NumPy has deprecated.
    warnings.simplefilter("ignore")
    mx: Any = importlib.import_module("mxnet")

_GRAPH_SUFFIX: Final = "-symbol.json"
_PARAMETERS_SUFFIX: Final = "-0000.params"


class MxnetRuntime:
    """One graph. Options: `threads` (of one operator; default 1), `inputs` and `outputs`: the tensors' names in order."""

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Build the graph; nothing of the files reaches MXNet's own loaders, see `mxnet_files.py`."""
        if not entry.endswith(_GRAPH_SUFFIX):
            raise ValueError(f"Entry file {entry!r} is not a graph of MXNet, expected NAME{_GRAPH_SUFFIX}")
        mx.base.check_call(mx.base._LIB.MXSetNumOMPThreads(ctypes.c_int(options.get("threads", 1))))
        symbol = _build_symbol(read_graph(folder / entry))
        arrays = read_parameters(folder / (entry.removesuffix(_GRAPH_SUFFIX) + _PARAMETERS_SUFFIX))
        needed: list[str] = symbol.list_inputs()
        free = [name for name in needed if name not in arrays]
        self._inputs: list[str] = options["inputs"]
        self._outputs: list[str] = options["outputs"]
        if len(free) != len(self._inputs) or len(symbol.list_outputs()) != len(self._outputs):
            raise ValueError(
                f"The graph takes {free} and gives {symbol.list_outputs()}, expected {self._inputs} and {self._outputs}"
            )
        self._operands = [_copy(arrays[name]) if name in arrays else None for name in needed]
        self._places = [needed.index(name) for name in free]
        self._compute = mx.nd.CachedOp(symbol)

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """MXNet changes their number at any time."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: an operator cannot compute with what it gets.
        """
        operands = [*self._operands]
        for place, name in zip(self._places, self._inputs, strict=True):
            operands[place] = _to_tensor(inputs[name])
        try:
            answers = self._compute(*operands)
            tensors: list[Any] = [answers] if len(self._outputs) == 1 else answers
            return {name: tensor.asnumpy() for name, tensor in zip(self._outputs, tensors, strict=True)}
        except mx.base.MXNetError as error:
            raise blame_input(RuntimeError(_explain(error))) from error


def _build_symbol(graph: Graph) -> Any:
    symbols: list[Any] = []
    for node in graph.nodes:
        try:
            symbols.append(mx.sym.var(node.name) if node.operator is None else _build_node(node, symbols))
        except (mx.base.MXNetError, IndexError) as error:
            raise ValueError(f"Node {node.name!r} of the graph, {node.operator}, cannot be made: {_explain(error)}") from error
    try:
        return mx.sym.Group([symbols[source][output] for source, output in graph.heads])
    except IndexError as error:
        raise ValueError(f"The graph gives {graph.heads}, of which some are not there") from error


def _build_node(node: Node, symbols: list[Any]) -> Any:
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(str(node.operator).encode(), ctypes.byref(handle)))
    operands = [symbols[source][output] for source, output in node.inputs]
    create = mx.symbol._internal._symbol_creator
    return create(handle.value, operands, None, [*node.attributes], [*node.attributes.values()], node.name, False)


def _explain(error: Exception) -> str:
    """Give what MXNet says, without the trace through its source that comes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["it takes an output that is not there"]
    return next((line for line in lines if line.startswith("MXNetError: ")), lines[-1]).removeprefix("MXNetError: ")


def _copy(array: NDArray[Any]) -> Any:
    tensor = mx.nd.empty(array.shape, dtype=array.dtype)
    tensor[:] = array
    return tensor


def _to_tensor(array: NDArray[Any]) -> Any:
    if array.dtype == np.int8:  # The one type that MXNet has and its import does not.
        return _copy(array)
    # A view, since MXNet makes what it is given read-only.
    return mx.nd.from_numpy(np.ascontiguousarray(array).view())


RUNTIME: Final = MxnetRuntime
