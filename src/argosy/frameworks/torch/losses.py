"""Losses of torch models: ours, torch's own, functions; of one output or several, with weights of rows."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.trees import Tree, is_named, is_ordered

__all__ = ["open_loss"]

torch: Any = importlib.import_module("torch")

Compute = Callable[[Tree, Tree, Any], Any]
"""From outputs, targets and weights of the rows (or None): a scalar."""

_WEIGHTS: Final = ("weights", "sample_weight", "sample_weights")
"""How a loss calls the weights of rows that it takes, if it can do without."""


def _half_mse(outputs: Any, targets: Any, reduction: str = "mean") -> Any:
    if reduction == "none":
        return 0.5 * (outputs - targets).square().flatten(1).sum(1)
    return 0.5 * (outputs - targets).square().sum() / len(outputs)


_LOSSES: Final[dict[str, Callable[..., Any]]] = {
    "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
    "cross_entropy": torch.nn.functional.cross_entropy,
    "half_mse": _half_mse,
    "mse": torch.nn.functional.mse_loss,
}


def open_loss(loss: Tree, options: FitOptions) -> Compute:
    """Give what a step makes small.

    Args:
        loss: see `base.Framework.build_step`.
        options: of the run.

    Raises:
        InputError: `bad_option`, a loss that cannot be weighted by rows, or passed in pieces.
    """
    return _open_part(loss, options.loss_weights, options)


def _open_part(loss: Tree, factors: Tree, options: FitOptions) -> Compute:
    if is_named(loss) or is_ordered(loss):
        parts = loss.items() if is_named(loss) else enumerate(loss)
        return _add({key: _open_part(part, factors and factors[key], options) for key, part in parts})
    compute = _open_leaf(loss, options)
    if factors is None or factors == 1:
        return compute
    return lambda outputs, targets, weights: factors * compute(outputs, targets, weights)


def _add(parts: Mapping[Any, Compute]) -> Compute:
    def compute(outputs: Any, targets: Any, weights: Any) -> Any:
        return sum(part(outputs[key], targets[key], weights) for key, part in parts.items())

    return compute


def _open_leaf(loss: Any, options: FitOptions) -> Compute:
    function: Any = _LOSSES[loss] if isinstance(loss, str) else loss
    reduction = getattr(loss, "reduction", "mean")
    if options.micro_batch_size and reduction != "mean":
        raise InputError("bad_option", option="loss", got=f"reduction {reduction}", expected="mean, with micro-batches")
    takes_weights = not isinstance(loss, str) and _takes_weights(function)
    if not options.is_weighted:
        if isinstance(loss, str):
            return lambda outputs, targets, weights: function(outputs, targets)
        given = (None,) if takes_weights else ()
        return lambda outputs, targets, weights: _reduce(function(outputs, targets, *given), outputs)
    if takes_weights:
        return lambda outputs, targets, weights: _reduce(function(outputs, targets, weights), outputs)
    by_row = _split(function)
    is_sum = reduction == "sum"
    return lambda outputs, targets, weights: _weigh(by_row(outputs, targets), weights, loss, is_sum=is_sum)


def _takes_weights(function: Any) -> bool:
    """Whether a loss takes the weights of rows as its third argument."""
    try:
        own = function.forward if isinstance(function, torch.nn.Module) else function
        found = list(inspect.signature(own).parameters.values())
    except (TypeError, ValueError):
        return False
    places = [part for part in found if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and (places[2].default is places[2].empty or places[2].name in _WEIGHTS)


def _split(function: Any) -> Any:
    """Give the same loss, as a number for every row or output, if it is one of those that can."""
    if isinstance(getattr(function, "reduction", None), str):
        function = copy.copy(function)
        function.reduction = "none"
        return function
    try:
        can = "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        can = False
    return partial(function, reduction="none") if can else function


def _reduce(value: Any, outputs: Any) -> Any:
    """Give a loss as a scalar: the mean of numbers for each row."""
    if not torch.is_tensor(value):
        raise fail_loss(name_kind(value))
    if value.ndim == 0:
        return value
    num_rows = len(outputs) if torch.is_tensor(outputs) else None
    if value.ndim > 1 or (num_rows is not None and len(value) != num_rows):
        raise fail_loss(f"a tensor of shape {tuple(value.shape)}", num_rows)
    return value.mean()


def _weigh(value: Any, weights: Any, loss: Any, *, is_sum: bool) -> Any:
    """Give the mean over the rows of weight times loss of the row."""
    if not torch.is_tensor(value):
        raise fail_loss(name_kind(value), len(weights))
    if value.ndim == 0 or len(value) != len(weights):
        got = "a loss that gives a scalar" if value.ndim == 0 else f"a loss of shape {tuple(value.shape)}"
        expected = "one that gives a number for each row, or takes `weights` as third argument, with weights of rows or classes"
        raise InputError("bad_option", option="loss", got=got, expected=expected)
    weighted = (value if value.ndim == 1 else value.flatten(1).mean(1)) * weights
    return weighted.sum() if is_sum else weighted.mean()
