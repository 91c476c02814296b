"""What every optimizer is: a small frozen description whose methods are the rule itself, in NumPy."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np

from argosy.errors import InputError
from argosy.optim.groups import Group, match_names
from argosy.optim.schedules import Schedule, Steered, Steering, check_number
from argosy.signature import Arrays

__all__ = ["FORMS", "Form", "GradientOptimizer", "Optimizer", "OptimizerState", "Scalars", "bias_correction"]

Form = Literal["common", "text"]
FORMS: Final = ("common", "text")

_LATER: Final = ("clip_value", "groups")
"""Parameters that a description leaves out where they are not set."""


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers between steps."""

    step: int = 0
    """Steps taken so far."""
    slots: dict[str, Arrays] = field(default_factory=dict[str, Arrays])
    """By the rule's own names, such as `m` and `v`; each holds one array per weight, of the weight's shape."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """A way to new weights, with its parameters."""

    name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays that it keeps for each weight."""

    def describe(self) -> dict[str, Any]:
        """Give the name and every parameter, as JSON data for a lineage."""
        values: dict[str, Any] = {}
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            if key.name in _LATER and not value:
                continue
            if isinstance(value, Schedule):
                value = {"name": value.name, **dataclasses.asdict(value)}
            elif key.name == "groups":
                value = [dataclasses.asdict(group) for group in value]
            values[key.name] = value
        return {"name": self.name, **values}

    def init_state(self, weights: Arrays) -> OptimizerState:
        """Give the state before the first step of training these weights: every slot is zero."""
        return OptimizerState(0, {slot: {name: np.zeros_like(w) for name, w in weights.items()} for slot in self.slots})

    def _check(
        self, option: str, value: Any, expected: str, *, lowest: float, below: float = math.inf, is_open: bool = False
    ) -> None:
        check_number(f"{self.name}.{option}", value, expected, lowest=lowest, below=below, is_open=is_open)


class Scalars(NamedTuple):
    """What changes from step to step and is the same for every weight; computed in double precision, outside of any graph."""

    rate: float
    correction1: float = 1.0
    """Of the running mean of the gradient, see `bias_correction`."""
    correction2: float = 1.0
    """Of the running mean of its square."""


