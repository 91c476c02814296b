"""Losses of torch models: ours, torch's own, functions; of one output or several, with weights of rows."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.loss_trees import Compute, fail_unweighable, open_losses, takes_weights
from argosy.frameworks.trees import Tree

__all__ = ["check_scalar", "open_loss"]

torch: Any = importlib.import_module("torch")


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
    return open_losses(loss, options.loss_weights, partial(_open_leaf, options=options))


def check_scalar(loss: Any) -> Any:
    """Give a loss, if it is one number with a gradient.

    Raises:
        InputError: `bad_loss`.
    """
    if not torch.is_tensor(loss):
        raise fail_loss(name_kind(loss))
    if loss.numel() != 1:
        raise fail_loss(f"a tensor of shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise fail_loss("a number without a gradient")
    return loss.reshape(())


def _open_leaf(loss: Any, *, options: FitOptions) -> Compute:
    function: Any = _LOSSES[loss] if isinstance(loss, str) else loss
    reduction = getattr(loss, "reduction", "mean")
    if options.micro_batch_size and reduction != "mean":
        raise InputError("bad_option", option="loss", got=f"reduction {reduction}", expected="mean, with micro-batches")
    has_weights = not isinstance(loss, str) and takes_weights(loss.forward if isinstance(loss, torch.nn.Module) else loss)
    if not options.is_weighted:
        if isinstance(loss, str):
            return lambda outputs, targets, weights: function(outputs, targets)
        given = (None,) if has_weights else ()
        return lambda outputs, targets, weights: _reduce(function(outputs, targets, *given), outputs)
    if has_weights:
        return lambda outputs, targets, weights: _reduce(function(outputs, targets, weights), outputs)
    by_row = _split(function)
    is_sum = reduction == "sum"
    return lambda outputs, targets, weights: _weigh(by_row(outputs, targets), weights, loss, is_sum=is_sum)


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
        raise fail_unweighable(got)
    weighted = (value if value.ndim == 1 else value.flatten(1).mean(1)) * weights
    return weighted.sum() if is_sum else weighted.mean()
