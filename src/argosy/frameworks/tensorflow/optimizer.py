"""Argosy's optimizers on TensorFlow's variables: the NumPy rule itself, compiled by XLA into one pass over each."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.optim import GradientOptimizer
from argosy.optim.base import Scalars

__all__ = ["RuleOptimizer", "make_dense", "measure_norm", "measure_scale"]

tf: Any = importlib.import_module("tensorflow")


class RuleOptimizer(tf.Module):
    """One of Argosy's optimizers on TensorFlow's variables, in place.

    The built-in ones are not used: frameworks differ in where they put epsilon, momentum and the penalty, and
    a model must train alike in all of them.
    """

    def __init__(self, weights: Iterable[Any], rule: GradientOptimizer, names: Sequence[str] = ()) -> None:
        """Take the variables that it is to move; what the rule remembers of them is made here.

        Args:
            weights: variables.
            rule: to follow.
            names: of the weights in their order, for a rule that has groups.

        Raises:
            InputError: `bad_option`, it has, and there are none.
        """
        super().__init__("rule_optimizer")  # pyright: ignore[reportUnknownMemberType]
        self.rule = rule
        self.weights = list(weights)
        if rule.groups and len(names) != len(self.weights):
            expected = "names of the weights, with a rule that has groups"
            raise InputError("bad_option", option="names", got=[*names], expected=expected)
        self._parts = [(rule.for_weight(name), rule.find_group(name)) for name in names] if rule.groups else []
        self.taken = tf.Variable(0, dtype=tf.int64, trainable=False, name="taken")
        """Steps taken so far."""
        self.memory = [[tf.Variable(tf.zeros_like(w), trainable=False) for _ in rule.slots] for w in self.weights]
        """For each weight the rule's slots, in their order."""
        # Unfused, the dozen operators of a rule each read and write all weights: 10 to 20 % of a step of 5 M weights.
        self._compiled = tf.function(self._move, jit_compile=True)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> None:
        """Move every variable that has a gradient, as any optimizer of TensorFlow does.

        Args:
            grads_and_vars: pairs of a gradient, or None, and one of the variables it was made with.

        Raises:
            InputError: `bad_option`, a variable is not among those.
        """
        given = [(gradient, weight.ref()) for gradient, weight in grads_and_vars]
        known = [weight.ref() for weight in self.weights]
        if any(weight not in known for _, weight in given):
            raise InputError("bad_option", option="variables", got="another", expected="those that the optimizer was made with")
        by_weight = {weight: gradient for gradient, weight in given}
        self.move([by_weight.get(weight) for weight in known], tf.numpy_function(self._look_up, [self.taken + 1], tf.float64))

    def move(self, gradients: Sequence[Any], scalars: Any, norm: Any = None) -> None:
        """Take one step.

        Args:
            gradients: one for each weight, None for one that the loss does not depend on.
            scalars: of this step, three float64 numbers in the order of `Scalars`.
            norm: of all gradients together, where it is known already.
        """
        dense = [make_dense(gradient) for gradient in gradients]
        scale = None
        if self.rule.clip_norm is not None:
            scale = measure_scale(measure_norm(dense) if norm is None else norm, self.rule.clip_norm)
        self._compiled(dense, scalars, scale)

    def _move(self, gradients: Sequence[Any], scalars: Any, scale: Any) -> None:
        for index, (weight, gradient, memory) in enumerate(zip(self.weights, gradients, self.memory, strict=True)):
            if gradient is None:
                continue
            if scale is not None:
                gradient = gradient * tf.cast(scale, weight.dtype)
            if self.rule.clip_value is not None:
                gradient = tf.clip_by_value(gradient, -self.rule.clip_value, self.rule.clip_value)
            slots = dict(zip(self.rule.slots, memory, strict=True))
            rule, group = self._parts[index] if self._parts else (self.rule, None)
            rate, *rest = (scalars[i] for i in range(len(Scalars._fields)))
            rate = rate if group is None else rate * group.rate_factor
            own = Scalars(*(tf.cast(scalar, weight.dtype) for scalar in (rate, *rest)))
            moved, after = rule.move(weight, gradient, slots, own, tf.sqrt)
            weight.assign(moved)
            for slot, variable in slots.items():
                variable.assign(after[slot])
        self.taken.assign_add(1)

    def _look_up(self, step: Any) -> NDArray[Any]:
        return np.array(self.rule.scalars_at(int(step)), np.float64)


def make_dense(gradient: Any) -> Any:
    """Give a gradient, or None, as a tensor: that of an embedding comes as IndexedSlices, whose rows may stand there twice."""
    return gradient if gradient is None else tf.convert_to_tensor(gradient)


def measure_scale(norm: Any, clip_norm: float) -> Any:
    """Give the factor that clips gradients of this norm, as `GradientOptimizer.clip_scale` does."""
    return tf.where(norm > clip_norm, clip_norm / norm, tf.ones_like(norm))


def measure_norm(gradients: Sequence[Any]) -> Any:
    """Give the Euclidean norm of all gradients together, in float64; not finite only if one of them is not.

    Args:
        gradients: tensors or IndexedSlices, of any float types; None counts as zeros.
    """
    values = [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]
    norm = tf.sqrt(2.0 * tf.add_n([tf.cast(tf.nn.l2_loss(value), tf.float64) for value in values]))

    def measure_again() -> Any:
        # The squares of large float32 gradients overflow, those of float64 do not.
        return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tf.cast(value, tf.float64))) for value in values]))

    return tf.cond(tf.math.is_finite(norm), lambda: norm, measure_again)
