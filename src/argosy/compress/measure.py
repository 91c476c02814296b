"""What compression saved in bytes and seconds, and whether rows stay apart: measured by the runtimes that serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from argosy.bench.probe import Probe
from argosy.bench.rows import RowFiles, Rows, stack_answers, write_rows
from argosy.compress.sample import thin_rows
from argosy.serve.worker.agreement import exceeds, largest_difference

__all__ = ["BATCH_ROWS", "OBJECTIVES", "Cost", "Gain", "Overhead", "Served", "Timing", "measure_costs"]

BATCH_ROWS: Final = 32
"""The larger of the two batch sizes that are measured, and that of the check for batch mates."""

_NUM_TYPICAL: Final = 16
"""Rows that are timed, evenly spaced over those that are there."""
_TURNS: Final = 6
"""Of each model at each batch size, so that other work on the machine hits all alike."""
_LEAST_TURNS: Final = 2
"""Of models that take longer than may be spent on them."""
_MAX_RUNS: Final = 60
"""Of a turn."""

_LEAST_SAVING: Final = 0.05
"""Part of the file that must be saved for it to be called smaller."""

_TIME_NOISE: Final = 0.1
"""Part by which two times must differ to be called different: medians of runs in turn move by less."""

_TAIL: Final = 2.0
"""Times the noise by which 99th percentiles must differ."""


@dataclass(frozen=True)
class Served:
    """What clients saw of a model that a server with one worker served, the settings being those of `argosy deploy`."""

    p50_s: float
    """Of one client, which sends its next request when the last one was answered."""
    p99_s: float
    load_p50_s: float
    """Of `connections` clients at once."""
    load_p99_s: float
    rows_per_s: float
    """Of these clients together."""
    connections: int
    memory_bytes: int
    """Of the worker."""
    rounds: int
    """Measurements that each figure is the median of, in turn with the original."""
    noise: float = 0.0
    """Part by which the rounds differ: half the distance of their quartiles, of `p50_s` or of `rows_per_s`, the larger."""
    tail_noise: float = 0.0
    """The same of `load_p99_s`, which is made of few answers."""


@dataclass(frozen=True)
class Overhead:
    """What serving adds to a model's own time and memory, as it was found of the original; all versions have it alike."""

    alone_s: float
    """To a request of one client."""
    row_s: float
    """To a row of many clients."""
    memory_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a model costs to keep and to run."""

    size_bytes: int
    """Of its files."""
    memory_bytes: int
    """Of a worker that has run it: what would be given back if it ended."""
    load_s: float
    latency_s: float
    """Of one row (of a version without rows: one request) alone."""
    p99_s: float
    """The 99th percentile of that."""
    batch_row_s: float
    """Of one row in a batch of `batch_rows`: the batch's time, divided by its rows. Where rows are not joined: alone."""
    batch_rows: int
    """1 where rows are not joined."""
    batch_difference: float
    """Largest difference between a row's answer alone and in a batch, relative to the largest answer."""
    threads: int = 1
    """Of one operator: as many as a worker finds to pay."""
    served: Served | None = None
    """None where it was not measured as served."""
    overhead: Overhead | None = None
    """None where the original was not."""

    @property
    def request_s(self) -> float:
        """Seconds of a request of one client; what is expected of it where it was not measured as served."""
        if self.served is not None:
            return self.served.p50_s
        return self.latency_s + (self.overhead.alone_s if self.overhead else 0.0)

    @property
    def row_s(self) -> float:
        """Seconds by row of many clients, as `request_s`."""
        if self.served is not None:
            return 1 / self.served.rows_per_s
        return self.batch_row_s + (self.overhead.row_s if self.overhead else 0.0)

    @property
    def worker_bytes(self) -> int:
        """Memory of a worker, as `request_s`."""
        if self.served is not None:
            return self.served.memory_bytes
        return self.memory_bytes + (self.overhead.memory_bytes if self.overhead else 0)

    @property
    def memory_kind(self) -> str:
        """Say of `worker_bytes` what worker that was: one that was `served`, or `alone`."""
        return "alone" if self.served is None else "served"


