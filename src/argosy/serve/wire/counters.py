"""Counters of a node, in memory that its fronts share.

Each front writes its own block, so that no lock is needed, and reads everybody's. A front that is
replaced goes on counting where its predecessor stopped. The series (deployment and version) that a row
stands for is listed in the head of the memory, which only the control process writes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from bisect import bisect_left
from typing import Any, Final, NamedTuple

__all__ = [
    "ALONE",
    "BYTES",
    "CLOSED",
    "DEADLINE",
    "FULL",
    "IDLE",
    "MEMORY_BYTES",
    "PAYS",
    "SHAPE",
    "SHARED",
    "SINGLE",
    "BatchSize",
    "Counters",
    "Series",
    "Totals",
]

MAX_FRONTS: Final = 16
MAX_SERIES: Final = 4096
_HEAD_BYTES: Final = 1 << 20
_ROW_DOUBLES: Final = 128
_BLOCK_BYTES: Final = MAX_SERIES * _ROW_DOUBLES * 8
OTHERS: Final = ("(others)", "")
"""What stands for deployment and version in the series of all that have none of their own."""
MEMORY_BYTES: Final = _HEAD_BYTES + MAX_FRONTS * _BLOCK_BYTES
"""Size of the shared memory; only the pages that are written take space."""

# Seconds, upper bounds; chosen so that a factor of 1.6 separates neighbours from 0.2 ms to 20 s.
LATENCY_BOUNDS_S: Final = tuple(round(0.0002 * 1.6**step, 6) for step in range(25))
ROW_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

CLOSED: Final = ("idle", "full", "bytes", "shape", "deadline", "pays", "shared", "single", "alone")
"""Why a batch was closed:

idle      a replica was idle, and took all that waited
full      it has the most rows that the deployment allows
bytes     it has the most bytes that are joined
shape     what else waits has another shape or form, or a length that would cost more padding than joining saves
deadline  with more rows it would come too late for one of its requests
pays      more rows would take longer without raising rows/s, by the measured times
shared    the rest is for other batches: of another idle replica, or, where batches are slow, of all that can run or stand ready
single    rows are not joined: `join_refusal` says why
alone     sent again, after a failure
"""

IDLE, FULL, BYTES, SHAPE, DEADLINE, PAYS, SHARED, SINGLE, ALONE = range(len(CLOSED))

# Columns of a row.
OK, FAILED_4XX, FAILED_5XX, REFUSED, ROWS, BATCHES, JOINED, SERVICE_S, QUEUED, LATENCY_S = range(10)
QUEUE_S, WORKER_S, REAL, PADDED = range(10, 14)
CLOSED_FOR: Final = 14
LATENCY: Final = CLOSED_FOR + len(CLOSED)
BATCH_ROWS: Final = LATENCY + len(LATENCY_BOUNDS_S) + 1
BATCH_SERVICE_S: Final = BATCH_ROWS + len(ROW_BOUNDS) + 1
LAST_S: Final = BATCH_SERVICE_S + len(ROW_BOUNDS) + 1
SEEN: Final = LAST_S + 1
assert SEEN < _ROW_DOUBLES


class BatchSize(NamedTuple):
    """The batches of one size."""

    max_rows: float
    """They have at most so many rows, and more than those of the size before; infinite for the last."""
    batches: int
    """That were sent."""
    service_s: float
    """Time in the runtime of those that were answered, summed."""


class Totals(NamedTuple):
    """The counters of one version, summed over all fronts, since the server's start."""

    ok: int
    """Requests that were answered."""
    ok_s: float
    """From the complete request to its answer, summed over the answered requests."""
    failed: int
    """Requests that were answered with an error, refused ones included."""
    queue_s: float
    """Of `ok_s`, the time until the request's batch was sent to a worker."""
    worker_s: float
    """Of `ok_s`, the time that the request's batch was in the runtime, summed over the requests, not over the batches."""
    rows: int
    """Rows that were sent to workers."""
    batches: int
    """Batches that were sent to workers."""
    sizes: tuple[BatchSize, ...]
    """The batches by size, all sizes, also those that there were none of."""


