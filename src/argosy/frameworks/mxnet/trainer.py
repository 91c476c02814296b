"""Gluon's Trainer: it moves the weights, by Argosy's optimizers or MXNet's own, and remembers what they need."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.mxnet.library import copy_tensor, mx
from argosy.frameworks.mxnet.optimizer import RuleOptimizer
from argosy.optim import GradientOptimizer, Momentum
from argosy.signature import Arrays

__all__ = ["KeptTrainer", "scale_rate"]

_LOWERED: Final[weakref.WeakKeyDictionary[Any, float]] = weakref.WeakKeyDictionary()
"""MXNet's own optimizer -> by what the rates of its schedule are multiplied, in the steps of a run alone."""


def scale_rate(optimizer: Any, factor: float) -> bool:
    """See `base.Framework.scale_rate`; what a schedule says is multiplied as a step asks for it."""
    own = optimizer.optimizer if isinstance(optimizer, mx.gluon.Trainer) else optimizer
    if own.lr_scheduler is None:
        own.set_learning_rate(own.learning_rate * factor)
    else:
        _LOWERED[own] = _LOWERED.get(own, 1.0) * factor
    return True


class KeptTrainer:
    """A Trainer whose state can be kept, without a pickle, and restored."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Any], key: str | None = None) -> None:
        """Make one, or take the user's own.

        Args:
            optimizer: a `GradientOptimizer`, an `mx.optimizer.Optimizer`, or a `gluon.Trainer`.
            parameters: that are to be trained, by name.
            key: its name among several.

        Raises:
            InputError: `bad_option`, the Trainer is of another model, or state of it cannot be had; or clipping over all
                weights is asked for, and they are of several types.
        """
        if not isinstance(optimizer, mx.gluon.Trainer):
            own = _adapt(optimizer, parameters) if isinstance(optimizer, GradientOptimizer) else optimizer
            optimizer = mx.gluon.Trainer([*parameters.values()], own, kvstore=None)
        elif not {id(own) for own in optimizer._params} & {id(own) for own in parameters.values()}:
            expected = "one over this model's collect_params()"
            raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
        optimizer._init_kvstore()
        if optimizer._update_on_kvstore or isinstance(optimizer.optimizer, mx.optimizer.LBSGD):
            expected = "a Trainer with update_on_kvstore=False and not LBSGD, which keep state where it cannot be had"
            raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
        self._trainer = optimizer
        self.optimizer = optimizer.optimizer
        _LOWERED.pop(self.optimizer, None)  # of a run that ended within an epoch
        places = {id(own): name for name, own in parameters.items()}
        self._names = {
            index: f"optimizer/{places.get(id(own), own.name)}"
            for index, own in enumerate(optimizer._params)
            if own.grad_req != "null" and (key is None or id(own) in places)
        }
        self._prefix = "optimizer" if key is None else f"optimizer/{key}"
        self._has_rates = isinstance(self.optimizer, RuleOptimizer) and isinstance(self.optimizer.rule, Momentum)
        self._create_slots()

    def step(self) -> None:
        """Move every weight that the last pass went through, by the gradient that stands there."""
        schedule, factor = self.optimizer.lr_scheduler, _LOWERED.get(self.optimizer, 1.0)
        if factor == 1.0:
            self._trainer.step(1, ignore_stale_grad=True)
            return
        # In its place for this step alone: the user's optimizer stays what it is.
        self.optimizer.lr_scheduler = _lower(schedule, factor)
        try:
            self._trainer.step(1, ignore_stale_grad=True)
        finally:
            self.optimizer.lr_scheduler = schedule

    def rate_at(self, number: int) -> float:
        """Give the learning rate of a step, counted from 1; of MXNet's own optimizers that of now."""
        return self.optimizer.rule.rate_at(number) if isinstance(self.optimizer, RuleOptimizer) else self._trainer.learning_rate

    def get_state(self) -> Arrays:
        """Give copies of all that the next step depends on, beside weights and gradients."""
        state = {name: tensor.asnumpy() for name, tensor in self._list_tensors()}
        counts = self.optimizer._index_update_count
        for index, name in self._names.items():
            state[f"{name}/step"] = np.array(counts.get(index, self.optimizer.begin_num_update))
            if self._has_rates:
                state[f"{name}/rate"] = np.array(self.optimizer.rates.get(index, 0.0))
        for name, _, _, value in self._list_numbers():
            state[name] = np.array(float(value))
        if self.optimizer.lr_scheduler is not None:
            state[f"{self._prefix}/lowered"] = np.array(_LOWERED.get(self.optimizer, 1.0))
        return state

    def set_state(self, state: Arrays) -> None:
        """Go on from what `get_state` gave; names, shapes and types are checked already."""
        for name, tensor in self._list_tensors():
            tensor[:] = copy_tensor(state[name])
        for index, name in self._names.items():
            self.optimizer._index_update_count[index] = int(state[f"{name}/step"])
            if self._has_rates:
                self.optimizer.rates[index] = float(state[f"{name}/rate"])
        for name, owner, attribute, value in self._list_numbers():
            number = float(state[name])
            setattr(owner, attribute, int(number) if isinstance(value, int) and number.is_integer() else number)
        if self.optimizer.lr_scheduler is not None:
            _LOWERED[self.optimizer] = float(state[f"{self._prefix}/lowered"])

    def _create_slots(self) -> None:
        """Make what the optimizer remembers now rather than in the first step, so that there is something to restore into."""
        updater = self._trainer._updaters[0]
        for index in self._names:
            if index not in updater.states:
                updater.states[index] = self.optimizer.create_state_multi_precision(index, self._trainer._params[index].data())
                updater.states_synced[index] = True

    def _list_tensors(self) -> list[tuple[str, Any]]:
        states = self._trainer._updaters[0].states
        return [named for index, name in self._names.items() for named in _flatten(name, states[index])]

    def _list_numbers(self) -> list[tuple[str, Any, str, float]]:
        """Some of MXNet's optimizers and schedules count, and lower their rate, in attributes of their own."""
        owners = ("settings", self.optimizer), ("schedule", self.optimizer.lr_scheduler)
        return [
            (f"{self._prefix}/{part}/{attribute}", owner, attribute, value)
            for part, owner in owners
            for attribute, value in getattr(owner, "__dict__", {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]


def _lower(schedule: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda number: factor * schedule(number)


def _adapt(rule: GradientOptimizer, parameters: Mapping[str, Any]) -> RuleOptimizer:
    types = sorted({np.dtype(own.dtype).name for own in parameters.values()})
    if rule.clip_norm is not None and len(types) > 1:
        got = f"clip_norm with weights of {' and '.join(types)}"
        raise InputError("bad_option", option="optimizer", got=got, expected="weights of one type, or no clip_norm")
    return RuleOptimizer(rule, [*parameters])


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """MXNet's optimizers remember nothing, a tensor, or tuples of both; ours a dictionary."""
    if isinstance(value, mx.nd.NDArray):
        yield name, value
    elif isinstance(value, tuple | list | dict):
        own = cast("dict[Any, Any] | tuple[Any, ...]", value)
        for key, part in own.items() if isinstance(own, dict) else enumerate(own):
            yield from _flatten(f"{name}/{key}", part)