OBJECTIVES: Final[Mapping[str, Callable[[Cost], float]]] = {
    "latency": lambda cost: cost.request_s,
    "throughput": lambda cost: cost.row_s,
    "size": lambda cost: float(cost.size_bytes),
    "memory": lambda cost: float(cost.worker_bytes),
}
"""What can be looked for: each is the less the better."""


@dataclass(frozen=True)
class Gain:
    """What became smaller or larger, faster or slower."""

    before: Cost
    after: Cost

    @property
    def gains(self) -> list[str]:
        """What is better, in words with the figures; nothing that is within the noise of a measurement."""
        return [text for is_better, text in self._judge() if is_better]

    @property
    def losses(self) -> list[str]:
        """What is worse, as `gains`."""
        return [text for is_better, text in self._judge() if not is_better]

    @property
    def is_one(self) -> bool:
        """The file is smaller; or it is no larger, and something is faster and nothing slower.

        A smaller file is a gain of its own, wherever it is kept, moved or loaded. How fast it is depends on the processor, and on
        what else ran while that was measured: it is told, and alone refuses nothing.
        """
        size = self.after.size_bytes / self.before.size_bytes
        return size < 1 - _LEAST_SAVING or (size <= 1 and bool(self.gains) and not self.losses)

    def describe(self) -> str:
        """Say all of it in one line."""
        return "; ".join([*self.gains, *self.losses]) or "neither smaller nor faster"

    def _judge(self) -> list[tuple[bool, str]]:
        before, after = self.before, self.after
        verdicts: list[tuple[bool, str]] = []
        size = after.size_bytes / before.size_bytes
        if size > 1 or size < 1 - _LEAST_SAVING:
            word = "larger" if size > 1 else "smaller"
            sizes = f"{before.size_bytes / 1024:.1f} -> {after.size_bytes / 1024:.1f} KiB"
            verdicts.append((size < 1, f"the file is {abs(1 - size):.1%} {word} ({sizes})"))
        batch = max(before.batch_rows, after.batch_rows)
        for what, old_s, new_s, noise in self._list_times(batch):
            ratio = new_s / old_s
            # Both ways alike: twice as slow is no more than half.
            if max(ratio, 1 / ratio) > 1 + noise:
                word = "slower" if ratio > 1 else "faster"
                times = f"{old_s * 1e6:.1f} -> {new_s * 1e6:.1f} us"
                verdicts.append((ratio < 1, f"{what} is {max(ratio, 1 / ratio):.2f} times {word} ({times})"))
        return verdicts

    def _list_times(self, batch: int) -> list[tuple[str, float, float, float]]:
        """What is timed, before and after, and its noise: as served, or where that was not measured, in a process alone."""
        old, new = self.before.served, self.after.served
        if old is None or new is None:
            return [
                ("one row alone", self.before.latency_s, self.after.latency_s, _TIME_NOISE),
                (f"a row in a batch of {batch}", self.before.batch_row_s, self.after.batch_row_s, _TIME_NOISE),
            ]
        noise = max(_TIME_NOISE, old.noise + new.noise)
        # A percentile of the rarest answers moves by more than a median: it has a noise of its own.
        tail = _TAIL * max(noise, old.tail_noise + new.tail_noise)
        return [
            ("an answer to one client", old.p50_s, new.p50_s, noise),
            (f"a row of {old.connections} clients", 1 / old.rows_per_s, 1 / new.rows_per_s, noise),
            (f"the 99th percentile of {old.connections} clients", old.load_p99_s, new.load_p99_s, tail),
        ]


