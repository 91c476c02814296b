"""Parameters of requests and tensors that mean the same over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from argosy.errors import InputError

__all__ = ["MAX_PRIORITY", "MAX_SHOWN", "MAX_TIMEOUT_S", "SCHEDULE", "read_schedule", "refuse_parameters", "shorten"]

MAX_TIMEOUT_S: Final = 3600.0
"""The longest deadline that a request may set."""
MAX_PRIORITY: Final = 1 << 16
"""The last priority."""
MAX_SHOWN: Final = 200
"""Of what a client sent, a message quotes as many characters."""
_MICROSECONDS: Final = 1e-6
SCHEDULE: Final = ("timeout", "priority", "sequence_id", "sequence_start", "sequence_end")
"""Parameters of a request that `read_schedule` reads, or refuses."""


def read_schedule(parameters: Mapping[str, object]) -> tuple[float | None, int]:
    """Read `timeout` (microseconds; 0 is none) and `priority` (1 is taken first; 0 is the default's) of a request.

    Returns:
        The timeout in seconds, or None; and the priority.

    Raises:
        InputError: `bad_parameter`, also for those of sequences, which would be answered wrongly without a state.

    Source: Triton's extensions schedule_policy and sequence.
    """
    for name in SCHEDULE[2:]:
        if got := parameters.get(name):
            raise InputError("bad_parameter", name=name, got=shorten(got), expected="none: sequences are not offered")
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT_S / _MICROSECONDS:
        raise InputError("bad_parameter", name="timeout", got=shorten(timeout), expected="microseconds, at most one hour")
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        expected = f"1 (first) to {MAX_PRIORITY}, or 0"
        raise InputError("bad_parameter", name="priority", got=shorten(priority), expected=expected)
    return timeout * _MICROSECONDS if timeout else None, priority


def shorten(value: object) -> object:
    """Cut what a message quotes of a client's value."""
    return value[:MAX_SHOWN] if isinstance(value, str) else value


def refuse_parameters(parameters: Mapping[str, object]) -> None:
    """Refuse parameters of a tensor that would change its meaning if they were passed over.

    Raises:
        InputError: `bad_parameter`.
    """
    for name in ("shared_memory_region", "classification"):
        if name in parameters:
            raise InputError("bad_parameter", name=name, got=shorten(parameters[name]), expected="none: it is not offered")
