"""A Gluon model in MXNet's own form: a graph as JSON and its parameters, as `HybridBlock.export` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argosy.errors import ModelError
from argosy.frameworks.mxnet.graph import collect_parameters, trace
from argosy.frameworks.mxnet.library import FAILURES, explain, mx
from argosy.runtimes.mxnet_files import GRAPH_FILE, PARAMETERS_FILE, read_graph, read_parameters

__all__ = ["save_native"]


def save_native(model: Any, folder: Path) -> str:
    """Write a model into a folder; see `base.Framework.save_native`."""
    try:
        symbol = trace(model)
        auxiliary = {*symbol.list_auxiliary_states()}
        tensors = collect_parameters(model, symbol)
        symbol.save(str(folder / GRAPH_FILE))
        mx.nd.save(
            str(folder / PARAMETERS_FILE),
            {f"{'aux' if name in auxiliary else 'arg'}:{name}": tensor for name, tensor in tensors.items()},
        )
        # What the runtime would refuse is said now, rather than by a worker.
        read_graph(folder / GRAPH_FILE)
        read_parameters(folder / PARAMETERS_FILE)
    except FAILURES as error:
        raise ModelError("save_failed", detail=explain(error)) from error
    return GRAPH_FILE
