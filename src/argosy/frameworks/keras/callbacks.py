"""Keras' own callbacks, called as `fit` calls them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import name_kind
from argosy.frameworks.describe import list_attributes
from argosy.frameworks.fitting import Listener, Step
from argosy.frameworks.keras.step import KerasStep
from argosy.signature import Arrays

__all__ = ["KerasListener", "open_callbacks"]

keras: Any = importlib.import_module("keras")

_REFUSED: Final = {
    "BackupAndRestore": "checkpoints= of train, which go on bit for bit",
    "SwapEMAWeights": "average= of train",
}
"""Callbacks for which Keras' own loop does more than call them, and what does that here."""

_RATES: Final = ("LearningRateScheduler", "ReduceLROnPlateau")
"""Callbacks that set the learning rate."""

_PREFIX: Final = "callbacks/"

_ARRAY: Final = "array of the state"
"""Stands in the JSON of a callback for an array of its own."""


def open_callbacks(
    callbacks: Sequence[Any], model: Any, step: Step, params: Mapping[str, Any], measured: Collection[str] | None
) -> Listener:
    """Check callbacks, and make one listener of them.

    Args:
        callbacks: of Keras.
        model: that is fitted.
        step: that fits it.
        params: what callbacks are told of the run.
        measured: what an epoch measures; None if only the end of one tells.

    Raises:
        InputError: `bad_option`, one is no callback of Keras, or needs what only Keras' own loop does.
    """
    optimizer: Any = step.optimizer if isinstance(step, KerasStep) else None
    known = None if measured is None else {_name_log(name) for name in measured}
    for callback in callbacks:
        kind = type(callback).__name__
        expected = None
        if not isinstance(callback, keras.callbacks.Callback):
            expected = "callbacks of Keras; others are functions: on_step, on_epoch, on_end"
        elif refused := [name for name in _REFUSED if isinstance(callback, getattr(keras.callbacks, name))]:
            expected = _REFUSED[refused[0]]
        elif _overrides(callback, "on_test_batch_begin", "on_test_batch_end"):
            expected = "callbacks that are told of validation as a whole: on_test_begin, on_test_end"
        elif any(isinstance(callback, getattr(keras.callbacks, name)) for name in _RATES) and not _can_set_rate(optimizer):
            expected = f"an optimizer whose learning rate is a number, for {kind}"
        elif known is not None and _watches(callback) and callback.monitor not in known:
            kind = f"{kind} that monitors {callback.monitor}"
            expected = f"what the run measures: {list_choices(known)}"
        if expected is not None:
            raise InputError("bad_option", option="callbacks", got=kind, expected=expected)
    return KerasListener(list(callbacks), model, step, optimizer, params)


def _overrides(callback: Any, *methods: str) -> bool:
    base = keras.callbacks.Callback
    kind = cast("Any", type(callback))
    return any(getattr(kind, method) is not getattr(base, method) for method in methods)


def _hears_steps(callback: Any) -> bool:
    """Whether a callback does something at each step, before which variables must be brought up to date."""
    methods = "on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end"
    if getattr(callback, "save_freq", None) == "epoch":
        return False
    return _overrides(callback, *methods) or any(method in vars(callback) for method in methods)


def _watches(callback: Any) -> bool:
    return isinstance(getattr(callback, "monitor", None), str) and getattr(callback, "save_best_only", True)


def _can_set_rate(optimizer: Any) -> bool:
    if optimizer is None:
        return False
    settable: Any = getattr(optimizer, "is_rate_settable", None)
    return bool(settable) if settable is not None else isinstance(optimizer._learning_rate, keras.Variable)


def _name_log(name: str) -> str:
    return f"val_{name.removeprefix('validation_')}" if name.startswith("validation_") else name


