"""The requests that a deployment is tuned for: made of the golden examples, by lengths and arrivals that a user gives.

A trace is a file of JSON lines, one for each request, in the order of arrival:

    {"at_s": 0.0, "rows": 1, "length": 17}
    {"at_s": 0.013}

`at_s` is seconds since any moment; `rows` (default 1) and `length` (default: the examples' own) describe the request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.signature import Arrays, Signature
from argosy.store.golden import Golden

__all__ = ["Arrival", "Requests", "Traffic", "build_requests", "build_schedule", "read_trace"]

_NUM_REQUESTS: Final = 64
"""Different bodies: more than that a cache could profit from, few enough to keep in memory."""
_MAX_ARRIVALS: Final = 1_000_000
_MAX_LENGTH: Final = 1 << 20
_MAX_ROWS: Final = 1 << 16


class Arrival(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a trace."""

    at_s: float
    rows: int = 1
    length: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.at_s < 1e12 and 1 <= self.rows <= _MAX_ROWS and 1 <= (self.length or 1) <= _MAX_LENGTH):
            raise ValueError(f"at_s, rows or length is out of range: {self.at_s}, {self.rows}, {self.length}")


class Traffic(msgspec.Struct, frozen=True):
    """Who asks, and for what."""

    rows: int = 1
    """Of each request."""
    lengths: tuple[int, int] | None = None
    """Least and largest length of the free axes, all in between as likely; None stands for the examples as they are."""
    connections: int = 64
    """Clients; without a rate or a trace, each sends its next request when the last one was answered."""
    rate_per_s: float = 0.0
    """Requests that arrive, at random moments; 0 stands for as many as are answered."""
    trace: tuple[Arrival, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.lengths or (1, 1)
        for option, got, is_right, expected in (
            ("rows", self.rows, 1 <= self.rows <= _MAX_ROWS, f"1 to {_MAX_ROWS}"),
            ("lengths", self.lengths, 1 <= low <= high <= _MAX_LENGTH, f"two numbers LEAST:LARGEST from 1 to {_MAX_LENGTH}"),
            ("connections", self.connections, 1 <= self.connections <= 1024, "1 to 1024"),
            ("rate", self.rate_per_s, 0.0 <= self.rate_per_s <= 1e5, "0 to 100000"),
        ):
            if not is_right:
                raise InputError("bad_option", option=option, got=got, expected=expected)

    @property
    def is_open(self) -> bool:
        """True when requests arrive whether or not earlier ones were answered."""
        return bool(self.trace) or self.rate_per_s > 0


class Requests(NamedTuple):
    """Bodies to be: arrays of each, and what a request of the trace is like by its (rows, length)."""

    arrays: list[Arrays]
    rows: list[int]
    kinds: dict[tuple[int, int | None], list[int]]
    """(rows, length) -> which of the requests are of this kind."""


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """Read a trace; see the module's docstring.

    Raises:
        InputError: `missing_file`; `bad_trace`, a line is no arrival, or they are not in order.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror) from error
    arrivals: list[Arrival] = []
    for number, line in enumerate(lines, 1):
        try:
            arrival = msgspec.json.decode(line, type=Arrival)
        except (msgspec.DecodeError, ValueError) as error:
            raise InputError("bad_trace", path=path.name, line=number, detail=error) from error
        if arrivals and arrival.at_s < arrivals[-1].at_s:
            raise InputError("bad_trace", path=path.name, line=number, detail="it arrives before the line above it")
        arrivals.append(arrival)
    if not 2 <= len(arrivals) <= _MAX_ARRIVALS or arrivals[-1].at_s == arrivals[0].at_s:
        detail = f"it holds {len(arrivals)} arrivals, expected 2 to {_MAX_ARRIVALS} at different moments"
        raise InputError("bad_trace", path=path.name, line=len(arrivals), detail=detail)
    return tuple(arrivals)


def build_requests(signature: Signature, golden: Golden, traffic: Traffic, model: str) -> Requests:
    """Make the inputs of some requests, the same for the same arguments.

    An example that is shorter than wanted is repeated along its free axes, a longer one is cut: masks and tokens stay valid.

    Args:
        signature: of the version.
        golden: its examples.
        traffic: what the requests are like.
        model: its name, for messages.

    Raises:
        InputError: `bad_option`, lengths or rows that the signature has no axis for.
    """
    random = np.random.default_rng(17)
    axes = _find_free_axes(signature)
    kinds = list({(arrival.rows, arrival.length): None for arrival in traffic.trace})
    if not kinds:
        low, high = traffic.lengths or (0, 0)
        drawn = random.integers(low, high + 1, _NUM_REQUESTS).tolist()
        kinds = [(traffic.rows, length or None) for length in drawn]
    if any(length is not None for _, length in kinds) and not any(axes.values()):
        raise InputError("bad_option", option="lengths", got=traffic.lengths, expected=f"none: {model} has no free axis but rows")
    if any(rows != 1 for rows, _ in kinds) and not signature.is_batched:
        raise InputError("bad_option", option="rows", got=traffic.rows, expected=f"1: {model} has no axis of rows")
    requests = Requests([], [], {})
    for index in range(max(_NUM_REQUESTS, min(len(kinds), 16 * _NUM_REQUESTS))):
        rows, length = kind = kinds[index % len(kinds)]
        requests.kinds.setdefault(kind, []).append(index)
        requests.rows.append(rows)
        requests.arrays.append(_build_one(golden, signature, axes, rows, length, random))
    return requests


def _find_free_axes(signature: Signature) -> dict[str, list[int]]:
    """Name the axes whose length a request may choose: the ragged ones, else all free ones but the rows."""
    if signature.ragged is not None:
        ragged = signature.ragged.inputs
        return {spec.name: [ragged[spec.name].axis] if spec.name in ragged else [] for spec in signature.inputs}
    first = 1 if signature.is_batched else 0
    return {spec.name: [a for a, dim in enumerate(spec.shape) if dim == -1 and a >= first] for spec in signature.inputs}


def _build_one(
    golden: Golden, signature: Signature, axes: dict[str, list[int]], rows: int, length: int | None, random: np.random.Generator
) -> Arrays:
    if not signature.is_batched:
        arrays = golden.example(int(random.integers(golden.num_examples)), is_batched=False).inputs
    else:
        picked = random.integers(golden.num_examples, size=rows)
        arrays = {name: array[picked] for name, array in golden.inputs.items()}
    if length is not None:
        arrays = {name: _stretch(array, axes[name], length) for name, array in arrays.items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _stretch(array: NDArray[np.generic], axes: list[int], length: int) -> NDArray[np.generic]:
    for axis in axes:
        array = np.take(array, np.arange(length) % array.shape[axis], axis)
    return array


def build_schedule(traffic: Traffic, requests: Requests, seconds: float) -> list[tuple[float, int]]:
    """Say which request is due when, for `seconds`; nothing for clients that wait for their answers.

    Of a longer trace it is the busiest stretch; a shorter one is begun again.
    """
    if not traffic.is_open:
        return []
    random = np.random.default_rng(23)
    if not traffic.trace:
        gaps = random.exponential(1.0 / traffic.rate_per_s, int(traffic.rate_per_s * seconds * 1.5) + 16)
        moments = np.cumsum(gaps)
        return [(float(at), index % len(requests.arrays)) for index, at in enumerate(moments[moments < seconds])]
    moments = np.array([arrival.at_s for arrival in traffic.trace]) - traffic.trace[0].at_s
    ends = np.searchsorted(moments, moments + seconds)
    first = int(np.argmax(ends - np.arange(len(moments))))
    period = float(moments[-1]) * len(moments) / (len(moments) - 1)
    schedule: list[tuple[float, int]] = []
    index = first
    while (at := float(moments[index % len(moments)] - moments[first]) + period * (index // len(moments))) < seconds:
        arrival = traffic.trace[index % len(moments)]
        alike = requests.kinds[arrival.rows, arrival.length]
        schedule.append((at, alike[index % len(alike)]))
        index += 1
    return schedule
