"""Learning rates of Keras' own optimizers, which TensorFlow's models have as well: multiplied while a run lasts.

A number is set. What a schedule says is multiplied by a variable, where the optimizer asks for it: compiled steps read it as
they do all others, and the optimizer's settings stay what they are.
"""

from __future__ import annotations

import sys
from typing import Any, Final

__all__ = ["hold_schedule", "release_schedules", "scale_rate"]

_ASKED: Final = "_get_current_learning_rate"
_held: Final[list[tuple[Any, Any]]] = []
"""Optimizers of the run, and the variables by which what their schedules say is multiplied."""


def hold_schedule(optimizer: Any) -> Any:
    """Let what the schedule of an optimizer says be multiplied by a variable, until `release_schedules`.

    Returns:
        The variable, which is part of what the optimizer remembers; None where its rate is a number.
    """
    keras: Any = sys.modules["keras"]
    rate = getattr(optimizer, "_learning_rate", None)
    if rate is None or isinstance(rate, keras.Variable):
        return None
    if (known := _find(optimizer)) is not None:
        return known
    factor = keras.Variable(1.0, trainable=False, dtype="float32", name="lowered")
    ask = getattr(optimizer, _ASKED)
    setattr(optimizer, _ASKED, lambda: keras.ops.multiply(ask(), factor))
    _held.append((optimizer, factor))
    return factor


def release_schedules() -> None:
    """Let all schedules say what they do."""
    while _held:
        optimizer, _ = _held.pop()
        delattr(optimizer, _ASKED)


def scale_rate(optimizer: Any, factor: float) -> bool:
    """See `base.Framework.scale_rate`."""
    known = _find(optimizer)
    if known is not None:
        known.assign(float(known) * factor)
        return True
    try:
        optimizer.learning_rate = float(optimizer.learning_rate) * factor
    except TypeError:
        return False  # A schedule within another optimizer.
    return True


def _find(optimizer: Any) -> Any:
    return next((factor for held, factor in _held if held is optimizer), None)
