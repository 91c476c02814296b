"""A Gluon model in MXNet's own form: a graph as JSON and its parameters, as `HybridBlock.export` writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.agreement import Saved, check_saved
from argosy.frameworks.mxnet.graph import INPUT, collect_parameters, trace
from argosy.frameworks.mxnet.library import FAILURES, explain, mx, to_tensor
from argosy.frameworks.trials import draw_trials
from argosy.runtimes.mxnet_files import GRAPH_FILE, PARAMETERS_FILE, read_graph, read_parameters
from argosy.signature import Arrays

__all__ = ["save_native"]

_TOLERANCE: Final = 1e-5
"""Largest difference from the model's answers, relative to their largest magnitude: the operators are the same."""


def save_native(
    model: Any, rows: NDArray[Any], folder: Path, predict: Callable[[NDArray[Any]], NDArray[Any]], free: Sequence[int] = ()
) -> Saved:
    """Write a model into a folder; see `base.Framework.save_native`. `predict` gives the model's answers."""
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
    block = mx.gluon.SymbolBlock.imports(str(folder / GRAPH_FILE), [INPUT], str(folder / PARAMETERS_FILE))

    def answer(inputs: Arrays) -> Arrays:
        with mx.autograd.pause(train_mode=False):
            return {"output": block(to_tensor(inputs["input"])).asnumpy()}

    # A block may compute otherwise on symbols than on tensors.
    trials = draw_trials({"input": rows}, {"input": free})
    return check_saved(GRAPH_FILE, answer, lambda inputs: {"output": predict(inputs["input"])}, trials, _TOLERANCE)
