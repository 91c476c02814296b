"""Losses of Gluon models: ours, Gluon's own, functions; of one output or several, with weights of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from argosy.frameworks.base import FitOptions, name_kind
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.loss_trees import Compute, fail_unweighable, open_losses, takes_weights
from argosy.frameworks.mxnet.library import mx
from argosy.frameworks.trees import Tree, list_leaves

__all__ = ["backpropagate", "check_scalar", "open_loss"]


def _binary_cross_entropies(ops: Any, outputs: Any, targets: Any) -> Any:
    return _average(ops, ops.relu(outputs) - outputs * targets + ops.Activation(-ops.abs(outputs), act_type="softrelu"))


def _cross_entropies(ops: Any, outputs: Any, targets: Any) -> Any:
    # MXNet's own log_softmax is 3e-6 off, thirty times as much as float32 has to be.
    shifted = ops.broadcast_sub(outputs, ops.BlockGrad(ops.max(outputs, axis=1, keepdims=True)))
    return ops.log(ops.sum(ops.exp(shifted), axis=1)) - ops.pick(shifted, targets)


def _half_squares(ops: Any, outputs: Any, targets: Any) -> Any:
    return 0.5 * ops.sum(ops.reshape(ops.square(outputs - targets), shape=(0, -1)), axis=1)


def _squares(ops: Any, outputs: Any, targets: Any) -> Any:
    return _average(ops, ops.square(outputs - targets))


def _average(ops: Any, values: Any) -> Any:
    """Give one number a row."""
    return ops.mean(ops.reshape(values, shape=(0, -1)), axis=1)


_LOSSES: Final[dict[str, Callable[[Any, Any, Any], Any]]] = {
    "binary_cross_entropy": _binary_cross_entropies,
    "cross_entropy": _cross_entropies,
    "half_mse": _half_squares,
    "mse": _squares,
}
"""Each gives a number for every row."""


class _NamedLoss(mx.gluon.HybridBlock):
    """One of ours, compiled."""

    def __init__(self, name: str) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._compute = _LOSSES[name]
        self.hybridize(static_alloc=True)

    def hybrid_forward(self, ops: Any, outputs: Any, targets: Any, weights: Any = None) -> Any:
        rows = self._compute(ops, outputs, targets)
        return ops.mean(rows if weights is None else rows * weights)


def open_loss(loss: Tree, options: FitOptions) -> Compute:
    """Give what a step makes small, as a function of tensors.

    Args:
        loss: see `base.Framework.build_step`.
        options: of the run.
    """
    return open_losses(loss, options.loss_weights, _open_leaf)


def _open_leaf(loss: Any) -> Compute:
    if isinstance(loss, str):
        named: Any = _NamedLoss(loss)
        return lambda outputs, targets, weights: named(outputs, targets, *(() if weights is None else (weights,)))
    if takes_weights(loss):
        return lambda outputs, targets, weights: _reduce(loss(outputs, targets, weights), outputs, None)
    return lambda outputs, targets, weights: _reduce(loss(outputs, targets), outputs, weights)


def _reduce(value: Any, outputs: Tree, weights: Any) -> Any:
    """Give a loss as a scalar: the mean over the rows of what it is for a row, times the row's weight.

    MXNet's scalars have an axis of one number, as the losses of one row have.

    Raises:
        InputError: `bad_loss`, it is no tensor, or its first axis does not count rows; `bad_option`, a scalar, which weights of
            rows cannot multiply.
    """
    if not isinstance(value, mx.nd.NDArray):
        raise fail_loss(name_kind(value))
    num_rows = next((len(leaf) for leaf in list_leaves(outputs) if getattr(leaf, "shape", ())), None)
    if value.size == 1 and num_rows != 1:
        if weights is not None:
            raise fail_unweighable("a loss that gives a scalar")
        return value
    if num_rows is not None and len(value) != num_rows:
        raise fail_loss(f"a tensor of shape {value.shape}", num_rows)
    if weights is None:
        return value.mean()
    return (value.reshape((0, -1)).mean(axis=1) * weights).mean()


def check_scalar(loss: Any) -> Any:
    """Give a loss, if it is one number.

    Raises:
        InputError: `bad_loss`.
    """
    if not isinstance(loss, mx.nd.NDArray):
        raise fail_loss(name_kind(loss))
    own: Any = loss
    if own.size != 1:
        raise fail_loss(f"a tensor of shape {own.shape}")
    return own


def backpropagate(loss: Any) -> None:
    """Leave the gradients of a scalar in the parameters that it was computed from.

    Raises:
        InputError: `bad_loss`, it was computed from none.
    """
    try:
        loss.backward()
    except mx.base.MXNetError as error:
        if "computational graph" not in str(error):
            raise
        raise fail_loss("a number without a gradient") from error
