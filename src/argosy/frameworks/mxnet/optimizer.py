"""Argosy's optimizers on MXNet weights, in place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.mxnet.library import mx, view_tensor
from argosy.optim import SGD, Adam, GradientOptimizer, Momentum, RMSprop
from argosy.optim.base import Scalars

__all__ = ["RuleOptimizer", "measure_norm"]

Slots = dict[str, Any]

_MANY: Final = 1 << 20
"""More weights than a model has: all of them come in one call."""


@dataclasses.dataclass(frozen=True)
class _Change:
    """One step of one weight, as MXNet's kernels take it."""

    scalars: Scalars
    before: float
    """The learning rate of the step before; 0 if there was none."""
    scale: float
    """By which the gradient is multiplied."""
    scratch: Any
    """A tensor of the weight's shape, of finite numbers."""


def _blend(weight: Any, keep: float, gradient: Any, add: float) -> None:
    """Compute weight = keep * weight + add * gradient, in one pass."""
    mx.nd.sgd_update(weight, gradient, out=weight, lr=-1.0, wd=keep - 1.0, rescale_grad=add)


def _move_sgd(rule: SGD, change: _Change, weight: Any, gradient: Any, slots: Slots) -> None:
    rate = change.scalars.rate
    mx.nd.sgd_update(weight, gradient, out=weight, lr=rate, wd=rule.weight_decay, rescale_grad=change.scale)


def _move_momentum(rule: Momentum, change: _Change, weight: Any, gradient: Any, slots: Slots) -> None:
    """The slot holds -v times the learning rate of its step, as MXNet's kernel has it; a rate of zero counts as one there."""
    rate, decay, v = change.scalars.rate, rule.weight_decay, slots["v"]
    unit = rate or 1.0
    beta = rule.beta * unit / (change.before or 1.0)
    share = unit if rule.form == "common" else unit * (1 - rule.beta)
    if rate and not rule.nesterov:
        mx.nd.sgd_mom_update(weight, gradient, v, out=weight, lr=share, momentum=beta, wd=decay, rescale_grad=change.scale)
        return
    _blend(v, beta, gradient, -share * change.scale)
    if decay:
        _blend(v, 1.0, weight, -share * decay)
    if rate:
        mx.nd.sgd_update(weight, gradient, out=weight, lr=rate, wd=decay, rescale_grad=change.scale)
        _blend(weight, 1.0, v, rule.beta)


def _move_rmsprop(rule: RMSprop, change: _Change, weight: Any, gradient: Any, slots: Slots) -> None:
    """MXNet's kernel has epsilon inside the root; Adam's, without a mean of gradients, has it outside."""
    excess = _excess(rule.rho)
    root = math.sqrt(excess)
    if rule.form == "text":
        mx.nd.rmsprop_update(
            weight,
            gradient,
            slots["E"],
            out=weight,
            lr=change.scalars.rate * root,
            gamma1=rule.rho,
            epsilon=rule.epsilon * excess,
            wd=rule.weight_decay,
            rescale_grad=change.scale,
        )
        return
    mx.nd.adam_update(
        weight,
        gradient,
        change.scratch,
        slots["E"],
        out=weight,
        lr=change.scalars.rate * root,
        beta1=0.0,
        beta2=rule.rho,
        epsilon=rule.epsilon * root,
        wd=rule.weight_decay,
        rescale_grad=change.scale,
    )


def _move_adam(rule: Adam, change: _Change, weight: Any, gradient: Any, slots: Slots) -> None:
    """MXNet's kernel corrects no bias: its rate and its epsilon do."""
    rate, correction1, correction2 = change.scalars
    root = math.sqrt(_excess(rule.betas[1]) * correction2)
    decay = rule.weight_decay
    if rule.is_decoupled:
        weight *= 1.0 - rate * decay
        decay = 0.0
    mx.nd.adam_update(
        weight,
        gradient,
        slots["m"],
        slots["v"],
        out=weight,
        lr=rate * root / (_excess(rule.betas[0]) * correction1),
        beta1=rule.betas[0],
        beta2=rule.betas[1],
        epsilon=rule.epsilon * root,
        wd=decay,
        rescale_grad=change.scale,
    )


def _excess(beta: float) -> float:
    """Give by which factor a kernel's running mean is too large: it computes 1 - beta in float32, 1e-5 off for 0.999."""
    return float(np.float32(1) - np.float32(beta)) / (1 - beta)


_KERNELS: Final[dict[type, Callable[[Any, _Change, Any, Any, Slots], None]]] = {
    SGD: _move_sgd,
    Momentum: _move_momentum,
    RMSprop: _move_rmsprop,
    Adam: _move_adam,
}


