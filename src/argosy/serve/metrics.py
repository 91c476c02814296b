"""Counters of a node, in memory that its fronts share; rendered for Prometheus.

Each front writes its own block, so that no lock is needed, and reads everybody's. A front that is
replaced goes on counting where its predecessor stopped. The series (deployment and version) that a row
stands for is listed in the head of the memory, which only the control process writes.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["MEMORY_BYTES", "Counters", "Series", "render_metrics"]

MAX_FRONTS: Final = 16
MAX_SERIES: Final = 4096
_HEAD_BYTES: Final = 1 << 20
_ROW_DOUBLES: Final = 64
_BLOCK_BYTES: Final = MAX_SERIES * _ROW_DOUBLES * 8
MEMORY_BYTES: Final = _HEAD_BYTES + MAX_FRONTS * _BLOCK_BYTES
"""Size of the shared memory; only the pages that are written take space."""

# Seconds, upper bounds; chosen so that a factor of 1.6 separates neighbours from 0.2 ms to 20 s.
LATENCY_BOUNDS_S: Final = tuple(round(0.0002 * 1.6**step, 6) for step in range(25))
ROW_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128)

# Columns of a row.
OK, FAILED_4XX, FAILED_5XX, REFUSED, ROWS, BATCHES, JOINED, SERVICE_S, QUEUED, LATENCY_S = range(10)
LATENCY: Final = 10
BATCH_ROWS: Final = LATENCY + len(LATENCY_BOUNDS_S) + 1
assert BATCH_ROWS + len(ROW_BOUNDS) + 1 <= _ROW_DOUBLES


class Series:
    """One front's counters of one version."""

    __slots__ = ("_base", "_cells")

    def __init__(self, cells: memoryview[float], base: int) -> None:
        self._cells = cells
        self._base = base

    def add_answer(self, latency_s: float) -> None:
        """Count a request that was answered, `latency_s` after it had arrived."""
        cells, base = self._cells, self._base
        cells[base + OK] += 1.0
        cells[base + LATENCY_S] += latency_s
        cells[base + LATENCY + bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1.0

    def add_failure(self, status: int) -> None:
        """Count a request that was answered with an error."""
        column = REFUSED if status in (429, 503) else FAILED_5XX if status >= 500 else FAILED_4XX
        self._cells[self._base + column] += 1.0

    def add_batch(self, num_rows: int, num_calls: int) -> None:
        """Count a batch that was sent."""
        cells, base = self._cells, self._base
        cells[base + BATCHES] += 1.0
        cells[base + ROWS] += num_rows
        if num_calls > 1:
            cells[base + JOINED] += num_calls
        cells[base + BATCH_ROWS + bisect_left(ROW_BOUNDS, num_rows)] += 1.0

    def add_service(self, seconds: float) -> None:
        """Count time that a runtime worked."""
        self._cells[self._base + SERVICE_S] += seconds

    def set_queued(self, num_rows: int) -> None:
        """Say how many rows wait."""
        self._cells[self._base + QUEUED] = num_rows


class Counters:
    """The shared memory, as one process sees it.

    Args:
        fd: descriptor of a memory file of MEMORY_BYTES.
        front: index of this front; the control process, which only names series and reads, has none.
    """

    def __init__(self, fd: int, front: int | None = None) -> None:
        self._memory = mmap.mmap(fd, MEMORY_BYTES)
        self._cells = memoryview(self._memory).cast("d")
        self._front = front
        os.close(fd)

    def series(self, index: int) -> Series:
        """This front's counters of series `index`."""
        assert self._front is not None
        return Series(self._cells, self._offset(self._front, index))

    def read(self, index: int) -> list[float]:
        """One series summed over all fronts."""
        total = [0.0] * _ROW_DOUBLES
        for front in range(MAX_FRONTS):
            base = self._offset(front, index)
            row = self._cells[base : base + _ROW_DOUBLES].tolist()
            if any(row):
                total = [a + b for a, b in zip(total, row, strict=True)]
        return total

    def summarize(self, index: int) -> dict[str, Any]:
        """What a person wants to know of one series."""
        row = self.read(index)
        answered, batches = row[OK], row[BATCHES]
        return {
            "ok": int(answered),
            "bad_request": int(row[FAILED_4XX]),
            "fault": int(row[FAILED_5XX]),
            "refused": int(row[REFUSED]),
            "rows": int(row[ROWS]),
            "batches": int(batches),
            "mean_batch_rows": row[ROWS] / batches if batches else 0.0,
            "mean_service_s": row[SERVICE_S] / batches if batches else 0.0,
            "mean_latency_s": row[LATENCY_S] / answered if answered else 0.0,
            "p50_s": _quantile(row, 0.5),
            "p99_s": _quantile(row, 0.99),
            "queued_rows": int(row[QUEUED]),
        }

    def queued_elsewhere(self, index: int) -> float:
        """Rows that wait in other fronts."""
        return sum(self._cells[self._offset(front, index) + QUEUED] for front in range(MAX_FRONTS) if front != self._front)

    def list_series(self) -> list[tuple[str, str]]:
        """Deployment and version of each series, by index."""
        (length,) = struct.unpack_from("<I", self._memory, 0)
        return [(name, version) for name, version in json.loads(self._memory[4 : 4 + length])] if length else []

    def name_series(self, name: str, version: str) -> int:
        """The index of a series, which is made if it is new; for the control process alone.

        Raises:
            IndexError: the memory holds no more series.
        """
        known = self.list_series()
        if (name, version) in known:
            return known.index((name, version))
        data = json.dumps([*known, (name, version)]).encode()
        if len(known) >= MAX_SERIES or len(data) + 4 > _HEAD_BYTES:
            raise IndexError(f"no more than {MAX_SERIES} versions can be counted")
        self._memory[4 : 4 + len(data)] = data
        struct.pack_into("<I", self._memory, 0, len(data))
        return len(known)

    def _offset(self, front: int, index: int) -> int:
        return (_HEAD_BYTES + front * _BLOCK_BYTES) // 8 + index * _ROW_DOUBLES


class _Collector:
    """What Prometheus reads, made from the counters at each scrape."""

    def __init__(self, counters: Counters, up: dict[tuple[str, str], int]) -> None:
        self._counters = counters
        self._up = up

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ["model", "version"]
        requests = CounterMetricFamily("argosy_requests", "Requests by outcome", labels=[*labels, "outcome"])
        rows = CounterMetricFamily("argosy_rows", "Rows sent to workers", labels=labels)
        batches = CounterMetricFamily("argosy_batches", "Batches sent to workers", labels=labels)
        joined = CounterMetricFamily("argosy_joined_requests", "Requests that shared a batch", labels=labels)
        service = CounterMetricFamily("argosy_service_seconds", "Time in the runtime", labels=labels)
        queued = GaugeMetricFamily("argosy_queued_rows", "Rows that wait", labels=labels)
        ready = GaugeMetricFamily("argosy_ready_replicas", "Replicas that can answer, as this front sees it", labels=labels)
        latency = HistogramMetricFamily("argosy_request_seconds", "Time from complete request to answer", labels=labels)
        batch_rows = HistogramMetricFamily("argosy_batch_rows", "Rows a batch", labels=labels)
        for index, (name, version) in enumerate(self._counters.list_series()):
            row = self._counters.read(index)
            key = [name, version]
            for column, outcome in ((OK, "ok"), (FAILED_4XX, "bad_request"), (FAILED_5XX, "fault"), (REFUSED, "refused")):
                requests.add_metric([*key, outcome], row[column])
            rows.add_metric(key, row[ROWS])
            batches.add_metric(key, row[BATCHES])
            joined.add_metric(key, row[JOINED])
            service.add_metric(key, row[SERVICE_S])
            queued.add_metric(key, row[QUEUED])
            if (name, version) in self._up:
                ready.add_metric(key, self._up[name, version])
            latency.add_metric(key, _buckets(row, LATENCY, LATENCY_BOUNDS_S), row[LATENCY_S])
            batch_rows.add_metric(key, _buckets(row, BATCH_ROWS, ROW_BOUNDS), row[ROWS])
        yield from (requests, rows, batches, joined, service, queued, ready, latency, batch_rows)


def _quantile(row: list[float], share: float) -> float:
    """Upper bound of the bucket that holds the quantile; infinite beyond the last bound, 0 without requests."""
    counts = row[LATENCY : LATENCY + len(LATENCY_BOUNDS_S) + 1]
    target = share * sum(counts)
    seen = 0.0
    for bound, count in zip([*LATENCY_BOUNDS_S, float("inf")], counts, strict=True):
        seen += count
        if count and seen >= target:
            return bound
    return 0.0


def _buckets(row: list[float], column: int, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    total = 0.0
    out: list[tuple[str, float]] = []
    for bound, count in zip([*bounds, float("inf")], row[column : column + len(bounds) + 1], strict=True):
        total += count
        out.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    return out


def render_metrics(counters: Counters, up: dict[tuple[str, str], int]) -> bytes:
    """Render all series in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counters, up))  # pyright: ignore[reportArgumentType]
    return generate_latest(registry)