class Timing:
    """Rows to time models with.

    Args:
        rows: real ones.
        folder: for files of them, new.
        is_batched: the signature has rows.
    """

    def __init__(self, rows: Rows, folder: Path, *, is_batched: bool) -> None:
        self.typical = write_rows(thin_rows(rows, _NUM_TYPICAL), folder / "typical")
        self.alone: RowFiles | None = None
        self.together: RowFiles | None = None
        # Neighbours of the shape that most rows have: batches are made of these.
        shapes = [tuple(array.shape for array in row.values()) for row in rows]
        common = max(set(shapes), key=shapes.count)
        alike = [row for row, shape in zip(rows, shapes, strict=True) if shape == common]
        joined = stack_answers([alike[index % len(alike)] for index in range(BATCH_ROWS)]) if is_batched else None
        if joined is not None:
            rows_alone = [{name: array[index : index + 1] for name, array in joined.items()} for index in range(BATCH_ROWS)]
            self.alone = write_rows(rows_alone, folder / "alone")
            self.together = write_rows([joined], folder / "together")


def measure_costs(probes: Sequence[Probe], timing: Timing, *, budget_s: float) -> list[Cost]:
    """Measure models in turn.

    Args:
        probes: have them loaded.
        timing: the rows.
        budget_s: for each of them at each batch size.

    Raises:
        FaultError: `engine_failed`.
    """
    differences = [_measure_batch_difference(probe, timing) for probe in probes]
    one = _time_in_turn(probes, timing.typical, budget_s)
    many = None if timing.together is None else _time_in_turn(probes, timing.together, budget_s)
    costs: list[Cost] = []
    for index, probe in enumerate(probes):
        latency_s, p99_s = _typical_s(one[index]), float(np.quantile(np.concatenate(one[index]), 0.99))
        is_joined = many is not None and differences[index][1]
        batch_s = _typical_s(many[index]) / BATCH_ROWS if many is not None and is_joined else latency_s
        costs.append(
            Cost(
                size_bytes=probe.artifact.size_bytes,
                memory_bytes=probe.take_memory(),
                load_s=probe.load_s,
                latency_s=latency_s,
                p99_s=p99_s,
                batch_row_s=batch_s,
                batch_rows=BATCH_ROWS if is_joined else 1,
                batch_difference=differences[index][0],
            )
        )
    return costs


def _measure_batch_difference(probe: Probe, timing: Timing) -> tuple[float, bool]:
    """Give how far a row's answer depends on its batch mates, and whether that is rounding.

    Of rows alone and in a batch, relative to the largest answer: 0 or rounding (below 1e-5) for a static graph; scales computed
    from the batch show as 1e-2 and more.
    """
    if timing.alone is None or timing.together is None:
        return 0.0, False
    alone, together = stack_answers(probe.answer(timing.alone)), probe.answer(timing.together)[0]
    if alone is None:
        return float("inf"), False
    worst, is_rounding = 0.0, True
    for name, expected in alone.items():
        got = together[name]
        difference = largest_difference(got, expected)
        is_rounding = is_rounding and not exceeds(difference, expected.dtype)
        worst = max(worst, difference)
    return worst, is_rounding


def _typical_s(turns: list[list[float]]) -> float:
    """Give the median over the turns of what a turn's faster quarter takes: other work on the machine only ever slows runs."""
    return float(np.median([np.quantile(turn, 0.25) for turn in turns]))


def _time_in_turn(probes: Sequence[Probe], rows: RowFiles, budget_s: float) -> list[list[list[float]]]:
    """Give seconds of runs, by probe and turn."""
    seconds: list[list[list[float]]] = [[] for _ in probes]
    runs: list[int] = []
    turns = _TURNS
    for probe in probes:
        probe.choose(rows)
        # The first run of a shape is not counted.
        warm = probe.time_rounds(1, rows.num_rows)
        one_s = max(1e-6, float(np.median(warm)))
        runs.append(int(min(_MAX_RUNS, max(1, budget_s / _TURNS / one_s))))
        if runs[-1] == 1:
            turns = min(turns, max(_LEAST_TURNS, int(budget_s / one_s)))
    for _ in range(turns):
        for probe, count, times in zip(probes, runs, seconds, strict=True):
            times.append(probe.time_rounds(1, count))
    return seconds
