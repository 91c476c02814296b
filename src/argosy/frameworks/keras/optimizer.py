"""Argosy's optimizers as one of Keras, for every backend: the NumPy rule itself on Keras' tensors."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.optim import CosineDecay, GradientOptimizer, LinearDecay, StepDecay, get_optimizer
from argosy.optim.base import Scalars
from argosy.optim.groups import Group
from argosy.optim.schedules import Schedule, Steered, Steering

__all__ = ["RuleOptimizer", "measure_norm"]

keras: Any = importlib.import_module("keras")

_SCHEDULES: Final = {kind.name: kind for kind in (CosineDecay, LinearDecay, StepDecay)}


@keras.saving.register_keras_serializable("argosy")
class RuleOptimizer(keras.optimizers.Optimizer):
    """One of Argosy's optimizers for `model.compile`, or for a loop of one's own; the same rule as its NumPy reference.

    The built-in ones are not used: frameworks differ in where they put epsilon, momentum and the penalty, and
    a model must train alike in all of them. Callbacks may set the learning rate, unless the rule has a schedule.

    >>> import keras                                                       # doctest: +SKIP
    >>> model.compile(RuleOptimizer(Adam(learning_rate=0.01)), "mse")      # doctest: +SKIP
    """

    def __init__(self, rule: GradientOptimizer, name: str | None = None, *, names: Sequence[str] = ()) -> None:
        """Take a rule.

        Args:
            rule: to follow.
            name: for Keras to call it by.
            names: of the weights in their order, for a rule that has groups.
        """
        super().__init__(learning_rate=self._read_rate, name=name or rule.name)  # pyright: ignore[reportUnknownMemberType]
        self.rule = rule
        self.steering = Steering()
        """What a callback makes of the rate."""
        self.steered = rule.steer(self.steering)
        """The rule as it is followed."""
        self.names = list(names)
        self._parts: list[tuple[GradientOptimizer, Group | None]] = []
        self.memory: dict[str, list[Any]] = {}
        """By the rule's slots, a variable for each weight."""
        self._scalars: Any = None
        self._norm: Any = None

    def build(self, variables: Sequence[Any]) -> None:
        """Make the rule's slots for some variables.

        Raises:
            InputError: `bad_option`, the rule has groups, and the variables no names.
        """
        if self.rule.groups and len(self.names) != len(variables):
            expected = "names of the weights, with a rule that has groups"
            raise InputError("bad_option", option="names", got=self.names, expected=expected)
        if not self.built:
            if self.rule.groups:
                self._parts = [(self.rule.for_weight(name), self.rule.find_group(name)) for name in self.names]
            super().build(variables)  # pyright: ignore[reportUnknownMemberType]
            self.memory = {slot: self.add_optimizer_variables(variables, slot) for slot in self.rule.slots}

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step; see `keras.optimizers.Optimizer.apply`."""
        is_alone = self._scalars is None
        if is_alone:
            self._scalars = _LOOK_UPS[keras.backend.backend()](self.steered, self.iterations)
        if self.rule.clip_norm is not None:
            norm = measure_norm(grads) if is_alone else self._norm
            scale = keras.ops.where(norm > self.rule.clip_norm, self.rule.clip_norm / norm, keras.ops.ones_like(norm))
            grads = [g if g is None else keras.ops.cast(scale, g.dtype) * keras.ops.convert_to_tensor(g) for g in grads]
        if (limit := self.rule.clip_value) is not None:
            grads = [g if g is None else keras.ops.clip(keras.ops.convert_to_tensor(g), -limit, limit) for g in grads]
        try:
            super().apply(grads, trainable_variables)  # pyright: ignore[reportUnknownMemberType]
        finally:
            if is_alone:
                self._scalars = None

    @contextmanager
    def at(self, scalars: Sequence[Any], norm: Any) -> Generator[None]:
        """Let `apply` take these scalars of a step, in the order of `Scalars`, and this norm of its gradients."""
        self._scalars, self._norm = scalars, norm
        try:
            yield
        finally:
            self._scalars = self._norm = None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable; the rate is among the scalars already."""
        ops = keras.ops
        index = self._get_variable_index(variable)
        memory = {slot: variables[index] for slot, variables in self.memory.items()}
        parts: Any = self._parts
        rule, group = parts[index] if parts else (self.rule, None)
        rate, *rest = (self._scalars[i] for i in range(len(Scalars._fields)))
        scalars = (rate if group is None else rate * group.rate_factor, *rest)
        own = Scalars(*(value if isinstance(value, float) else ops.cast(value, variable.dtype) for value in scalars))
        moved, after = rule.move(
            ops.convert_to_tensor(variable),
            ops.convert_to_tensor(gradient),
            {slot: ops.convert_to_tensor(value) for slot, value in memory.items()},
            own,
            ops.sqrt,
        )
        self.assign(variable, moved)
        for slot, value in memory.items():
            self.assign(value, after[slot])

    def get_config(self) -> dict[str, Any]:
        """Give what `from_config` makes it of again."""
        return {"name": self.name, "rule": self.rule.describe(), **({"names": self.names} if self.names else {})}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: object = None) -> RuleOptimizer:
        """Make it again.

        Raises:
            InputError: `unknown_choice`, `bad_option`, the configuration is of no such rule.
        """
        values: dict[str, Any] = dict(config["rule"])
        rate: Any = values["learning_rate"]
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        if "groups" in values:
            values["groups"] = tuple(Group(**group) for group in values["groups"])
        if isinstance(rate, dict):
            known = cast(dict[str, Any], rate).copy()
            kind = known.pop("name")
            if kind not in _SCHEDULES:
                raise InputError("unknown_choice", kind="schedule", got=kind, known=list_choices(_SCHEDULES))
            values["learning_rate"] = _SCHEDULES[kind](**known)
        rule = get_optimizer(values.pop("name"), **values)
        if not isinstance(rule, GradientOptimizer):
            raise InputError("bad_option", option="rule", got=rule.name, expected="one that follows a gradient")
        return cls(rule, config["name"], names=config.get("names", ()))

    @property
    def learning_rate(self) -> Any:
        """That of the next step; a callback may set it, if the rule has no schedule."""
        return self._read_rate()

    @property
    def is_rate_settable(self) -> bool:
        """Whether the rule has a number as learning rate, no schedule."""
        rate: Any = self.rule.learning_rate
        while isinstance(rate, Steered):
            rate = cast("Any", rate).rate
        return not isinstance(rate, Schedule)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if not self.is_rate_settable or callable(value) or float(value) <= 0.0:
            expected = "a number above 0, of an optimizer whose learning rate is one: a schedule cannot be set"
            raise InputError("bad_option", option="optimizer.learning_rate", got=value, expected=expected)
        self.steering.factor = float(value) / self.rule.rate_at(int(self.iterations) + 1)

    def _read_rate(self) -> Any:
        return self._scalars[0] if self._scalars is not None else self.steered.rate_at(int(self.iterations) + 1)


