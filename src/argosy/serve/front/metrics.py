"""The counters of a node in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from argosy.serve.wire.counters import (
    BATCH_ROWS,
    BATCHES,
    CLOSED,
    CLOSED_FOR,
    FAILED_4XX,
    FAILED_5XX,
    JOINED,
    LATENCY,
    LATENCY_BOUNDS_S,
    LATENCY_S,
    OK,
    PADDED,
    QUEUE_S,
    QUEUED,
    REAL,
    REFUSED,
    ROW_BOUNDS,
    ROWS,
    SERVICE_S,
    WORKER_S,
    Counters,
)

__all__ = ["render_metrics"]


class _Collector:
    """What Prometheus reads, made from the counters at each scrape."""

    def __init__(self, counters: Counters, up: dict[tuple[str, str], int]) -> None:
        self._counters = counters
        self._up = up

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ["model", "version"]
        counters = [(CounterMetricFamily(f"argosy_{name}", text, labels=labels), column) for name, text, column in _SUMS]
        requests = CounterMetricFamily("argosy_requests", "Requests by outcome", labels=[*labels, "outcome"])
        closed = CounterMetricFamily("argosy_closed_batches", "Batches by why they have no more rows", labels=[*labels, "reason"])
        queued = GaugeMetricFamily("argosy_queued_rows", "Rows that wait", labels=labels)
        ready = GaugeMetricFamily("argosy_ready_replicas", "Replicas that can answer, as this front sees it", labels=labels)
        latency = HistogramMetricFamily("argosy_request_seconds", "Time from complete request to answer", labels=labels)
        batch_rows = HistogramMetricFamily("argosy_batch_rows", "Rows a batch", labels=labels)
        for index, (name, version) in enumerate(self._counters.list_series()):
            row = self._counters.read(index)
            key = [name, version]
            for family, column in counters:
                family.add_metric(key, row[column])
            for column, outcome in ((OK, "ok"), (FAILED_4XX, "bad_request"), (FAILED_5XX, "fault"), (REFUSED, "refused")):
                requests.add_metric([*key, outcome], row[column])
            for place, reason in enumerate(CLOSED):
                closed.add_metric([*key, reason], row[CLOSED_FOR + place])
            queued.add_metric(key, row[QUEUED])
            if (name, version) in self._up:
                ready.add_metric(key, self._up[name, version])
            latency.add_metric(key, _buckets(row, LATENCY, LATENCY_BOUNDS_S), row[LATENCY_S])
            batch_rows.add_metric(key, _buckets(row, BATCH_ROWS, ROW_BOUNDS), row[ROWS])
        yield from (requests, *(family for family, _ in counters), closed, queued, ready, latency, batch_rows)


_SUMS: Final = (
    ("rows", "Rows sent to workers", ROWS),
    ("batches", "Batches sent to workers", BATCHES),
    ("joined_requests", "Requests that shared a batch", JOINED),
    ("service_seconds", "Time in the runtime, summed over batches", SERVICE_S),
    ("queue_seconds", "Time in the queue, summed over answered requests", QUEUE_S),
    ("worker_seconds", "Time in the runtime, summed over answered requests", WORKER_S),
    ("real_length", "Length of the rows of ragged batches, as they came", REAL),
    ("padded_length", "Length of the rows of ragged batches, as they are computed", PADDED),
)


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
