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
from argosy.frameworks.trees import Tree, spread

__all__ = ["INPUT", "call_block", "collect_parameters", "draws_random", "mix_precision", "trace"]

INPUT: Final = "data"
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


def trace(model: Any) -> Any:
    """Give the symbol that a model of one input computes; parameters appear under Gluon's names.

    Raises:
        ValueError: there is none; the text says why.
    """
    if not isinstance(model, mx.gluon.HybridBlock):
        raise ValueError(f"{type(model).__name__} is a gluon.Block whose forward is Python code; derive it from HybridBlock")
    try:
        symbol = model(mx.sym.var(INPUT))
    except FAILURES as error:
        raise ValueError(f"{type(model).__name__} computes on tensors, not on symbols: {explain(error)}") from error
    if not isinstance(symbol, mx.sym.Symbol) or len(symbol.list_outputs()) != 1:
        raise ValueError(f"{type(model).__name__} has several outputs, expected one")
    return symbol


def collect_parameters(model: Any, symbol: Any) -> dict[str, Any]:
    """Give the tensors that a traced symbol takes beside its input, by Gluon's names."""
    needed = {*symbol.list_inputs()} - {INPUT}
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