def measure_norm(gradients: Sequence[Any]) -> Any:
    """Give the Euclidean norm of all gradients together; not finite only if one of them is not. None counts as zeros."""
    ops = keras.ops
    present = [ops.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]
    kinds = {keras.backend.standardize_dtype(gradient.dtype) for gradient in present}
    dtype = "float64" if "float64" in kinds else "float32"

    def measure(scale: Any) -> Any:
        parts = [ops.sum(ops.square(gradient if scale is None else ops.cast(gradient, dtype) / scale)) for gradient in present]
        return ops.sqrt(sum(ops.cast(part, dtype) for part in parts))

    def measure_again() -> Any:
        # The squares of large gradients overflow, so that all are brought to at most 1 first.
        largest = ops.max(ops.stack([ops.cast(ops.max(ops.abs(gradient)), dtype) for gradient in present]))
        return largest * measure(largest)

    norm = measure(None)
    return ops.cond(ops.isfinite(norm), lambda: norm, measure_again)


def _look_up_in_tensorflow(rule: GradientOptimizer, iterations: Any) -> Any:
    tf: Any = importlib.import_module("tensorflow")
    found = tf.numpy_function(partial(_look_up, rule, np.dtype(np.float64)), [iterations + 1], tf.float64)
    return tf.ensure_shape(found, (len(Scalars._fields),))


def _look_up_in_jax(rule: GradientOptimizer, iterations: Any) -> Any:
    jax: Any = importlib.import_module("jax")
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
    shape = jax.ShapeDtypeStruct((len(Scalars._fields),), dtype)
    return jax.pure_callback(partial(_look_up, rule, dtype), shape, iterations.value + 1)


def _look_up_in_torch(rule: GradientOptimizer, iterations: Any) -> Scalars:
    return rule.scalars_at(int(iterations) + 1)


def _look_up(rule: GradientOptimizer, dtype: np.dtype[Any], step: Any) -> NDArray[Any]:
    return np.array(rule.scalars_at(int(step)), dtype)


# Asked for at each step: a schedule is any Python function of the step, and its numbers are the reference's.
_LOOK_UPS: Final = {"jax": _look_up_in_jax, "tensorflow": _look_up_in_tensorflow, "torch": _look_up_in_torch}