class KerasListener:
    """See `fitting.Listener`."""

    def __init__(self, callbacks: list[Any], model: Any, step: Step, optimizer: Any, params: Mapping[str, Any]) -> None:
        self._callbacks = callbacks
        self._model = model
        self._step = step
        self._optimizer = optimizer
        self._params = dict(params)
        self._before: dict[str, Any] = {}
        self._hears_steps = any(map(_hears_steps, callbacks))
        self._logs: dict[str, float] = {}

    def begin(self, state: Arrays | None = None) -> bool:
        """See `fitting.Listener`."""
        own: dict[str, Any] = self._model.__dict__
        self._before = {name: own[name] for name in ("optimizer", "stop_training") if name in own}
        if self._optimizer is not None:
            own["optimizer"] = self._optimizer
        self._model.stop_training = False
        for callback in self._callbacks:
            callback.set_model(self._model)
            callback.set_params(self._params)
            if _watches(callback) and getattr(callback, "monitor_op", self) is None:
                self._choose_direction(callback)
        self._tell("on_train_begin")
        if state is not None:
            self.set_state(state)
        return bool(self._model.stop_training)

    def _choose_direction(self, callback: Any) -> None:
        """Have Keras decide now, rather than after the first epoch, whether what is monitored is to fall or to rise."""
        try:
            callback._set_monitor_op()
        except ValueError as error:
            kind = f"{type(callback).__name__} that monitors {callback.monitor}"
            raise InputError("bad_option", option="callbacks", got=kind, expected="one with mode='min' or 'max'") from error

    def begin_epoch(self, epoch: int) -> None:
        """See `fitting.Listener`."""
        self._tell("on_epoch_begin", epoch - 1, {})

    def begin_step(self, batch: int) -> None:
        """See `fitting.Listener`."""
        if self._hears_steps:
            self._tell("on_train_batch_begin", batch, {})

    def end_step(self, batch: int, means: Mapping[str, float]) -> bool:
        """See `fitting.Listener`."""
        if not self._hears_steps:
            return False
        return self._tell("on_train_batch_end", batch, dict(means))

    def begin_validation(self) -> None:
        """See `fitting.Listener`."""
        self._tell("on_test_begin")

    def end_validation(self, values: Mapping[str, float]) -> None:
        """See `fitting.Listener`."""
        self._tell("on_test_end", dict(values))

    def end_epoch(self, epoch: int, values: Mapping[str, float]) -> bool:
        """See `fitting.Listener`."""
        self._logs = {_name_log(name): value for name, value in values.items()}
        return self._tell("on_epoch_end", epoch - 1, self._logs)

    def end(self) -> None:
        """See `fitting.Listener`."""
        self._tell("on_train_end", self._logs)

    def close(self) -> None:
        """See `fitting.Listener`."""
        own: dict[str, Any] = self._model.__dict__
        for name in ("optimizer", "stop_training"):
            own.pop(name, None)
        own.update(self._before)

    def _tell(self, method: str, *given: Any) -> bool:
        """Call all of them, with variables up to date before and looked at after; True where one says stop."""
        self._step.sync()
        for callback in self._callbacks:
            getattr(callback, method)(*given)
        if isinstance(self._step, KerasStep):
            self._step.adopt()
        return bool(self._model.stop_training)

    def get_state(self) -> Arrays:
        """See `fitting.Listener`."""
        state: Arrays = {}
        for index, callback in enumerate(self._callbacks):
            arrays: list[Any] = []
            plain = {"kind": name_kind(callback)}
            values = {name: _keep(value, arrays) for name, value in list_attributes(callback).items() if name not in _FOREIGN}
            plain["values"] = {name: kept for name, (kept, is_kept) in values.items() if is_kept}  # type: ignore[assignment]
            state[f"{_PREFIX}{index}"] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
            state |= {f"{_PREFIX}{index}/{number}": array for number, array in enumerate(arrays)}
        state[f"{_PREFIX}ended"] = np.array(bool(self._model.stop_training))
        if getattr(self._optimizer, "steering", None) is not None:
            state[f"{_PREFIX}rate"] = np.array(self._optimizer.steering.factor)
        return state

    def set_state(self, state: Arrays) -> None:
        """See `fitting.Listener`."""
        for index, callback in enumerate(self._callbacks):
            kept = state.get(f"{_PREFIX}{index}")
            plain: dict[str, Any] = {"kind": "no callback"} if kept is None else json.loads(kept.tobytes())
            if plain["kind"] != name_kind(callback):
                detail = f"callback {index} is {plain['kind']}, here {name_kind(callback)}"
                raise InputError("bad_checkpoint", detail=detail)
            for name, value in plain["values"].items():
                setattr(callback, name, _restore(value, state, f"{_PREFIX}{index}/"))
        self._model.stop_training = bool(state[f"{_PREFIX}ended"])
        if f"{_PREFIX}rate" in state and getattr(self._optimizer, "steering", None) is not None:
            self._optimizer.steering.factor = float(state[f"{_PREFIX}rate"])


_FOREIGN: Final = ("_model", "params", "validation_data")
"""What a callback is given."""


def _keep(value: Any, arrays: list[Any]) -> tuple[Any, bool]:
    """Give a value as JSON, with its arrays in a list; and whether it can be given so."""
    if value is None or isinstance(value, bool | int | float | str):
        return value, True
    if isinstance(value, np.generic):
        number: Any = cast("Any", value).item()
        return number, isinstance(value, np.number | np.bool_)
    if isinstance(value, np.ndarray):
        arrays.append(np.array(cast("Any", value)))
        return {_ARRAY: len(arrays) - 1}, True
    parts: Any = None
    if isinstance(value, dict):
        given = cast("dict[Any, Any]", value)
        parts = {name: _keep(part, arrays) for name, part in given.items()}
        if all(isinstance(name, str) and is_kept for name, (_, is_kept) in parts.items()):
            return {name: kept for name, (kept, _) in parts.items()}, True
    elif isinstance(value, list):
        parts = [_keep(part, arrays) for part in cast("list[Any]", value)]
        if all(is_kept for _, is_kept in parts):
            return [kept for kept, _ in parts], True
    return None, False


def _restore(value: Any, state: Arrays, prefix: str) -> Any:
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        if given.keys() == {_ARRAY}:
            return state[f"{prefix}{given[_ARRAY]}"].copy()
        return {name: _restore(part, state, prefix) for name, part in given.items()}
    if isinstance(value, list):
        return [_restore(part, state, prefix) for part in cast("list[Any]", value)]
    return value
