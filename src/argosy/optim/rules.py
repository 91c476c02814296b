"""The four rules that follow a gradient, each in two forms.

`form="common"` is what papers and PyTorch have. `form="text"` is that of the text which this system follows, with
its signs and learning rate mended; where that text's prose and formulas disagree, the formulas hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from argosy.errors import InputError
from argosy.optim.base import GradientOptimizer, Scalars, bias_correction
from argosy.optim.schedules import Schedule

__all__ = ["SGD", "Adam", "Momentum", "RMSprop"]


@dataclass(frozen=True, kw_only=True)
class SGD(GradientOptimizer):
    """Gradient descent on mini-batches, the same in both forms.

        w = w - rate * g

    The default rate suits inputs scaled to about 1; it is the first thing to tune.

    Source: Robbins and Monro 1951, doi:10.1214/aoms/1177729586.
    """

    name: ClassVar[str] = "sgd"

    learning_rate: float | Schedule = 0.01

    def direct(
        self, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        return gradient, {}


@dataclass(frozen=True, kw_only=True)
class Momentum(GradientOptimizer):
    """Gradient descent that keeps going where past gradients agree.

        common:  v = beta * v + g                 w = w - rate * v      (nesterov: w - rate * (g + beta * v))
        text:    v = beta * v + (1 - beta) * g    w = w - rate * v

    With beta 0.9 the common form's steps become ten times those of SGD at the same rate, the text form's as large.

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Nesterov's as in Sutskever et al. 2013.
    """

    name: ClassVar[str] = "momentum"
    slots: ClassVar[tuple[str, ...]] = ("v",)

    learning_rate: float | Schedule = 0.01
    beta: float = 0.9
    """How much of the last direction a step keeps, in [0, 1)."""
    nesterov: bool = False
    """Look one step ahead; of the common form alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta", self.beta, "a number in [0, 1)", lowest=0.0, below=1.0)
        if self.nesterov and self.form == "text":
            raise InputError("bad_option", option="momentum.nesterov", got=True, expected="False with form text, which has none")

    def direct(
        self, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        v = self.beta * slots["v"] + (gradient if self.form == "common" else (1 - self.beta) * gradient)
        return gradient + self.beta * v if self.nesterov else v, {"v": v}


@dataclass(frozen=True, kw_only=True)
class RMSprop(GradientOptimizer):
    """Steps scaled for each weight by a running mean of its squared gradient.

        E = rho * E + (1 - rho) * g^2
        common:  w = w - rate * g / (sqrt(E) + epsilon)
        text:    w = w - rate * g / sqrt(E + epsilon)

    Source: Tieleman and Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning".
    """

    name: ClassVar[str] = "rmsprop"
    slots: ClassVar[tuple[str, ...]] = ("E",)

    learning_rate: float | Schedule = 0.001
    rho: float = 0.9
    """How much of the running mean a step keeps, in [0, 1)."""
    epsilon: float = 1e-8
    """So that a weight without gradient does not divide by zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rho", self.rho, "a number in [0, 1)", lowest=0.0, below=1.0)
        self._check("epsilon", self.epsilon, "a finite number above 0", lowest=0.0, is_open=True)

    def direct(
        self, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        mean = self.rho * slots["E"] + (1 - self.rho) * (gradient * gradient)
        root = sqrt(mean) + self.epsilon if self.form == "common" else sqrt(mean + self.epsilon)
        return gradient / root, {"E": mean}


@dataclass(frozen=True, kw_only=True)
class Adam(GradientOptimizer):
    """Steps scaled for each weight by running means of the gradient and of its square.

        m = beta1 * m + (1 - beta1) * g           v = beta2 * v + (1 - beta2) * g^2
        common:  w = w - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
        text:    w = w - rate * m / (sqrt(v) + epsilon)

    The defaults are the paper's. `weight_decay` is the L2 penalty of the paper's time, inside the gradient (as in
    `torch.optim.Adam`), unless `decoupled_decay` makes it that of AdamW.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    learning_rate: float | Schedule = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    """How much of the running mean of the gradient, and of its square, a step keeps; each in [0, 1)."""
    epsilon: float = 1e-8
    """Added to the root, so that a weight without gradient does not divide by zero."""
    decoupled_decay: bool = False
    """Multiply weights by 1 - rate * weight_decay instead (AdamW)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        betas: tuple[object, ...] = tuple(self.betas)
        if len(betas) != 2:
            raise InputError("bad_option", option="adam.betas", got=betas, expected="two numbers in [0, 1)")
        for beta in betas:
            self._check("betas", beta, "two numbers in [0, 1)", lowest=0.0, below=1.0)
        self._check("epsilon", self.epsilon, "a finite number above 0", lowest=0.0, is_open=True)

    @property
    def is_decoupled(self) -> bool:
        return self.decoupled_decay

    def scalars_at(self, step: int) -> Scalars:
        """Give the rate, and by how much both running means are too small; by nothing in the text form."""
        if self.form == "text":
            return Scalars(self.rate_at(step))
        return Scalars(self.rate_at(step), bias_correction(self.betas[0], step), bias_correction(self.betas[1], step))

    def direct(
        self, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        beta1, beta2 = self.betas
        m = beta1 * slots["m"] + (1 - beta1) * gradient
        v = beta2 * slots["v"] + (1 - beta2) * (gradient * gradient)
        return (m / scalars.correction1) / (sqrt(v / scalars.correction2) + self.epsilon), {"m": m, "v": v}
