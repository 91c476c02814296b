"""The graph of a hybrid model: what operators it has, and the same in mixed precision."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.mxnet.library import FAILURES, explain, mx
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, list_leaves, name_arguments, spread

__all__ = ["call_block", "collect_parameters", "draws_random", "list_arguments", "mix_precision", "name_inputs", "trace"]

_INPUT: Final = "data"
"""Name of a traced model's input, as Gluon has it."""

_RANDOM: Final = re.compile(
    r"rand|sample|shuffle|uniform|normal|exponential|poisson|gamma|multinomial|bernoulli|choice|Custom|CachedOp|_foreach|_while_loop|_cond",
    re.IGNORECASE,
)
"""Operators that draw random numbers, or may have one inside that does."""

_CPU_FLAG: Final = "avx512bw"
"""What MXNet's bfloat16 kernels need."""


def call_block(model: Any, inputs: Tree) -> Tree:
    """Call a block with inputs; those by name in their order, for Gluon knows arguments by place alone."""
    given, named = spread(inputs)
    return model(*given, *named.values())


def list_arguments(model: Any) -> tuple[str, ...]:
    """Name the tensors that a block is called with, in order."""
    written = getattr(model, "hybrid_forward", None)
    if getattr(written, "__func__", None) in (None, mx.gluon.HybridBlock.hybrid_forward):
        return name_arguments(model.forward)
    # After the module of functions; parameters come behind them, by name.
    return name_arguments(model.hybrid_forward, but=tuple(model._reg_params))[1:]


def name_inputs(num_inputs: int) -> list[str]:
    """Name the inputs of a traced model, as Gluon does."""
    return [_INPUT] if num_inputs == 1 else [f"{_INPUT}{number}" for number in range(num_inputs)]


def trace(model: Any, ports: Ports | None = None) -> Any:
    """Give the symbol that a model computes; parameters appear under Gluon's names, inputs as `name_inputs` says.

    Args:
        model: to trace.
        ports: of the model; None: it has one input and one output.

    Raises:
        ValueError: there is none; the text says why.
    """
    if not isinstance(model, mx.gluon.HybridBlock):
        raise ValueError(f"{type(model).__name__} is a gluon.Block whose forward is Python code; derive it from HybridBlock")
    num_inputs, num_outputs = (1, 1) if ports is None else (len(ports.input_names), len(ports.output_names))
    symbols = [mx.sym.var(name) for name in name_inputs(num_inputs)]
    try:
        given = symbols[0] if ports is None else ports.pack(dict(zip(ports.input_names, symbols, strict=True)))
        leaves = list_leaves(call_block(model, given))
    except FAILURES as error:
        raise ValueError(f"{type(model).__name__} computes on tensors, not on symbols: {explain(error)}") from error
    if not all(isinstance(leaf, mx.sym.Symbol) for leaf in leaves):
        raise ValueError(f"{type(model).__name__} gives something else than tensors")
    symbol = leaves[0] if len(leaves) == 1 else mx.sym.Group(leaves)
    if (got := len(symbol.list_outputs())) != num_outputs:
        raise ValueError(f"{type(model).__name__} has {got} outputs, expected {num_outputs}")
    return symbol


def collect_parameters(model: Any, symbol: Any) -> dict[str, Any]:
    """Give the tensors that a traced symbol takes beside its inputs, by Gluon's names."""
    needed = {*symbol.list_inputs()}
    return {name: own.data() for name, own in model.collect_params().items() if name in needed}


def draws_random(model: Any) -> bool:
    """Say whether a model may draw random numbers while it trains, such as for dropout."""
    if type(model) is mx.gluon.nn.Sequential:
        return any(draws_random(child) for child in model._children.values())
    try:
        nodes = json.loads(trace(model).tojson())["nodes"]
    except ValueError:
        return True
    return any(_is_random(node["op"], node.get("attrs", {})) for node in nodes)


def _is_random(operator: str, attributes: dict[str, str]) -> bool:
    if operator in ("Dropout", "RNN"):
        return float(attributes.get("p", 0.5 if operator == "Dropout" else 0.0)) > 0
    if operator == "LeakyReLU":
        return attributes.get("act_type") == "rrelu"
    return _RANDOM.search(operator) is not None


def mix_precision(model: Any) -> Callable[[Any], Any]:
    """Give the forward pass of a float32 model with products in bfloat16; its weights stay what they are.

    MXNet's own switch for it (`amp.init`) changes every operator of the process, and cannot be undone.

    Raises:
        InputError: `bad_option`, the model has no graph or other weights, or the processor no such instructions.
    """
    if any(np.dtype(own.dtype) != np.float32 for own in model.collect_params().values()):
        raise _refuse("None for a model with weights other than float32")
    if _CPU_FLAG not in Path("/proc/cpuinfo").read_text().split():
        raise _refuse(f"None: this processor has no {_CPU_FLAG}")
    try:
        symbol = trace(model)
    except ValueError as error:
        raise _refuse(f"None: {error}") from error
    amp: Any = importlib.import_module("mxnet.contrib.amp")
    mixed = amp.convert_symbol(symbol, target_dtype="bfloat16")
    tensors = collect_parameters(model, symbol)
    operands = [tensors.get(name) for name in mixed.list_inputs()]
    compute = mx.nd.CachedOp(mixed)
    return lambda rows: compute(*(rows if operand is None else operand for operand in operands))


def _refuse(expected: str) -> InputError:
    return InputError("bad_option", option="precision", got="bfloat16", expected=expected)
