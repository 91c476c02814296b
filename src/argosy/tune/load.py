"""A client that costs little: prebuilt requests over raw sockets, one at a time on each connection. Standard library only.

    python -m argosy.tune.load < JOB

JOB is a JSON object, see `Job`; the answer on standard output is a JSON object, see `Load.report`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, TypedDict

__all__ = ["Job", "Load", "main"]

_CHUNK: Final = 1 << 18
_MAX_WAIT_S: Final = 0.05
_DRAIN_S: Final = 5.0
"""How long answers to what was due, or under way, are waited for after the end; and as long again as was counted."""
_PATIENCE_S: Final = 35.0
"""A server that says nothing for longer is taken for dead."""


class Job(TypedDict):
    """What to send, and for how long."""

    port: int
    """Of 127.0.0.1."""
    file: str
    """Holds the requests, head and body, one after the other."""
    sizes: list[int]
    """Bytes of each."""
    rows: list[int]
    """Rows of each."""
    connections: int
    warm_s: float
    """What is answered before is not counted."""
    seconds: float
    schedule: list[tuple[float, int]]
    """When which request is due, from the start of the warm-up; empty for connections that always have one under way."""
    limit_s: float
    """An answer that took no longer is a good one."""


class _Connection:
    """One connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = 0
        self.due_s = 0.0
        self._status = 0
        self._left = -1
        self._data = b""

    def take(self) -> int:
        """Read on; returns the answer's status once it is complete, 0 before."""
        data = self.sock.recv(_CHUNK)
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._left >= 0:
            self._left -= len(data)
        else:
            data = self._data + data
            end = data.find(b"\r\n\r\n")
            self._data = data
            if end < 0:
                return 0
            head = data[:end].lower()
            self._status = int(head[9:12])
            self._left = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]) - (len(data) - end - 4)
        if self._left > 0:
            return 0
        self._left = -1
        self.text, self._data = self._data, b""
        return self._status


class Load:
    """One run.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        data = Path(job["file"]).read_bytes()
        self._requests: list[bytes] = []
        start = 0
        for size in job["sizes"]:
            self._requests.append(data[start : start + size])
            start += size
        self._connections = [_Connection(job["port"]) for _ in range(job["connections"])]
        self._by_fd = {connection.sock.fileno(): connection for connection in self._connections}
        self._poll = select.epoll()
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)
        self._idle = deque(self._connections)
        self._next = 0
        self._latencies: list[float] = []
        self._weights: list[float] = []
        self._num_rows = 0.0
        self._num_errors = 0
        self._error = ""

    def run(self) -> dict[str, Any]:
        """Send until the time is over."""
        job = self._job
        self._start = time.perf_counter()
        self._counted_from = self._start + job["warm_s"]
        self._end = self._counted_from + job["seconds"]
        cpu, wait_s = 0.0, 0.0
        while (now := time.perf_counter()) < self._end or self._is_draining(now):
            if not cpu and now >= self._counted_from:
                cpu = time.process_time()
            wait_s = self._send_due(now)
            # epoll alone waits whole milliseconds.
            if wait_s and select.select([self._poll.fileno()], [], [], wait_s)[0]:
                for fd, _ in self._poll.poll(0):
                    self._take(self._by_fd[fd])
        return self.report(time.process_time() - cpu)

    def _is_draining(self, now: float) -> bool:
        is_busy = len(self._idle) < len(self._connections) or self._next < len(self._job["schedule"])
        return now < self._end + _DRAIN_S + self._job["seconds"] and is_busy

    def _send_due(self, now: float) -> float:
        """Send what is due to whoever is idle; returns how long nothing else is."""
        schedule = self._job["schedule"]
        if not schedule:
            while self._idle and now < self._end:
                self._send(self._idle.popleft(), self._next % len(self._requests), time.perf_counter())
                self._next += 1
            return _MAX_WAIT_S if now >= self._end else min(_MAX_WAIT_S, max(1e-6, self._end - now))
        while self._next < len(schedule) and self._idle:
            at, request = schedule[self._next]
            if (wait_s := self._start + at - now) > 0:
                return min(_MAX_WAIT_S, wait_s)
            self._send(self._idle.popleft(), request, self._start + at)
            self._next += 1
        return _MAX_WAIT_S

    def _send(self, connection: _Connection, request: int, due_s: float) -> None:
        # From when it was due: what a busy server keeps waiting outside of itself is waiting all the same.
        connection.request, connection.due_s = request, due_s
        connection.sock.sendall(self._requests[request])

    def _take(self, connection: _Connection) -> None:
        status = connection.take()
        if not status:
            return
        now = time.perf_counter()
        self._idle.append(connection)
        weight = self._weigh(connection.due_s, now)
        if not weight:
            return
        if status != 200:
            self._num_errors += 1
            self._error = self._error or connection.text[:600].decode(errors="replace")
            return
        self._latencies.append(now - connection.due_s)
        self._weights.append(weight)
        self._num_rows += weight * self._job["rows"][connection.request]

    def _weigh(self, due_s: float, now: float) -> float:
        """Say how much of an answer counts.

        Of clients that wait, the part of the request's time that lies in the time that is counted: batches are answered at
        once, and whether one more or less ends before the end would otherwise be a large part of what is measured.
        """
        if self._job["schedule"]:
            return float(self._counted_from <= due_s < self._end)
        return max(0.0, min(now, self._end) - max(due_s, self._counted_from)) / max(1e-9, now - due_s)

    def report(self, cpu_s: float) -> dict[str, Any]:
        """Sum up: rates by the second, latencies in seconds; infinity, as null, where too few were answered for it."""
        job = self._job
        num_due = len(self._latencies) + self._num_errors + len(self._connections) - len(self._idle)
        if job["schedule"]:
            num_due = sum(job["warm_s"] <= at < job["warm_s"] + job["seconds"] for at, _ in job["schedule"])
        latencies = sorted(self._latencies)

        def quantile(share: float) -> float | None:
            index = int(share * max(0, num_due - 1))
            return latencies[index] if index < len(latencies) else None

        good = sum(w for w, latency in zip(self._weights, self._latencies, strict=True) if latency <= job["limit_s"])
        return {
            "requests_per_s": sum(self._weights) / job["seconds"],
            "rows_per_s": self._num_rows / job["seconds"],
            "good_per_s": good / job["seconds"],
            "failed": 1.0 - len(latencies) / max(1, num_due),
            "p50_s": quantile(0.5),
            "p99_s": quantile(0.99),
            "load_cpu": cpu_s / job["seconds"],
            "error": self._error,
        }


def main() -> None:
    """Carry out the job on standard input."""
    json.dump(Load(json.load(sys.stdin)).run(), sys.stdout)


if __name__ == "__main__":
    main()
