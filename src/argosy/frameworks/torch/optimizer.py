"""Argosy's optimizers on torch weights, in place."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from argosy.errors import InputError, list_choices
from argosy.optim import SGD, Adam, GradientOptimizer, Momentum, RMSprop
from argosy.optim.base import Scalars

__all__ = ["RuleOptimizer"]

torch: Any = importlib.import_module("torch")

Slots = dict[str, Any]


def _move_sgd(rule: SGD, scalars: Scalars, weight: Any, gradient: Any, slots: Slots) -> None:
    weight.add_(gradient, alpha=-scalars.rate)


def _move_momentum(rule: Momentum, scalars: Scalars, weight: Any, gradient: Any, slots: Slots) -> None:
    v = slots["v"].mul_(rule.beta).add_(gradient, alpha=1.0 if rule.form == "common" else 1 - rule.beta)
    weight.add_(gradient.add(v, alpha=rule.beta) if rule.nesterov else v, alpha=-scalars.rate)


def _move_rmsprop(rule: RMSprop, scalars: Scalars, weight: Any, gradient: Any, slots: Slots) -> None:
    mean = slots["E"].mul_(rule.rho).addcmul_(gradient, gradient, value=1 - rule.rho)
    root = mean.sqrt().add_(rule.epsilon) if rule.form == "common" else mean.add(rule.epsilon).sqrt_()
    weight.addcdiv_(gradient, root, value=-scalars.rate)


def _move_adam(rule: Adam, scalars: Scalars, weight: Any, gradient: Any, slots: Slots) -> None:
    beta1, beta2 = rule.betas
    m = slots["m"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    v = slots["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (v / scalars.correction2).sqrt_().add_(rule.epsilon)
    weight.addcdiv_(m, root, value=-scalars.rate / scalars.correction1)


_MOVES: Final[dict[type, Callable[[Any, Scalars, Any, Any, Slots], None]]] = {
    SGD: _move_sgd,
    Momentum: _move_momentum,
    RMSprop: _move_rmsprop,
    Adam: _move_adam,
}


class RuleOptimizer(torch.optim.Optimizer):
    """One of Argosy's optimizers on torch weights, the same rule as its NumPy reference, in place.

    The built-in ones are not used: frameworks differ in where they put epsilon, momentum and the penalty, and
    a model must train alike in all of them.
    """

    def __init__(self, weights: Any, rule: GradientOptimizer, names: Sequence[str] = ()) -> None:
        """Take `weights` as any torch optimizer does.

        Args:
            weights: tensors, or groups of them.
            rule: to follow.
            names: of the weights in their order, for a rule that has groups.

        Raises:
            InputError: `unknown_choice`, the rule has no implementation here.
        """
        if type(rule) not in _MOVES:
            known = list_choices(kind.__name__ for kind in _MOVES)
            raise InputError("unknown_choice", kind="optimizer of torch", got=rule.name, known=known)
        super().__init__(weights, {})  # pyright: ignore[reportUnknownMemberType]
        self.rule = rule
        for weight in self._weights():
            # A step for each weight: one that gets no gradient for a while must be corrected by its own steps.
            slots = {slot: torch.zeros_like(weight, memory_format=torch.preserve_format) for slot in rule.slots}
            self.state[weight] = {"step": 0, **slots}
        if rule.groups and not names:
            expected = "names of the weights, with a rule that has groups"
            raise InputError("bad_option", option="names", got=None, expected=expected)
        given = zip(self._weights(), names, strict=True) if rule.groups else ()
        self._rules = {weight: rule.for_weight(name) for weight, name in given}

    def measure_norm(self) -> float:
        """Give the Euclidean norm of all gradients together; not finite only if one of them is not."""
        gradients = [weight.grad for weight in self._weights() if weight.grad is not None]
        with torch.no_grad():
            norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
            if math.isfinite(norm):
                return norm
            # The squares of large float32 gradients overflow, those of float64 do not.
            return math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))

    def step(self, closure: None = None, *, norm: float | None = None) -> None:
        """Move every weight that has a gradient.

        Args:
            closure: torch's rules that evaluate the loss themselves; none of ours do.
            norm: of all gradients together, where it is known already.
        """
        self.move(norm)

    def move(self, norm: float | None = None) -> None:
        """Do what `step` does, without the hooks that torch wraps it in, which take longer than the step of a small model."""
        rule, scale = self.rule, 1.0
        if rule.clip_norm is not None:
            scale = rule.clip_scale(self.measure_norm() if norm is None else norm)
        move = _MOVES[type(rule)]
        with torch.no_grad():
            for weight in self._weights():
                if weight.grad is None:
                    continue
                gradient = weight.grad.mul_(scale) if scale != 1.0 else weight.grad
                if rule.clip_value is not None:
                    gradient.clamp_(-rule.clip_value, rule.clip_value)
                if self._rules:
                    rule = self._rules[weight]
                slots = self.state[weight]
                slots["step"] += 1
                scalars = rule.scalars_at(slots["step"])
                if rule.is_decoupled:
                    weight.mul_(1.0 - scalars.rate * rule.weight_decay)
                elif rule.weight_decay:
                    gradient = gradient.add(weight, alpha=rule.weight_decay)
                move(rule, scalars, weight, gradient, slots)

    def _weights(self) -> Iterator[Any]:
        return (weight for group in self.param_groups for weight in group["params"])
