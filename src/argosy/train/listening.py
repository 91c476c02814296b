"""Who listens to a run: functions that `train` calls, and callbacks of a framework's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, cast

from argosy.errors import InputError
from argosy.frameworks.base import Framework, Step, name_kind
from argosy.frameworks.fitting import Listener, TakesCallbacks
from argosy.train.result import Epoch

__all__ = ["Hooks", "Taken", "check_callbacks", "describe_callbacks", "open_listener"]


class Taken(NamedTuple):
    """A step that was taken, as `on_step` is told of it."""

    number: int
    """Counted from 1."""
    epoch: int
    loss: float
    """Of the batch, before the step."""
    logged: dict[str, float]
    """What a step of the user's own logged."""


class Hooks(NamedTuple):
    """Functions of the user's that are called; one that gives True ends the run."""

    on_step: Callable[[Taken], bool | None] | None = None
    on_epoch: Callable[[Epoch], bool | None] | None = None


def check_callbacks(framework: Framework, callbacks: Any) -> tuple[Any, ...]:
    """Give the callbacks that a user named.

    Raises:
        InputError: `bad_option`, no sequence, or the framework has none.
    """
    if not isinstance(callbacks, list | tuple):
        raise InputError("bad_option", option="callbacks", got=name_kind(callbacks), expected="a list")
    given = tuple(cast("Sequence[Any]", callbacks))
    if given and not isinstance(framework, TakesCallbacks):
        got = [name_kind(callback) for callback in given]
        expected = f"none with a model of {framework.name}; functions: on_step, on_epoch, on_end"
        raise InputError("bad_option", option="callbacks", got=got, expected=expected)
    return given


def describe_callbacks(framework: Framework, callbacks: Sequence[Any]) -> tuple[dict[str, Any], ...] | None:
    """Describe them for a lineage; None if there are none."""
    return tuple(cast("TakesCallbacks", framework).describe_callback(callback) for callback in callbacks) or None


def open_listener(
    framework: Framework,
    callbacks: Sequence[Any],
    model: Any,
    step: Step,
    *,
    epochs: int | None,
    num_batches: int | None,
    measured: Collection[str] | None,
) -> Listener | None:
    """Make one listener of callbacks; None if there are none.

    Raises:
        InputError: `bad_option`, one cannot work here.
    """
    if not callbacks:
        return None
    params = {"verbose": 0, "epochs": epochs, "steps": num_batches}
    return cast("TakesCallbacks", framework).open_callbacks(callbacks, model, step, params, measured)
