"""What moves the variables of a module: one of Argosy's optimizers or TensorFlow's own, or several, each for its part."""

from __future__ import annotations

import importlib
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.fitting import fail_loss, fail_not_finite
from argosy.frameworks.own_step import open_shares
from argosy.frameworks.schedules import hold_schedule
from argosy.frameworks.tensorflow.exchange import share_gradients
from argosy.frameworks.tensorflow.optimizer import RuleOptimizer, make_dense, measure_norm
from argosy.optim import GradientOptimizer

__all__ = ["Mover", "TapeEngine", "open_movers"]

tf: Any = importlib.import_module("tensorflow")

_NO_SCALARS: Final = np.zeros(3)


class Mover:
    """One optimizer and its variables."""

    def __init__(self, optimizer: Any, named: Mapping[str, Any], key: str | None) -> None:
        self.named = dict(named)
        self.weights = list(named.values())
        self.rule = optimizer if isinstance(optimizer, GradientOptimizer) else None
        self.optimizer: Any = (
            RuleOptimizer(self.weights, self.rule, [*named]) if self.rule else _take_over(optimizer, self.weights)
        )
        self._lowered = None if self.rule else hold_schedule(self.optimizer)
        self._prefix = "optimizer" if key is None else f"optimizer/{key}"
        self._move_graph = tf.function(self.update, reduce_retracing=True)

    def scalars_at(self, number: int) -> NDArray[Any]:
        """Give the scalars of a step."""
        return np.array(self.rule.scalars_at(number)) if self.rule else _NO_SCALARS

    def update(self, gradients: Sequence[Any], scalars: Any, norm: Any) -> None:
        """Move the variables by gradients, whose norm this is."""
        if self.rule:
            self.optimizer.move(gradients, scalars, norm)
        else:
            self.optimizer.apply_gradients(zip(gradients, self.weights, strict=True))

    def move(self, gradients: Sequence[Any], norm: Any) -> None:
        """Take the next of its own steps."""
        taken = int(self.optimizer.taken) + 1 if self.rule else 0
        self._move_graph(
            [make_dense(gradient) if self.rule else gradient for gradient in gradients], self.scalars_at(taken), norm
        )

    def scale_loss(self, loss: Any) -> Any:
        """Give what is differentiated instead of a loss."""
        return loss if self.rule else self.optimizer.scale_loss(loss)

    def rate_at(self, number: int) -> object:
        """Give the learning rate, for a message."""
        return self.rule.rate_at(number) if self.rule else float(self.optimizer.learning_rate)

    def name_state(self) -> dict[str, Any]:
        """Give the variables in which it remembers, by name."""
        if not self.rule:
            # Their names hold counters of the process.
            own = [*self.optimizer.variables, *([] if self._lowered is None else [self._lowered])]
            return {f"{self._prefix}/{index}": variable for index, variable in enumerate(own)}
        named = {f"{self._prefix}/taken": self.optimizer.taken}
        for name, memory in zip(self.named, self.optimizer.memory, strict=True):
            named |= {f"optimizer/{name}/{slot}": v for slot, v in zip(self.rule.slots, memory, strict=True)}
        return named


def open_movers(optimizer: Any, named: Mapping[str, Any], *, has_step: bool) -> dict[str | None, Mover]:
    """Give the movers of a module's variables by name; None names the only one.

    Raises:
        InputError: `bad_option`, see `own_step.open_shares`.
    """
    shares = open_shares(optimizer, [*named], has_step=has_step)
    return {key: Mover(one, {name: named[name] for name in names}, key) for key, (one, names) in shares.items()}


class TapeEngine:
    """Makes losses of a step of the user's own small; see `own_step.Engine`. What the step computes, a tape records."""

    def __init__(self, model: Any, weights: Sequence[Any], exchange: Exchange | None = None, beside: Sequence[Any] = ()) -> None:
        self.model = model
        self._exchange = exchange
        self._beside = list(beside)
        self._weights = list(weights)
        self._tape: Any = None
        self._is_recording = False

    @contextmanager
    def record(self) -> Generator[None]:
        """Let losses that are computed in a block be made small, in it or after it."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as self._tape:
            self._tape.watch(self._weights)
            self._is_recording = True
            try:
                yield
            finally:
                self._is_recording = False

    def minimize(self, loss: Any, mover: Any, number: int) -> float:
        """See `own_step.Engine`."""
        with self._tape.stop_recording() if self._is_recording else nullcontext():
            tape = self._tape
            if not tf.is_tensor(loss) and callable(loss):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(mover.weights)
                    loss = loss(self.model)
            value = _read_scalar(loss)
            if not math.isfinite(value):
                raise fail_not_finite(step=number, what="loss", layer=None, learning_rate=mover.rate_at(number))
            gradients = tape.gradient(loss, mover.weights, output_gradients=mover.scale_loss(tf.ones_like(loss)))
            if all(gradient is None for gradient in gradients):
                raise fail_loss("a number without a gradient")
            if self._exchange is not None:
                gradients = share_gradients(self._exchange, loss, gradients, mover.weights, self._beside)
            norm = measure_norm(gradients)  # As a tensor: of a number, the graph that moves would be traced anew for each.
            if not math.isfinite(float(norm)):
                raise fail_not_finite(step=number, what="gradient", layer=None, learning_rate=mover.rate_at(number))
            mover.move(gradients, norm)
        return value

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(value)


def _read_scalar(loss: Any) -> float:
    if not tf.is_tensor(loss):
        raise fail_loss(name_kind(loss))
    if loss.shape.num_elements() != 1:
        raise fail_loss(f"a tensor of shape {tuple(loss.shape)}")
    return float(tf.reshape(loss, ()))


def _take_over(optimizer: Any, weights: list[Any]) -> Any:
    """Check one of TensorFlow's own optimizers, and let it make its slots."""
    if optimizer.use_ema:
        expected = "one without use_ema, which takes effect only at the end of Keras' own loop"
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
    if not optimizer.built:
        optimizer.build(weights)
    own = {id(variable) for variable in optimizer._trainable_variables}  # there is no other way to ask
    if not own.issuperset(map(id, weights)):
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected="one made for this model's weights")
    return optimizer
