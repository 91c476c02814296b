"""A client with a constant rate: requests are due at fixed times, whatever the server does, and their latency counts
from when they were due. A closed loop asks less of a server that stalls; this one does not.

    python benchmarks/open_loop.py '{"url": ..., "requests": FILE, "headers": {}, "connections": 64, "seconds": 5, "rate": 1000}'
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import httptools
import numpy as np
import uvloop

# What may still be answered after the last request was due; the rest are errors.
DRAIN_S = 5.0


class Client(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.due_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser = transport, httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.crowd.note_answer(self, self.parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd.note_loss(self)


class Crowd:
    """The connections, the requests that are due, and the times that their answers took."""

    def __init__(self, requests: list[bytes], rate: float, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.requests, self.rate, self.count = itertools.cycle(requests), rate, round(rate * seconds)
        self.idle: list[Client] = []
        self.waiting: collections.deque[float] = collections.deque()
        self.times_s: list[float] = []
        self.num_done = self.errors = 0
        self.finished = asyncio.Event()

    def start(self) -> None:
        self.begin_s = time.perf_counter()
        threading.Thread(target=self.keep_time, daemon=True).start()

    def keep_time(self) -> None:
        """Say of each request when it is due. A thread sleeps to 0.1 ms, where the loop's timers round up to 1 ms."""
        for number in range(self.count):
            due_s = self.begin_s + number / self.rate
            time.sleep(max(0.0, due_s - time.perf_counter()))
            self.loop.call_soon_threadsafe(self.take, due_s)

    def take(self, due_s: float) -> None:
        self.waiting.append(due_s)
        self.send()

    def send(self) -> None:
        while self.waiting and self.idle:
            client = self.idle.pop()
            client.due_s = self.waiting.popleft()
            client.transport.write(next(self.requests))

    def note_answer(self, client: Client, status: int) -> None:
        self.times_s.append(time.perf_counter() - client.due_s)
        self.errors += status // 100 != 2
        client.due_s = None
        self.idle.append(client)
        self.count_done()
        self.send()

    def note_loss(self, client: Client) -> None:
        if client.due_s is not None:
            self.errors += 1
            self.count_done()
        elif client in self.idle:
            self.idle.remove(client)

    def count_done(self) -> None:
        self.num_done += 1
        if self.num_done == self.count:
            self.finished.set()


def read_requests(path: Path) -> list[bytes]:
    """The bodies of a file as `post.lua` reads it."""
    data, bodies = path.read_bytes(), []
    while data:
        length, _, rest = data.partition(b"\n")
        bodies.append(rest[: int(length)])
        data = rest[int(length) :]
    return bodies


async def run(job: dict) -> dict[str, float]:
    url = urllib.parse.urlsplit(job["url"])
    headers = "".join(f"{name}: {value}\r\n" for name, value in job["headers"].items())
    head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n{headers}Content-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in read_requests(Path(job["requests"]))]
    crowd = Crowd(requests, job["rate"], job["seconds"])
    for _ in range(job["connections"]):
        _, client = await crowd.loop.create_connection(lambda: Client(crowd), url.hostname, url.port)
        crowd.idle.append(client)
    crowd.start()
    try:
        await asyncio.wait_for(crowd.finished.wait(), job["seconds"] + DRAIN_S)
    except TimeoutError:
        crowd.errors += crowd.count - crowd.num_done
    elapsed = time.perf_counter() - crowd.begin_s
    # What got no answer took at least as long as was waited.
    times_ms = np.array(crowd.times_s + [elapsed] * (crowd.count - len(crowd.times_s))) * 1000
    p50_ms, p99_ms = np.percentile(times_ms, (50, 99))
    answered = len(crowd.times_s)
    figures = {"rps": answered / elapsed, "p50_ms": p50_ms, "p99_ms": p99_ms, "errors": crowd.errors}
    return {"requests": answered, "seconds": elapsed, **figures}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