class RuleOptimizer(mx.optimizer.Optimizer):
    """One of Argosy's optimizers on MXNet weights, the same rule as its NumPy reference, in place.

    The built-in ones are not used: MXNet's keep the learning rate inside the momentum, put epsilon elsewhere, and
    round their parameters to float32 whatever the weights are. float32 weights are moved by MXNet's kernels, given
    parameters with which they follow the rule; others by the rule itself. `lr_mult` and `wd_mult` of a Gluon
    parameter hold. In a `gluon.Trainer`, `clip_norm` is over all weights of one type.
    """

    def __init__(self, rule: GradientOptimizer, names: Sequence[str] = ()) -> None:
        """Follow a rule.

        Args:
            rule: to follow.
            names: of the weights in the order of their numbers, for a rule that has groups.

        Raises:
            InputError: `bad_option`, a rule that has groups, and no names.
        """
        super().__init__(learning_rate=rule.rate_at(1))  # pyright: ignore[reportUnknownMemberType]
        if rule.groups and not names:
            expected = "names of the weights, with a rule that has groups"
            raise InputError("bad_option", option="names", got=None, expected=expected)
        self.rule = rule
        self.rates: dict[int, float] = {}
        """Of the last step of each weight, in which its momentum is measured: a rate may be changed between steps."""
        self._rules = {index: rule.for_weight(name) for index, name in enumerate(names)} if rule.groups else {}
        self.aggregate_num = _MANY
        self._scratch: dict[tuple[int, ...], Any] = {}

    def create_state(self, index: int, weight: Any) -> Slots:
        """Give the slots of a weight, all zero."""
        return {name: mx.nd.zeros(weight.shape, weight.context, weight.dtype) for name in self.rule.slots}

    def update(self, index: Any, weight: Any, grad: Any, state: Any) -> None:
        """Move weights: one, or lists of them; gradients are multiplied by `rescale_grad` first."""
        if isinstance(index, int):
            index, weight, grad, state = [index], [weight], [grad], [state]
        scale = self.rescale_grad
        if self.rule.clip_norm is not None:
            scale *= self.rule.clip_scale(measure_norm(grad) * abs(scale))
        self._update_count(index)
        for one in zip(index, weight, grad, state, strict=True):
            self._move(*one, scale=scale)

    def _move(self, index: int, weight: Any, gradient: Any, slots: Slots, *, scale: float) -> None:
        rule, multiplier = self._rules.get(index, self.rule), 1.0
        if parameter := self.param_dict.get(index):
            multiplier = parameter.lr_mult
            if rule.weight_decay and parameter.wd_mult != 1.0:
                rule = dataclasses.replace(rule, weight_decay=rule.weight_decay * parameter.wd_mult)
        step = self._index_update_count[index]
        scalars = rule.scalars_at(step)
        scalars = scalars._replace(rate=scalars.rate * multiplier)
        dense = _fill(gradient)
        if rule.clip_value is not None:
            limit = rule.clip_value / abs(scale)  # The gradient is scaled later.
            dense = mx.nd.clip(dense, -limit, limit)
        if self._has_kernel(weight):
            before = self.rates.get(index, 0.0)
            self.rates[index] = scalars.rate
            scratch = self._get_scratch(weight) if type(rule) is RMSprop and rule.form == "common" else None
            _KERNELS[type(rule)](rule, _Change(scalars, before, scale, scratch), weight, dense, slots)
            return
        moved, after = rule.move(weight, dense * scale, slots, scalars, mx.nd.sqrt)
        weight[:] = moved
        slots.update(after)

    def _get_scratch(self, weight: Any) -> Any:
        if weight.shape not in self._scratch:
            self._scratch[weight.shape] = mx.nd.zeros(weight.shape, weight.context, weight.dtype)
        return self._scratch[weight.shape]

    def _has_kernel(self, weight: Any) -> bool:
        return np.dtype(weight.dtype) == np.float32 and type(self.rule) in _KERNELS


def measure_norm(gradients: Sequence[Any]) -> float:
    """Give the Euclidean norm of all gradients together; not finite only if one of them is not."""
    # In NumPy, on the same memory: MXNet's own kernels for it take six times as long, more than a step can bear.
    dense = [_fill(gradient) for gradient in gradients]
    views = [view_tensor(gradient) for gradient in dense]
    total = sum(float(np.dot(view, view)) for view in views)
    if not math.isfinite(total):
        # The squares of large float32 gradients overflow, those of float64 do not.
        total = sum(float(np.square(view, dtype=np.float64).sum()) for view in views)
    return math.sqrt(total)


def _fill(gradient: Any) -> Any:
    """Give a gradient with all its rows: that of a sparse embedding has only those that were looked up."""
    return gradient if gradient.stype == "default" else gradient.tostype("default")