@dataclass(frozen=True, kw_only=True)
class GradientOptimizer(Optimizer):
    """A rule that turns gradients into new weights.

    The order of a step: the mean gradient over the rows of the batch, clipping, weight decay, moments, update.
    """

    learning_rate: float | Schedule
    weight_decay: float = 0.0
    """Factor of the L2 penalty: weight_decay * w is added to the gradient, after clipping."""
    clip_norm: float | None = None
    """All gradients together are scaled down to this Euclidean norm when theirs is larger."""
    clip_value: float | None = None
    """Each number of a gradient is cut to this magnitude; not together with `clip_norm`."""
    groups: tuple[Group, ...] = ()
    """Weights that are moved with another rate or decay."""
    form: Form = "common"
    """`common`: what papers and PyTorch have. `text`: that of the text which Argosy follows; see `rules.py`."""

    def __post_init__(self) -> None:
        if not isinstance(self.learning_rate, Schedule):
            expected = "a finite number above 0, or a schedule"
            self._check("learning_rate", self.learning_rate, expected, lowest=0.0, is_open=True)
        self._check("weight_decay", self.weight_decay, "a finite number, at least 0", lowest=0.0)
        if self.clip_norm is not None:
            self._check("clip_norm", self.clip_norm, "a finite number above 0, or None", lowest=0.0, is_open=True)
        if self.clip_value is not None:
            self._check("clip_value", self.clip_value, "a finite number above 0, or None", lowest=0.0, is_open=True)
            if self.clip_norm is not None:
                expected = "None with clip_norm: gradients are clipped one way"
                raise InputError("bad_option", option=f"{self.name}.clip_value", got=self.clip_value, expected=expected)
        if not isinstance(self.groups, tuple) or not all(isinstance(group, Group) for group in self.groups):  # pyright: ignore[reportUnnecessaryIsInstance]
            expected = "a tuple of argosy.optim.Group"
            raise InputError("bad_option", option=f"{self.name}.groups", got=self.groups, expected=expected)
        if self.form not in FORMS:
            raise InputError("bad_option", option=f"{self.name}.form", got=self.form, expected=" or ".join(FORMS))

    @abstractmethod
    def direct(
        self, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Give the direction against which a weight moves, and its new slots.

        Only operators and `sqrt` are used, so that arrays of any framework may be given, in a graph or not.

        Args:
            gradient: of one weight, clipped and with the penalty's.
            slots: what the rule remembers of this weight; arrays of its shape, or broadcast to it.
            scalars: of this step.
            sqrt: of the arrays' framework.
        """

    @property
    def is_decoupled(self) -> bool:
        """Whether weights decay beside the update rather than inside the gradient."""
        return False

    def scalars_at(self, step: int) -> Scalars:
        """Give the scalars of a step, counted from 1."""
        return Scalars(self.rate_at(step))

    def rate_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 1.

        It is applied to the finished direction, never kept in a running mean: frameworks that do keep it there
        train otherwise as soon as it changes.
        """
        return self.learning_rate.rate_at(step) if isinstance(self.learning_rate, Schedule) else float(self.learning_rate)

    def move(
        self, weight: Any, gradient: Any, slots: Mapping[str, Any], scalars: Scalars, sqrt: Callable[[Any], Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Take one step for one weight, whose gradient is clipped already; see `direct`.

        Returns:
            The new weight and its new slots; nothing is changed in place.
        """
        if self.is_decoupled:
            direction, moved = self.direct(gradient, slots, scalars, sqrt)
            return weight * (1.0 - scalars.rate * self.weight_decay) - scalars.rate * direction, moved
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        direction, moved = self.direct(gradient, slots, scalars, sqrt)
        return weight - scalars.rate * direction, moved

    def for_weight(self, name: str) -> GradientOptimizer:
        """Give the rule by which a weight of this name is moved."""
        for group in self.groups:
            if match_names(group.pattern, [name]):
                decay = self.weight_decay if group.weight_decay is None else group.weight_decay
                rate = Steered(self.learning_rate, Steering(group.rate_factor))
                return dataclasses.replace(self, learning_rate=rate, weight_decay=decay, groups=())
        return self

    def steer(self, steering: Steering) -> GradientOptimizer:
        """Give the same rule, whose learning rate is multiplied by a factor that may change while it is used."""
        return dataclasses.replace(self, learning_rate=Steered(self.learning_rate, steering))

    def clip_scale(self, norm: float) -> float:
        """Give the factor that clips gradients whose common Euclidean norm this is."""
        return self.clip_norm / norm if self.clip_norm is not None and norm > self.clip_norm else 1.0

    def update(self, weights: Arrays, gradients: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        """Take one step: the reference that every framework's own implementation is held against.

        Args:
            weights: by name, any shapes; the arithmetic is done in their datatype.
            gradients: of the loss, one per weight, same names and shapes.
            state: from `init_state` or the step before.

        Returns:
            The new weights and the new state; nothing is changed in place.
        """
        step = state.step + 1
        scale = 1.0
        if self.clip_norm is not None:
            scale = self.clip_scale(math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values())))
        moved: Arrays = {}
        slots: dict[str, Arrays] = {slot: {} for slot in self.slots}
        for name, weight in weights.items():
            before = {slot: state.slots[slot][name] for slot in self.slots}
            rule = self.for_weight(name)
            gradient = gradients[name] * scale
            if self.clip_value is not None:
                gradient = np.clip(gradient, -self.clip_value, self.clip_value)
            moved[name], after = rule.move(weight, gradient, before, rule.scalars_at(step), np.sqrt)
            for slot in self.slots:
                slots[slot][name] = after[slot]
        return moved, OptimizerState(step, slots)


def bias_correction(beta: float, step: int) -> float:
    """Give 1 - beta**step, by which a running mean that started at zero is too small after `step` steps.

    Written with expm1: the plain form cancels in the first steps for a beta near 1, in float32 so much that
    Adam ends 7e-6 off after 100 steps instead of 7e-7.
    """
    return 1.0 if beta == 0.0 else -math.expm1(step * math.log(beta))
