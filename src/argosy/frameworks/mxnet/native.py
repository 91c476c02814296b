"""A Gluon model in MXNet's own form: a graph as JSON and its parameters, as `HybridBlock.export` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from argosy.errors import ModelError, list_choices
from argosy.frameworks.agreement import Run, Saved, check_saved
from argosy.frameworks.mxnet.graph import collect_parameters, name_inputs, trace
from argosy.frameworks.mxnet.library import FAILURES, explain, mx, to_tensor
from argosy.frameworks.ports import Ports
from argosy.runtimes.mxnet_files import GRAPH_FILE, PARAMETERS_FILE, read_graph, read_parameters
from argosy.signature import Arrays

__all__ = ["save_native"]

_TOLERANCE: Final = 1e-5
"""Largest difference from the model's answers, relative to their largest magnitude: the operators are the same."""


def save_native(model: Any, inputs: Arrays, folder: Path, ports: Ports, expect: Run) -> Saved:
    """Write a model into a folder; see `base.Framework.save_native`. `expect` gives the model's answers."""
    try:
        symbol = trace(model, ports)
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
        given = dict(zip(name_inputs(len(inputs)), ports.input_names, strict=True))
        # In the order of the graph, which is that of their first use; one that it does not use has no place there.
        own = [given[name] for name in symbol.list_inputs() if name in given]
        if len(own) != len(given):
            raise ValueError(f"it does not use its input {list_choices({*given.values()} - {*own})}")
        names = [name for name in symbol.list_inputs() if name in given]
        block = mx.gluon.SymbolBlock.imports(str(folder / GRAPH_FILE), names, str(folder / PARAMETERS_FILE))
    except FAILURES as error:
        raise ModelError("save_failed", detail=explain(error)) from error

    def answer(arrays: Arrays) -> Arrays:
        with mx.autograd.pause(train_mode=False):
            found = block(*(to_tensor(arrays[name]) for name in own))
            leaves: list[Any] = [*found] if isinstance(found, list | tuple) else [found]
            return {name: leaf.asnumpy() for name, leaf in zip(ports.output_names, leaves, strict=True)}

    # A block may compute otherwise on symbols than on tensors.
    options, trials = {"inputs": own, "outputs": ports.output_names}, ports.draw_trials(inputs)
    return check_saved(GRAPH_FILE, options, answer, expect, trials, _TOLERANCE, has_rows=ports.has_rows)
