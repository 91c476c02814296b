"""What a step of the user's own may ask for; see `fitting.Fit`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import name_kind
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import Journal, fail_loss, fail_not_finite, read_scalars
from argosy.frameworks.torch.exchange import share_gradients
from argosy.frameworks.torch.movers import Mover

__all__ = ["TorchFit", "backpropagate"]

torch: Any = importlib.import_module("torch")


class TorchFit:
    """One step."""

    def __init__(
        self,
        model: Any,
        movers: Mapping[str | None, Mover],
        journal: Journal,
        number: int,
        seed: int,
        exchange: Exchange | None = None,
    ) -> None:
        self._model = model
        self._exchange = exchange
        self._movers = movers
        self._journal = journal
        self.number = number
        self.epoch = journal.epoch
        self.seed = seed
        self.value: float | None = None
        """The sum of the losses that were made small."""

    def minimize(self, loss: Any, optimizer: str | None = None) -> float:
        """See `fitting.Fit`."""
        mover = self._find(optimizer)
        mover.clear()
        scalar = loss if torch.is_tensor(loss) or not callable(loss) else loss(self._model)
        value = backpropagate(check_scalar(scalar), mover, self.number, is_alone=False)
        if self._exchange is not None:
            share_gradients(self._exchange, value, mover.weights, self._model.buffers())
        norm = mover.measure_norm()
        if not math.isfinite(norm):
            found = mover.find_bad_gradient()
            raise fail_not_finite(step=self.number, what="gradient", layer=found, learning_rate=mover.rate_at(self.number))
        mover.step(norm)
        self.value = value + (self.value or 0.0)
        return value

    def log(self, **values: Any) -> None:
        """See `fitting.Fit`."""
        self._journal.logged.update(read_scalars(values, _to_float))

    def _find(self, name: str | None) -> Mover:
        if name not in self._movers:
            known = list_choices(str(key) for key in self._movers if key is not None)
            expected = f"one of {known}" if known != "none" else "None: there is one optimizer"
            raise InputError("bad_option", option="fit.minimize(optimizer)", got=name, expected=expected)
        return self._movers[name]


def _to_float(value: Any) -> float:
    return float(value.detach()) if torch.is_tensor(value) else float(value)


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


def backpropagate(
    loss: Any, mover: Mover, number: int, *, is_alone: bool, find_layer: Callable[[], str | None] = lambda: None
) -> float:
    """Leave the gradients of a loss in the weights of a mover, and give the loss.

    Args:
        loss: a scalar.
        mover: whose weights they are.
        number: of the step.
        is_alone: no other weights have gradients, so that none has to be left out.
        find_layer: says where a loss that is not finite began.

    Raises:
        InputError: `bad_loss`, no weight has a gradient.
        ModelError: `not_finite`.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise fail_not_finite(step=number, what="loss", layer=find_layer(), learning_rate=mover.rate_at(number))
    if is_alone:
        loss.backward()
    else:
        loss.backward(inputs=mover.weights)
    return value
