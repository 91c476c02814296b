"""The requests that a deployment is tuned for: made of the golden examples, by lengths and arrivals that a user gives."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.deploy.spec import MAX_LENGTH, MAX_ROWS, Arrival
from argosy.errors import InputError
from argosy.signature import Arrays, Signature
from argosy.store.golden import Golden

__all__ = ["Requests", "Traffic", "build_mix", "build_requests", "build_schedule"]

_NUM_REQUESTS: Final = 64
"""Different bodies: more than that a cache could profit from, few enough to keep in memory."""
_MAX_KINDS: Final = 1024
"""Of a trace's requests that are made; others are sent as the next larger kind."""


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
            ("rows", self.rows, 1 <= self.rows <= MAX_ROWS, f"1 to {MAX_ROWS}"),
            ("lengths", self.lengths, 1 <= low <= high <= MAX_LENGTH, f"two numbers LEAST:LARGEST from 1 to {MAX_LENGTH}"),
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
    axes = signature.free_axes
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
    built = _thin_kinds(kinds)
    for index in range(max(_NUM_REQUESTS, len(built))):
        rows, length = kind = built[index % len(built)]
        requests.kinds.setdefault(kind, []).append(index)
        requests.rows.append(rows)
        requests.arrays.append(_build_one(golden, signature, axes, rows, length, random))
    if len(built) < len(kinds):
        # What is next in order stands for the kinds that were left out.
        order = [_rank(kind) for kind in built]
        for kind in kinds:
            place = min(bisect.bisect_left(order, _rank(kind)), len(built) - 1)
            requests.kinds.setdefault(kind, requests.kinds[built[place]])
    return requests


def _thin_kinds(kinds: list[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    """Give all kinds; of more than are kept in memory, some in order, evenly spaced."""
    if len(kinds) <= _MAX_KINDS:
        return kinds
    ordered = sorted(kinds, key=_rank)
    return [ordered[index * (len(ordered) - 1) // (_MAX_KINDS - 1)] for index in range(_MAX_KINDS)]


def _rank(kind: tuple[int, int | None]) -> tuple[int, int]:
    return kind[0], kind[1] or 0


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


def build_mix(signature: Signature, golden: Golden, trace: Sequence[Arrival], model: str) -> Requests:
    """Make requests that are as often of each kind as those of a trace, for clients that send them one after the other.

    Args:
        signature: of the version.
        golden: its examples.
        trace: what was recorded; of a longer one, arrivals that are evenly spaced stand for all.
        model: its name, for messages.

    Raises:
        InputError: as `build_requests`.
    """
    count = min(len(trace), _NUM_REQUESTS)
    few = tuple(trace[index * len(trace) // count] for index in range(count))
    made = build_requests(signature, golden, Traffic(trace=few), model)
    chosen = [made.kinds[arrival.rows, arrival.length] for arrival in few]
    places = [alike[index % len(alike)] for index, alike in enumerate(chosen)]
    return Requests([made.arrays[place] for place in places], [made.rows[place] for place in places], made.kinds)


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
