"""Measure candidates as they will be used: a real server with a home of its own, a client in another process."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from argosy.errors import ArgosyError
from argosy.server import Server, serve
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import OWN_FILES, Version
from argosy.tune.candidate import Candidate
from argosy.tune.client import run_client, write_requests
from argosy.tune.load import Job
from argosy.tune.traffic import Requests, Traffic, build_schedule

__all__ = ["Bench", "Measurement"]

_NAME: Final = "tuned"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_WARM_S: Final = 0.3
_FEWER: Final = 4
"""Where so many clients wait too long, a fourth of them is tried: queueing makes latency grow with their number."""
_MAX_FAILED: Final = 0.01


class Measurement(msgspec.Struct, frozen=True):
    """What a client saw of a candidate."""

    problem: str = ""
    """Why it could not be measured."""
    connections: int = 0
    """At which it was: fewer than asked for, where more make latency miss its limit."""
    requests_per_s: float = 0.0
    rows_per_s: float = 0.0
    good_per_s: float = 0.0
    """Answers within the limit, by the second."""
    p50_s: float | None = None
    p99_s: float | None = None
    """None stands for longer than the measurement."""
    is_in_time: bool = False
    """p99 keeps the limit, and no more than 1 % failed."""
    server_cpu_s: float = 0.0
    """CPU time of all server processes, by request."""
    load_cpu: float = 0.0
    """Cores that the client took."""
    other_cpu: float = 0.0
    """Cores that processes took which have nothing to do with it: they make the figures worse than they are."""
    memory_bytes: float = 0.0
    """Of all workers."""


class Bench:
    """A context: servers and clients for one version and its traffic.

    Args:
        version: what is served.
        folder: its files, checked.
        golden: its examples.
        traffic: who asks.
        requests: for what.
        work: a folder for the home of the servers.
        limit_s: for p99.
    """

    def __init__(
        self, version: Version, folder: Path, golden: Golden, traffic: Traffic, requests: Requests, work: Path, limit_s: float
    ) -> None:
        self._traffic, self._requests, self._limit_s = traffic, requests, limit_s
        self._home, self._file = work / "home", work / "requests.bin"
        work.mkdir(exist_ok=True)
        self._sizes = write_requests(self._file, requests.arrays, version.manifest.signature, _NAME)
        _publish(Store(self._home), version, folder, golden)
        self._stack = ExitStack()
        self._server: Server | None = None
        self._num_fronts = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def measure(self, candidate: Candidate, seconds: float) -> Measurement:
        """Deploy a candidate and send it the traffic.

        Args:
            candidate: what to deploy.
            seconds: how long answers are counted; where latency misses its limit, so long again with fewer clients.

        Raises:
            FaultError: `load_failed`, the client did not do its work.
        """
        server = self._start(candidate.num_fronts)
        try:
            # The caller has seen to it that this version's code may run.
            server.deploy(_NAME, **candidate.settings, allow_code=True)
        except ArgosyError as error:
            return Measurement(problem=error.message[:400])
        connections = self._traffic.connections
        while True:
            found = self._load(server, connections, seconds)
            if found.is_in_time or found.problem or connections == 1 or self._traffic.is_open:
                return found
            connections = max(1, connections // _FEWER)

    def _start(self, num_fronts: int) -> Server:
        """Have a server with so many fronts; another one is stopped."""
        if self._server is None or num_fronts != self._num_fronts:
            self._stack.close()
            self._server = self._stack.enter_context(serve(home=self._home, num_fronts=num_fronts, host="127.0.0.1"))
            self._num_fronts = num_fronts
        return self._server

    def _load(self, server: Server, connections: int, seconds: float) -> Measurement:
        warm_s = _WARM_S
        schedule = build_schedule(self._traffic, self._requests, warm_s + seconds)
        job: Job = {
            "port": int(server.url.rpartition(":")[2]),
            "file": str(self._file),
            "sizes": self._sizes,
            "rows": self._requests.rows,
            "connections": connections,
            "warm_s": warm_s,
            "seconds": seconds,
            "schedule": schedule,
            "limit_s": self._limit_s,
        }
        cpu, busy, started = _family_cpu_s(server.pid), _machine_cpu_s(), time.monotonic()
        found = run_client(job)
        cpu, busy, elapsed = _family_cpu_s(server.pid) - cpu, _machine_cpu_s() - busy, time.monotonic() - started
        if found["error"] and found["failed"] == 1.0:
            return Measurement(problem=found["error"][:400])
        p99_s = found["p99_s"]
        counted = max(1.0, found["requests_per_s"] * (warm_s + seconds))
        with server.admin() as admin:
            lanes = admin.status()["deployments"][0]["lanes"]
        return Measurement(
            connections=connections,
            **{name: found[name] for name in ("requests_per_s", "rows_per_s", "good_per_s", "p50_s", "p99_s", "load_cpu")},
            is_in_time=p99_s is not None and p99_s <= self._limit_s and found["failed"] <= _MAX_FAILED,
            server_cpu_s=cpu / counted,
            other_cpu=max(0.0, (busy - cpu) / elapsed - found["load_cpu"]),
            memory_bytes=sum(worker["memory_bytes"] for lane in lanes for worker in lane["workers"]),
        )


def _publish(store: Store, version: Version, folder: Path, golden: Golden) -> None:
    """Make the version one of the private home's."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    manifest = version.manifest
    store.publish(
        _NAME,
        {name: path for name, path in files.items() if name not in OWN_FILES},
        signature=manifest.signature,
        runtime=manifest.runtime,
        entry=manifest.entry,
        repeatable=manifest.repeatable,
        golden=golden,
        golden_is_synthetic=manifest.golden_is_synthetic,
        options=manifest.options,
    )


def _family_cpu_s(pid: int) -> float:
    """CPU time of a process and all below it, of those that ended as well; one that ends meanwhile counts nothing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    ticks = sum(int(field) for field in fields[11:15])
    return ticks / _TICKS + sum(_family_cpu_s(int(child)) for child in children)


def _machine_cpu_s() -> float:
    """CPU time of all processes of the machine."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / _TICKS
