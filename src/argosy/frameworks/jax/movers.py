"""What moves the weights of a flax model: an optimizer of Argosy's or optax', or several, each for its part."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.jax.optimizer import RuleOptimizer
from argosy.frameworks.jax.state import Leaves, Parts
from argosy.frameworks.own_step import open_shares
from argosy.optim import GradientOptimizer

__all__ = ["Mover", "open_movers", "scale_rate"]

jax: Any = importlib.import_module("jax")
nnx: Any = importlib.import_module("flax.nnx")
optax: Any = importlib.import_module("optax")


class Mover:
    """One optimizer and its weights. What it remembers is given and taken, as compiled functions have it."""

    def __init__(self, optimizer: Any, names: Sequence[str], parts: Parts, key: str | None) -> None:
        if not isinstance(optimizer, GradientOptimizer | optax.GradientTransformation):
            raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected="a transformation of optax")
        self.optimizer: Any = RuleOptimizer(optimizer) if isinstance(optimizer, GradientOptimizer) else optimizer
        self.rule: GradientOptimizer | None = getattr(self.optimizer, "rule", None)
        self.is_own = not isinstance(optimizer, GradientOptimizer)
        self.factor = 1.0
        """By which the steps of a transformation of the user's are multiplied, whose rate nobody can change."""
        self.names = frozenset(names)
        self.prefix = "optimizer" if key is None else f"optimizer/{key}"
        self.rate_name = "rate" if key is None else f"rate/{key}"
        self._is_own = [name in self.names for name in parts.trained_names]
        self._tree = parts.structure.trees[0]
        self._weights_tree = jax.tree.structure(self._pure(self.pick(parts.trained)))
        memory = self.optimizer.init(self._pure(self.pick(parts.trained)))
        self.memory: Leaves = jax.tree.leaves(memory)
        """What it remembers before the first step."""
        self._memory_tree = jax.tree.structure(memory)
        self.memory_names = [
            f"{self.prefix}/{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(memory)[0]
        ]
        if self.is_own:
            _OPEN.setdefault(id(optimizer), weakref.WeakSet()).add(self)

    def pick(self, leaves: Leaves) -> Leaves:
        """Give its own of all trained weights, or of their gradients."""
        return [leaf for leaf, is_own in zip(leaves, self._is_own, strict=True) if is_own]

    def _pure(self, own: Leaves) -> Any:
        """Give weights as `nnx.Optimizer` gives them to optax, so that masks and labels for parts of a model fit."""
        left = iter(own)
        whole = jax.tree.unflatten(self._tree, [next(left) if is_own else None for is_own in self._is_own])
        if all(self._is_own):
            return nnx.as_pure(whole)
        return nnx.as_pure(nnx.filter_state(whole, self.owns, ...)[0])

    def owns(self, path: Any, value: object) -> bool:
        """Say whether a variable at a path of the model is one of its own weights, as flax asks it."""
        return ".".join(map(str, path)) in self.names

    def scalars_at(self, number: int) -> NDArray[Any]:
        """Give the scalars of a step: of a rule its own, else the factor alone."""
        rate, *corrections = self.rule.scalars_at(number) if self.rule else (1.0, 1.0, 1.0)
        return np.array((rate * self.factor, *corrections))

    def count(self, memory: Leaves) -> int:
        """Give how many steps it has taken; 0 of optax' own, which count themselves."""
        return int(np.asarray(memory[0])) if self.rule else 0

    def move(
        self, weights: Leaves, gradients: Leaves, memory: Leaves, loss: Any, norm: Any, scalars: Any
    ) -> tuple[Leaves, Leaves]:
        """Give weights and what it remembers after a step.

        Args:
            weights: its own.
            gradients: of these.
            memory: what it remembers.
            loss: for transformations that look at it.
            norm: of all gradients together.
            scalars: of the step; None: a rule finds out itself.
        """
        pure, slopes = self._pure(weights), self._weights_tree.unflatten(gradients)
        extra = {"scalars": scalars, "norm": norm} if self.rule else {"value": loss, "grad": slopes}
        transformation = optax.with_extra_args_support(self.optimizer)
        updates, after = transformation.update(slopes, self._memory_tree.unflatten(memory), pure, **extra)
        if not self.rule:
            updates = jax.tree.map(partial(_scale, scalars[0]), updates)
        return jax.tree.leaves(optax.apply_updates(pure, updates)), jax.tree.leaves(after)

    def rate_at(self, number: int) -> object:
        """Give the learning rate, for a message."""
        return self.rule.rate_at(number) if self.rule else None


_OPEN: Final[dict[int, weakref.WeakSet[Mover]]] = {}
"""Movers by the identity of what they were made of, which they keep alive: a transformation has no rate that could be set."""


def _scale(factor: Any, update: Any) -> Any:
    return update * factor.astype(update.dtype)


def open_movers(optimizer: Any, parts: Parts, *, has_step: bool) -> dict[str | None, Mover]:
    """Give the movers of a model's weights by name; None names the only one.

    Raises:
        InputError: `bad_option`, see `own_step.open_shares`.
    """
    for key in [key for key, movers in _OPEN.items() if not movers]:
        del _OPEN[key]
    shares = open_shares(optimizer, parts.trained_names, has_step=has_step)
    return {key: Mover(one, names, parts, key) for key, (one, names) in shares.items()}


def scale_rate(optimizer: Any, factor: float) -> bool:
    """See `base.Framework.scale_rate`: all that a transformation of optax does is multiplied by it."""
    movers = [*_OPEN.get(id(optimizer), ())]
    for mover in movers:
        mover.factor *= factor
    return bool(movers)
