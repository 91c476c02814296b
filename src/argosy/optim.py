"""Optimizers: what a training step does to the weights, defined once, in plain NumPy.

An optimizer is a small frozen description. Its `init_state` and `update` are the rule itself, the reference
that every framework's own implementation (`frameworks/*.py`) is tested against. The card is `train/optim.md`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from argosy.errors import InputError, list_choices
from argosy.signature import Arrays

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer", "OptimizerState", "bias_correction", "get_optimizer"]


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers between steps."""

    step: int = 0
    """Steps taken so far."""
    slots: dict[str, Arrays] = field(default_factory=dict[str, Arrays])
    """By the rule's own names, such as `m` and `v`; each holds one array per weight, of the weight's shape."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """A rule that turns gradients into new weights, with its parameters."""

    name: ClassVar[str]

    learning_rate: float
    weight_decay: float = 0.0
    """Factor of the L2 penalty: weight_decay * w is added to the gradient, after clipping."""
    clip_norm: float | None = None
    """All gradients together are scaled down to this Euclidean norm when theirs is larger."""
    decay_steps: int | None = None
    """Steps over which the learning rate falls linearly to zero, where it stays; None: it never falls."""

    def __post_init__(self) -> None:
        self._check("learning_rate", self.learning_rate, "a finite number above 0", lowest=0.0, is_open=True)
        self._check("weight_decay", self.weight_decay, "a finite number, at least 0", lowest=0.0)
        if self.clip_norm is not None:
            self._check("clip_norm", self.clip_norm, "a finite number above 0, or None", lowest=0.0, is_open=True)
        if self.decay_steps is not None:
            self._check("decay_steps", self.decay_steps, "a number of steps, at least 1, or None", lowest=1)

    def _check(
        self, option: str, value: Any, expected: str, *, lowest: float, below: float = math.inf, is_open: bool = False
    ) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value < below or (is_open and value == lowest):
            raise InputError("bad_option", option=f"{self.name}.{option}", got=value, expected=expected)

    def describe(self) -> dict[str, Any]:
        """Give the name and every parameter, as JSON data for a lineage."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @abstractmethod
    def init_state(self, weights: Arrays) -> OptimizerState:
        """Give the state before the first step of training these weights."""

    @abstractmethod
    def update(self, weights: Arrays, gradients: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        """Take one step. Nothing is changed in place.

        Args:
            weights: by name, any shapes; the arithmetic is done in their datatype.
            gradients: of the loss, one per weight, same names and shapes.
            state: from `init_state` or the step before.

        Returns:
            The new weights and the new state.
        """

    def rate_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 1.

        It is applied to the finished direction, never kept in a running mean: frameworks that do keep it there
        train otherwise as soon as it changes.
        """
        if self.decay_steps is None:
            return self.learning_rate
        return self.learning_rate * max(0.0, 1.0 - (step - 1) / self.decay_steps)

    def _prepare(self, weights: Arrays, gradients: Arrays) -> Arrays:
        """Clip the gradients by their common norm, then add the L2 penalty's."""
        scale = 1.0
        if self.clip_norm is not None:
            norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))
            scale = self.clip_norm / norm if norm > self.clip_norm else 1.0
        return {name: gradients[name] * scale + self.weight_decay * w for name, w in weights.items()}


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent on mini-batches: w - learning_rate * gradient.

    The default rate suits inputs scaled to about 1; it is the first thing to tune.

    Source: Robbins and Monro 1951, doi:10.1214/aoms/1177729586.
    """

    name: ClassVar[str] = "sgd"

    learning_rate: float = 0.01

    def init_state(self, weights: Arrays) -> OptimizerState:
        """SGD remembers the number of steps alone."""
        return OptimizerState()

    def update(self, weights: Arrays, gradients: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        step = state.step + 1
        rate, prepared = self.rate_at(step), self._prepare(weights, gradients)
        return {name: w - rate * prepared[name] for name, w in weights.items()}, OptimizerState(step)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Steps scaled for each weight by running means of the gradient and of its square.

    The defaults are the paper's. `weight_decay` is the L2 penalty of the paper's time, inside the gradient
    (as in `torch.optim.Adam`), not the decoupled decay of AdamW.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1: with bias correction, epsilon outside the root.
    """

    name: ClassVar[str] = "adam"

    learning_rate: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    """How much of the running mean of the gradient, and of its square, a step keeps; each in [0, 1)."""
    epsilon: float = 1e-8
    """Added to the root, so that a weight without gradient does not divide by zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        betas: tuple[object, ...] = tuple(self.betas)
        if len(betas) != 2:
            raise InputError("bad_option", option="adam.betas", got=betas, expected="two numbers in [0, 1)")
        for beta in betas:
            self._check("betas", beta, "two numbers in [0, 1)", lowest=0.0, below=1.0)
        self._check("epsilon", self.epsilon, "a finite number above 0", lowest=0.0, is_open=True)

    def init_state(self, weights: Arrays) -> OptimizerState:
        """Both running means start at zero, which the bias correction makes up for."""
        return OptimizerState(0, {slot: {name: np.zeros_like(w) for name, w in weights.items()} for slot in ("m", "v")})

    def update(self, weights: Arrays, gradients: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        beta1, beta2 = self.betas
        step = state.step + 1
        rate, prepared = self.rate_at(step), self._prepare(weights, gradients)
        m = {name: beta1 * state.slots["m"][name] + (1 - beta1) * g for name, g in prepared.items()}
        v = {name: beta2 * state.slots["v"][name] + (1 - beta2) * g * g for name, g in prepared.items()}
        correction1, correction2 = bias_correction(beta1, step), bias_correction(beta2, step)
        moved = {
            name: w - rate * (m[name] / correction1) / (np.sqrt(v[name] / correction2) + self.epsilon)
            for name, w in weights.items()
        }
        return moved, OptimizerState(step, {"m": m, "v": v})


def bias_correction(beta: float, step: int) -> float:
    """Give 1 - beta**step, by which a running mean that started at zero is too small after `step` steps.

    Written with expm1: the plain form cancels in the first steps for a beta near 1, in float32 so much that
    Adam ends 7e-6 off after 100 steps instead of 7e-7.
    """
    return 1.0 if beta == 0.0 else -math.expm1(step * math.log(beta))


OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {rule.name: rule for rule in (SGD, Adam)}


def get_optimizer(optimizer: str | Optimizer, **options: Any) -> Optimizer:
    """Give an optimizer by name or as it is, with some parameters set.

    Args:
        optimizer: a name of `OPTIMIZERS`, or an optimizer.
        options: parameters of the rule, such as `learning_rate`; those not named keep their values.

    Raises:
        InputError: `unknown_choice`, no such name; `bad_option`, no such parameter or not a value for it.

    >>> get_optimizer("sgd", learning_rate=0.1)
    SGD(learning_rate=0.1, weight_decay=0.0, clip_norm=None, decay_steps=None)
    """
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise InputError("unknown_choice", kind="optimizer", got=optimizer, known=list_choices(OPTIMIZERS))
        kind: type[Optimizer] = OPTIMIZERS[optimizer]
        values: dict[str, Any] = {}
    else:
        kind = type(optimizer)
        values = {key.name: getattr(optimizer, key.name) for key in dataclasses.fields(optimizer)}
    known = [key.name for key in dataclasses.fields(kind)]
    for option, value in options.items():
        if option not in known:
            raise InputError(
                "bad_option", option=option, got=value, expected=f"a parameter of {kind.name}: {list_choices(known)}"
            )
    return kind(**(values | options))