class Series:
    """One front's counters of one version.

    Attributes:
        index: of the series, the same in all fronts.
    """

    __slots__ = ("_base", "_cells", "index")

    def __init__(self, cells: memoryview[float], base: int, index: int) -> None:
        self.index = index
        self._cells = cells
        self._base = base

    def add_answers(self, latencies_s: list[float], num_rows: int, away_s: float, service_s: float) -> None:
        """Count a batch that was answered.

        Args:
            latencies_s: of each of its requests, since it had arrived.
            num_rows: of the batch.
            away_s: since the batch was sent to the worker.
            service_s: of these, in the runtime.
        """
        cells, base = self._cells, self._base
        histogram = base + LATENCY
        for latency_s in latencies_s:
            cells[histogram + bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1.0
        count, total_s = len(latencies_s), sum(latencies_s)
        cells[base + OK] += count
        cells[base + LATENCY_S] += total_s
        cells[base + QUEUE_S] += total_s - count * away_s
        cells[base + WORKER_S] += count * service_s
        cells[base + SERVICE_S] += service_s
        cells[base + BATCH_SERVICE_S + bisect_left(ROW_BOUNDS, num_rows)] += service_s

    def add_failure(self, status: int) -> None:
        """Count a request that was answered with an error."""
        column = REFUSED if status in (429, 503) else FAILED_5XX if status >= 500 else FAILED_4XX
        self._cells[self._base + column] += 1.0

    def add_batch(self, num_rows: int, num_calls: int, closed: int) -> None:
        """Count a batch that was sent; `closed` is the place in CLOSED of the reason why it has no more rows."""
        cells, base = self._cells, self._base
        cells[base + BATCHES] += 1.0
        cells[base + ROWS] += num_rows
        if num_calls > 1:
            cells[base + JOINED] += num_calls
        cells[base + BATCH_ROWS + bisect_left(ROW_BOUNDS, num_rows)] += 1.0
        cells[base + CLOSED_FOR + closed] += 1.0

    def add_padding(self, real: int, padded: int) -> None:
        """Count the length of a ragged batch: of its rows as they came, and as they are computed."""
        self._cells[self._base + REAL] += real
        self._cells[self._base + PADDED] += padded

    def note_time(self, now_s: float) -> None:
        """Keep when an answer was last seen, in `time.time()`; called every so often, for answers themselves have no time."""
        cells, base = self._cells, self._base
        if cells[base + OK] != cells[base + SEEN]:
            cells[base + SEEN] = cells[base + OK]
            cells[base + LAST_S] = now_s

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
        self.front = front
        self._known: dict[tuple[str, str], int] = {}
        """The series that are named, as far as this process has asked."""
        os.close(fd)

    def series(self, index: int) -> Series:
        """This front's counters of series `index`."""
        assert self.front is not None
        return Series(self._cells, self._offset(self.front, index), index)

    def read(self, index: int) -> list[float]:
        """One series summed over all fronts."""
        total = [0.0] * _ROW_DOUBLES
        for front in range(MAX_FRONTS):
            base = self._offset(front, index)
            row = self._cells[base : base + _ROW_DOUBLES].tolist()
            if any(row):
                total = [a + b for a, b in zip(total, row, strict=True)]
        return total

    def total(self, index: int) -> Totals:
        """One series summed over all fronts, by name."""
        row = self.read(index)
        sizes = zip(
            (*map(float, ROW_BOUNDS), float("inf")),
            map(int, row[BATCH_ROWS:BATCH_SERVICE_S]),
            row[BATCH_SERVICE_S : BATCH_SERVICE_S + len(ROW_BOUNDS) + 1],
            strict=True,
        )
        return Totals(
            ok=int(row[OK]),
            ok_s=row[LATENCY_S],
            failed=int(row[FAILED_4XX] + row[FAILED_5XX] + row[REFUSED]),
            queue_s=row[QUEUE_S],
            worker_s=row[WORKER_S],
            rows=int(row[ROWS]),
            batches=int(row[BATCHES]),
            sizes=tuple(BatchSize(*size) for size in sizes),
        )

    def summarize(self, index: int) -> dict[str, Any]:
        """What a person wants to know of one series."""
        row = self.read(index)
        answered, batches = row[OK], row[BATCHES]
        padded = row[PADDED]
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
            "mean_queue_s": row[QUEUE_S] / answered if answered else 0.0,
            "mean_worker_s": row[WORKER_S] / answered if answered else 0.0,
            "p50_s": _quantile(row, 0.5),
            "p99_s": _quantile(row, 0.99),
            "queued_rows": int(row[QUEUED]),
            "joined": int(row[JOINED]),
            "padding_share": 1.0 - row[REAL] / padded if padded else 0.0,
            "closed": {reason: int(row[CLOSED_FOR + place]) for place, reason in enumerate(CLOSED)},
            "sizes": [
                {"max_rows": None if math.isinf(size.max_rows) else int(size.max_rows), "batches": size.batches}
                for size in self.total(index).sizes
                if size.batches
            ],
        }

    def last_answer_s(self, index: int) -> float:
        """When a request of a series was last answered, in `time.time()`, to the time between two looks; 0 for never."""
        return max(self._cells[self._offset(front, index) + LAST_S] for front in range(MAX_FRONTS))

    def queued_elsewhere(self, index: int) -> float:
        """Rows that wait in other fronts."""
        first, step = self._offset(0, index) + QUEUED, _BLOCK_BYTES // 8
        waiting = self._cells[first : first + MAX_FRONTS * step : step].tolist()
        return sum(waiting) - (waiting[self.front] if self.front is not None else 0.0)

    def list_series(self) -> list[tuple[str, str]]:
        """Deployment and version of each series, by index."""
        (length,) = struct.unpack_from("<I", self._memory, 0)
        return [(name, version) for name, version in json.loads(self._memory[4 : 4 + length])] if length else []

    def name_series(self, name: str, version: str) -> int:
        """The index of a series, which is made if it is new; for the control process alone.

        The last one is that of all versions for which there is no room.
        """
        known = self._known
        if not known:
            known.update((key, index) for index, key in enumerate(self.list_series()))
        if (name, version) in known:
            return known[name, version]
        if len(known) >= MAX_SERIES:
            return MAX_SERIES - 1
        key = (name, version) if len(known) < MAX_SERIES - 1 else OTHERS
        index = known[key] = len(known)
        data = json.dumps(list(known)).encode()
        self._memory[4 : 4 + len(data)] = data
        struct.pack_into("<I", self._memory, 0, len(data))
        return index

    def _offset(self, front: int, index: int) -> int:
        return (_HEAD_BYTES + front * _BLOCK_BYTES) // 8 + index * _ROW_DOUBLES


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
