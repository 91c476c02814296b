"""What moves the weights of a Keras model: one of Argosy's optimizers or Keras' own, or several, each for its part."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.keras.optimizer import RuleOptimizer
from argosy.frameworks.own_step import open_shares
from argosy.frameworks.schedules import hold_schedule
from argosy.optim import GradientOptimizer

__all__ = ["Mover", "open_movers"]

keras: Any = importlib.import_module("keras")


class Mover:
    """One optimizer and its weights."""

    def __init__(self, optimizer: Any, named: Mapping[str, Any], key: str | None) -> None:
        self.names = [*named]
        self.variables = list(named.values())
        self.weights = [variable.value for variable in self.variables]
        """As the backend has them; on JAX what they were when the run began."""
        self.optimizer: Any = optimizer
        if isinstance(optimizer, GradientOptimizer):
            self.optimizer = RuleOptimizer(optimizer, names=self.names)
        elif isinstance(optimizer, RuleOptimizer) and not optimizer.built:
            optimizer.names = self.names
        self.rule: GradientOptimizer | None = getattr(self.optimizer, "rule", None)
        _prepare_optimizer(self.optimizer, self.variables)
        self.lowered = None if self.rule else hold_schedule(self.optimizer)
        """By what a rescue multiplies the rate that a schedule of Keras' says."""
        self._prefix = "optimizer" if key is None else f"optimizer/{key}"

    def move(self, gradients: Sequence[Any], norm: Any) -> None:
        """Take the next of its own steps by gradients, whose norm this is."""
        given = [(gradient, v) for gradient, v in zip(gradients, self.variables, strict=True) if gradient is not None]
        if self.rule is None:
            self.optimizer.apply_gradients(given)
            return
        with self.optimizer.at(self.optimizer.steered.scalars_at(int(self.optimizer.iterations) + 1), norm):
            self.optimizer.apply_gradients(given)

    def scale_loss(self, loss: Any) -> Any:
        """Give what is differentiated instead of a loss."""
        return self.optimizer.scale_loss(loss)

    def rate_at(self, number: int) -> object:
        """Give the learning rate, for a message."""
        return self.optimizer.steered.rate_at(number) if self.rule else float(self.optimizer.learning_rate)

    def name_state(self) -> dict[str, Any]:
        """Give the variables in which it remembers, by name."""
        # Their own names hold counters of the process.
        return {f"{self._prefix}/{index}": variable for index, variable in enumerate(self.list_slots())}

    def list_slots(self) -> list[Any]:
        """Give these variables."""
        return [*self.optimizer.variables, *([] if self.lowered is None else [self.lowered])]


def open_movers(optimizer: Any, named: Mapping[str, Any], *, has_step: bool) -> dict[str | None, Mover]:
    """Give the movers of a model's weights by name; None names the only one.

    Raises:
        InputError: `bad_option`, see `own_step.open_shares`; or an optimizer that Keras' own loop would have to do something for.
    """
    shares = open_shares(optimizer, [*named], has_step=has_step)
    return {key: Mover(one, {name: named[name] for name in names}, key) for key, (one, names) in shares.items()}


def _prepare_optimizer(optimizer: Any, variables: Sequence[Any]) -> None:
    """Let an optimizer make its slots, and refuse what Keras' own loop would have to do for it."""
    expected = None
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        expected = "one without loss scaling; mixed_bfloat16 needs none"
    elif optimizer.use_ema:
        expected = "one without use_ema, which takes effect only at the end of Keras' own loop"
    elif not optimizer.built:
        optimizer.build(variables)
    elif not {id(weight) for weight in optimizer._trainable_variables}.issuperset(map(id, variables)):
        expected = "one made for this model's weights"
    if expected:
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
