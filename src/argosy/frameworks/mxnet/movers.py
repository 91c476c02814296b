"""What moves the weights of a Gluon model: a Trainer, or several, each for its part; and steps of the user's own by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import fail_loss, fail_not_finite
from argosy.frameworks.mxnet.exchange import share_gradients
from argosy.frameworks.mxnet.library import mx
from argosy.frameworks.mxnet.losses import backpropagate, check_scalar
from argosy.frameworks.mxnet.optimizer import measure_norm
from argosy.frameworks.mxnet.trainer import KeptTrainer
from argosy.frameworks.mxnet.weights import list_parameters
from argosy.frameworks.own_step import open_shares

__all__ = ["Mover", "TapeEngine", "open_movers"]


class Mover:
    """One optimizer and its parameters."""

    def __init__(self, optimizer: Any, named: Mapping[str, Any], others: list[Any], key: str | None) -> None:
        self.named = dict(named)
        self.trainer = KeptTrainer(optimizer, named, key)
        self._others = others
        """Of the model, which this one does not move."""

    def clear(self) -> None:
        """Forget the gradients of all parameters, also of those that add them up."""
        for own in (*self.named.values(), *self._others):
            own.data()._fresh_grad = False
            if own.grad_req == "add":
                own.zero_grad()

    def list_fresh(self) -> list[Any]:
        """Give the parameters that the last pass went through; the gradients of others are forgotten."""
        for own in self._others:
            own.data()._fresh_grad = False
        return [own for own in self.named.values() if own.data()._fresh_grad]

    def find_bad_gradient(self) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        fresh = {name: own for name, own in self.named.items() if own.data()._fresh_grad}
        names = [name for name, own in fresh.items() if not np.isfinite(own.grad().asnumpy()).all()]
        return names[-1].rpartition(".")[0] or names[-1] if names else None

    def rate_at(self, number: int) -> float:
        """Give the learning rate, for a message."""
        return self.trainer.rate_at(number)


def open_movers(optimizer: Any, named: Mapping[str, Any], frozen: list[Any], *, has_step: bool) -> dict[str | None, Mover]:
    """Give the movers of a model's parameters by name; None names the only one.

    Args:
        optimizer: see `base.Framework.build_step`.
        named: the parameters to train.
        frozen: those that have gradients, too, and stay as they are.
        has_step: there is a step of the user's own.

    Raises:
        InputError: `bad_option`, see `own_step.open_shares`.
    """
    movers: dict[str | None, Mover] = {}
    for key, (one, names) in open_shares(optimizer, [*named], has_step=has_step).items():
        others = [*frozen, *(own for name, own in named.items() if name not in names)]
        movers[key] = Mover(one, {name: named[name] for name in names}, others, key)
    return movers


class TapeEngine:
    """Makes losses of a step of the user's own small; see `own_step.Engine`. What the step computes, MXNet records."""

    def __init__(self, model: Any, exchange: Exchange | None = None) -> None:
        self._model = model
        self._exchange = exchange

    def minimize(self, loss: Any, mover: Mover, number: int) -> float:
        """See `own_step.Engine`."""
        if not isinstance(loss, mx.nd.NDArray) and callable(loss):
            with mx.autograd.record():
                loss = loss(self._model)
        value = float(check_scalar(loss).asscalar())
        if not math.isfinite(value):
            raise fail_not_finite(step=number, what="loss", layer=None, learning_rate=mover.rate_at(number))
        mover.clear()
        backpropagate(loss)
        if self._exchange is not None:
            others = list_parameters(self._model).values()
            share_gradients(self._exchange, value, [*mover.named.values()], others)
        fresh = mover.list_fresh()
        if not fresh:
            raise fail_loss("one that depends on no weight which is trained")
        if not math.isfinite(measure_norm([own.grad() for own in fresh])):
            layer = mover.find_bad_gradient()
            mover.clear()
            raise fail_not_finite(step=number, what="gradient", layer=layer, learning_rate=mover.rate_at(number))
        with mx.autograd.pause():
            mover.trainer.step()
        return value

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(value.asscalar()) if isinstance(value, mx.nd.NDArray) else float(value)
