"""A step of the user's own, whatever the framework: what it may ask for, and what becomes of its loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from argosy.errors import InputError, list_choices
from argosy.frameworks.fitting import Journal, fail_loss, fail_not_finite, read_scalars, share_weights

__all__ = ["Engine", "Mover", "OwnFit", "open_shares", "take_own_step"]


class Mover(Protocol):
    """An optimizer and its weights."""

    def rate_at(self, number: int) -> object:
        """Give the learning rate, for a message."""
        ...


class Engine(Protocol):
    """A framework's way to make a loss small."""

    def minimize(self, loss: Any, mover: Any, number: int) -> float:
        """Let an optimizer take a step; gives the loss before it.

        Args:
            loss: a function of the model, or a scalar.
            mover: one of the movers.
            number: of the step.

        Raises:
            InputError: `bad_loss`.
            ModelError: `not_finite`; nothing was moved.
        """
        ...

    def to_float(self, value: Any) -> float:
        """Read a scalar of the framework's, or a number."""
        ...


class OwnFit:
    """See `fitting.Fit`."""

    def __init__(self, engine: Engine, movers: Mapping[str | None, Any], journal: Journal, number: int, seed: int) -> None:
        self._engine = engine
        self._movers = movers
        self._journal = journal
        self.number = number
        self.epoch = journal.epoch
        self.seed = seed
        self.value: float | None = None
        """The sum of the losses that were made small."""

    def minimize(self, loss: Any, optimizer: str | None = None) -> float:
        """See `fitting.Fit`."""
        if optimizer not in self._movers:
            known = list_choices(str(key) for key in self._movers if key is not None)
            expected = f"one of {known}" if known != "none" else "None: there is one optimizer"
            raise InputError("bad_option", option="fit.minimize(optimizer)", got=optimizer, expected=expected)
        value = self._engine.minimize(loss, self._movers[optimizer], self.number)
        self.value = value if self.value is None else self.value + value
        return value

    def log(self, **values: Any) -> None:
        """See `fitting.Fit`."""
        self._journal.logged.update(read_scalars(values, self._engine.to_float))


def take_own_step(fit: OwnFit, engine: Engine, movers: Mapping[str | None, Mover], run: Callable[[], Any]) -> float:
    """Run a step of the user's own, and make the loss small that it returns, unless it did so itself.

    Args:
        fit: what the step is given.
        engine: of the framework.
        movers: by name; None names the only one.
        run: calls the step, and gives what it returns, which can still be differentiated.

    Raises:
        InputError: `bad_loss`, `bad_option`.
        ModelError: `not_finite`.
    """
    loss = run()
    mover = next(iter(movers.values()))
    if fit.value is not None:
        value = fit.value if loss is None else _check_value(loss, engine.to_float)
        if not math.isfinite(value):
            raise fail_not_finite(step=fit.number, what="loss", layer=None, learning_rate=mover.rate_at(fit.number))
        return value
    if loss is None:
        raise fail_loss("builtins.NoneType")
    if len(movers) > 1:
        expected = "a step that calls fit.minimize with the name of an optimizer"
        raise InputError("bad_option", option="step", got="no call of fit.minimize", expected=expected)
    return engine.minimize(loss, mover, fit.number)


def _check_value(loss: Any, to_float: Callable[[Any], float]) -> float:
    """Read a loss that a step returned beside those that it made small.

    Raises:
        InputError: `bad_loss`, it is no scalar.
    """
    try:
        return to_float(loss)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = getattr(loss, "shape", None)
        raise fail_loss(type(loss).__qualname__ if shape is None else f"a tensor of shape {tuple(shape)}") from error


def open_shares(optimizer: Any, names: list[str], *, has_step: bool) -> dict[str | None, tuple[Any, list[str]]]:
    """Give each optimizer with the names of its weights; None names the only one.

    Raises:
        InputError: `bad_option`, see `fitting.share_weights`; several without a step of one's own.
    """
    if not isinstance(optimizer, Mapping):
        return {None: (optimizer, names)}
    given: dict[str, Any] = {str(name): one for name, one in optimizer.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    shares = share_weights(given, names)
    if len(given) > 1 and not has_step:
        expected = "one, or several with a step of one's own that says which to use"
        raise InputError("bad_option", option="optimizer", got=[*given], expected=expected)
    return {name: (one, shares[name]) for name, one in given.items()}
