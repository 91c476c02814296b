"""The lanes of all deployments as they should be: which versions fronts know of, and which workers these have.

What changes a lane (a rollout, the reconcile loop) says so here, and has fronts told.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from argosy.deploy.ledger import Ledger
from argosy.deploy.node import Node, Workers
from argosy.deploy.spec import DeploymentSpec, choose_runtime
from argosy.deploy.table_log import TableLog
from argosy.deploy.worker_spec import build_worker_spec, estimate_memory, name_setting
from argosy.errors import FaultError
from argosy.serve.wire.table import LaneEntry, TableEntry
from argosy.serve.worker.cores import choose_replicas, count_cores
from argosy.store.manifest import Version

__all__ = ["LATE_S", "DesiredLane", "Lanes"]

_PERIOD_S: Final = 1.0
_END_TIMEOUT_S: Final = 60.0
"""A worker that was told to end is killed after 5 s; one that is there after this long will not go."""
_LINKED_S: Final = 1.0
"""Within which a front that has room for it is linked with a worker that is ready."""
_POLL_S: Final = 0.02
LATE_S: Final = 1.0
"""After a deadline, for the answer that says so."""

Message = dict[str, Any]


@dataclass(eq=False)
class DesiredLane:
    """A version of a deployment, as the control plane wants it served."""

    spec: DeploymentSpec
    version: Version
    folder: Path
    """The version's files."""
    is_verified: bool = False
    """Every digest of them was checked, and no worker has been refused since."""
    weight: float = 0.0
    is_draining: bool = False
    drained_from_s: float = 0.0
    """When its traffic was taken from it, on the event loop's clock."""
    is_held: bool = False
    """A swap is on its way, and decides when its workers start: nothing else starts them."""
    is_ailing: bool = False
    """Its workers could not be had, or not all load, since it last had all of them."""
    num_replicas: int = 0
    """How many it has; 0 while that is left open, and none has been measured."""
    workers: list[str] = field(default_factory=list[str])
    report: Message = field(default_factory=dict[str, Any])
    """What a worker that loaded last has shown; kept while one is being replaced."""
    has_escaped: bool = False
    """It is recorded that its rows influence one another, which trials had not shown."""
    timeout_s: float = 0.0
    """The longest deadline that it ever gave a request."""

    def __post_init__(self) -> None:
        self.num_replicas = self.num_replicas or self.spec.replicas
        self.timeout_s = self.spec.timeout_s

    @property
    def name(self) -> str:
        """Of its deployment."""
        return self.spec.name

    @property
    def runtime(self) -> str:
        """What runs the version here."""
        return choose_runtime(self.spec, self.version.manifest.runtime)

    @property
    def drained_by_s(self) -> float:
        """When it holds no request any more, whatever fronts say: all that it was given have passed their deadlines."""
        return self.drained_from_s + self.timeout_s + LATE_S

    def serve(self) -> None:
        """Take the deployment's traffic, from the next table on."""
        self.weight, self.is_draining = 1.0, False

    def drain(self, now_s: float) -> None:
        """Take no further requests, from the next table on."""
        if not self.is_draining:
            self.weight, self.is_draining, self.drained_from_s = 0.0, True, now_s

    def resize(self, other: DesiredLane) -> None:
        """Go on with the settings and the workers of a lane of the same version."""
        self.timeout_s = max(self.timeout_s, other.timeout_s)
        self.spec, self.workers, self.num_replicas = other.spec, other.workers, other.num_replicas

    def count_reloading_bytes(self, workers: Workers, kept: Collection[str] = ()) -> int:
        """What it will use beyond what it does, because workers of it have died.

        Args:
            workers: of the node.
            kept: those whose memory is counted elsewhere.
        """
        num_loaded = sum(worker in kept or workers.measure(worker) > 0 for worker in self.workers)
        if (num_lacking := (self.num_replicas or 1) - num_loaded) <= 0:
            return 0
        return num_lacking * (int(self.report.get("memory_bytes", 0)) or estimate_memory(self.spec, self.version))

    def is_down(self, workers: Workers) -> bool:
        """Say whether no worker of it is ready, and none is to be expected soon; while a swap is on its way, one is."""
        own = [worker for name in self.workers if (worker := workers.get(name)) is not None]
        if self.is_held or self.is_draining or any(worker.is_ready for worker in own):
            return False
        return self.is_ailing or not any(worker.is_expected for worker in own)

    def describe(self, workers: Workers, series: int, num_fronts: int) -> LaneEntry:
        """What fronts are told."""
        reports = [worker.report for name in self.workers if (worker := workers.get(name)) is not None and worker.is_ready]
        if reports:
            # Workers on one machine agree; if not, the one that refuses counts.
            self.report = next((report for report in reports if report and report["join_refusal"]), reports[0] or {})
        manifest = self.version.manifest
        return LaneEntry(
            version=str(self.version.number),
            weight=self.weight,
            is_draining=self.is_draining,
            series=series,
            signature=manifest.signature,
            platform=self.runtime,
            workers=tuple(self.workers),
            max_batch_rows=self.spec.max_batch_rows,
            can_join=bool(self.report) and not self.report["join_refusal"],
            can_pad=self.report.get("pad_refusal") == "",
            join_refusal=self.report.get("join_refusal", ""),
            joining=self.report.get("joining", ""),
            pad_refusal=self.report.get("pad_refusal", ""),
            service=tuple((rows, length, seconds) for rows, length, seconds in self.report.get("service", ())),
            is_repeatable=manifest.repeatable,
            timeout_s=self.spec.timeout_s,
            max_queue_rows=self.spec.max_queue_rows,
            max_queue_bytes=self.spec.max_queue_bytes,
            created_s=int(datetime.fromisoformat(self.version.created).timestamp()),
            is_down=self.is_down(workers),
            max_streams=max(1, self.spec.max_streams // num_fronts) if manifest.options.get("raw") else 0,
        )


class Lanes:
    """All lanes, their workers, and the table that tells fronts of them.

    Args:
        ledger: deployments and rollouts.
        node: workers and fronts.
        name_series: gives a deployment's version the index of its counters.
        num_fronts: fronts of this node.
    """

    def __init__(self, ledger: Ledger, node: Node, name_series: Callable[[str, str], int], num_fronts: int) -> None:
        self.ledger = ledger
        self.node = node
        self.wake = asyncio.Event()
        """Set when the reconcile loop has something to look at."""
        self.settled = asyncio.Event()
        """Every version that holds traffic is known: before that, fronts keep the table that they have."""
        self.problems: dict[str, str] = {}
        """What keeps a deployment from what it should be."""
        self.table = TableLog()
        self._num_fronts = num_fronts
        self._name_series = name_series
        self._lanes: dict[str, list[DesiredLane]] = {}
        self._touched: set[str] = set()
        self._reserved: dict[str, int] = {}

    # what fronts are told

    async def publish(self, name: str) -> tuple[str, ...]:
        """Tell fronts how a deployment's lanes are now, and wait until they serve by it; returns those that are silent."""
        await self.settled.wait()
        self.table.update({name: self.describe(name)})
        self.node.tell_table(self.table)
        return await self.node.wait_told()

    def describe(self, name: str) -> TableEntry | None:
        """What fronts are told of a deployment; None if it has no lane."""
        lanes = self._lanes.get(name)
        if not lanes:
            return None
        described = (
            lane.describe(self.node.workers, self._name_series(name, str(lane.version.number)), self._num_fronts)
            for lane in lanes
        )
        return TableEntry(name, lanes[-1].spec.model, tuple(described))

    # what the reconcile loop is told

    def touch(self, *names: str) -> None:
        """Have the reconcile loop look at deployments."""
        self._touched.update(names)
        self.wake.set()

    def take_touched(self) -> set[str]:
        """Deployments that are to be looked at, since this was last called."""
        touched, self._touched = self._touched, set()
        return touched

    def note_problem(self, name: str, text: str) -> None:
        """Say what keeps a deployment from what it should be."""
        if self.problems.get(name) != text:
            self.problems[name] = text
            self.touch(name)
            self.log(f"deployment {name}: {text}")

    def clear_problem(self, name: str) -> None:
        """It is as it should be."""
        if self.problems.pop(name, None) is not None:
            self.touch(name)

    # lanes

    def list_names(self) -> list[str]:
        """Deployments that have lanes."""
        return list(self._lanes)

    def list_lanes(self, name: str) -> list[DesiredLane]:
        """All lanes of a deployment."""
        return list(self._lanes.get(name, ()))

    def live_lane(self, name: str) -> DesiredLane | None:
        """The lane that holds a deployment's traffic."""
        return next((lane for lane in self._lanes.get(name, ()) if not lane.is_draining and lane.weight > 0), None)

    def add_lane(self, lane: DesiredLane) -> None:
        """Tell fronts of this lane from the next table on."""
        lanes = self._lanes.setdefault(lane.name, [])
        if lane not in lanes:
            lanes.append(lane)

    def remove_lane(self, lane: DesiredLane) -> None:
        """Forget a lane. Workers that no lane has any more are ended by the reconcile loop, once they hold no batch."""
        lanes = self._lanes.get(lane.name, [])
        if lane in lanes:
            lanes.remove(lane)
        if not lanes:
            self._lanes.pop(lane.name, None)

    def drop_lane(self, lane: DesiredLane) -> None:
        """Forget a lane that holds no request, and end its workers."""
        self.remove_lane(lane)
        orphans = self.list_orphans(lane.name)
        self.node.stop_workers([worker for worker in lane.workers if worker in orphans])

    def forget(self, name: str) -> bool:
        """Forget all lanes of a deployment; returns whether there were any."""
        return self._lanes.pop(name, None) is not None

    # workers

    def list_orphans(self, name: str) -> list[str]:
        """Workers of a deployment that no lane uses, and that were not told to end."""
        used = {worker for lane in self._lanes.get(name, ()) for worker in lane.workers}
        return [worker.name for worker in self.node.workers.of(name) if worker.name not in used and not worker.is_stopping]

    def find_workers(self, lane: DesiredLane) -> tuple[Message, list[str]]:
        """What a lane's workers are told, and the names of those that were told so already.

        Raises:
            StoreError: its files are not there any more.
        """
        spec = build_worker_spec(lane.spec, lane.version, lane.folder, self._num_fronts)
        usable = [worker for worker in self.node.workers.of(lane.name) if not (worker.is_gone or worker.is_stopping)]
        fitting = [worker for worker in usable if worker.spec["key"] == spec["key"]]
        # Those that it has stay with it, and one that answers comes before one that loads.
        fitting.sort(key=lambda worker: (worker.name not in lane.workers, not worker.is_ready))
        return spec, [worker.name for worker in fitting][: lane.num_replicas or None]

    def ensure_workers(self, lane: DesiredLane) -> list[str]:
        """The names of as many fitting workers as the lane wants; missing ones are started.

        Raises:
            StoreError: as `find_workers`.
            ArgosyError: as `Node.start_worker`.
        """
        spec, names = self.find_workers(lane)
        for _ in range((lane.num_replicas or 1) - len(names)):
            names.append(self.node.start_worker(lane.name, lane.version.number, spec))
        return names

    async def find_lacking(self, lane: DesiredLane) -> list[str]:
        """The fronts that could not give requests to each of a lane's workers, which are ready.

        A front that is silent is not waited for: it is replaced, or finds its links before it goes on.
        """
        until_s = asyncio.get_running_loop().time() + _LINKED_S
        is_raw = bool(lane.version.manifest.options.get("raw"))
        while True:
            asked = await self.node.ask_links(lane.name, lane.workers, is_raw=is_raw)
            fronts = sorted(front for front, lacking in asked.answers.items() if lacking)
            if not fronts or asyncio.get_running_loop().time() > until_s:
                return fronts
            await asyncio.sleep(_POLL_S)

    async def end_workers(self, lane: DesiredLane, names: Iterable[str]) -> None:
        """End workers of a lane's deployment that hold no request, and wait until their memory is back.

        Raises:
            FaultError: one does not end.
        """
        leaving = list(names)
        lane.workers = [name for name in lane.workers if name not in leaving]
        self.node.stop_workers(leaving)
        deadline_s = asyncio.get_running_loop().time() + _END_TIMEOUT_S
        while left := [name for name in leaving if name in self.node.workers]:
            if asyncio.get_running_loop().time() > deadline_s:
                detail = f"worker {left[0]} does not end"
                raise FaultError("rollout_failed", name=lane.name, version=lane.version.number, step="unload", detail=detail)
            await self.node.wait_changed(_PERIOD_S)

    def settle_replicas(self, lane: DesiredLane) -> str:
        """Decide how many replicas a lane has that leaves it open, as its first one was measured; says why."""
        worker = self.node.workers[lane.workers[0]]
        times = (worker.report or {}).get("service_s", {})
        if not times:
            lane.num_replicas = 1
            return "one replica, for nothing was measured"
        row_s = min(seconds / int(rows) for rows, seconds in times.items())
        num_cores = count_cores()
        wanted = choose_replicas(row_s, max(1, num_cores // max(1, lane.spec.threads)))
        further = max(0, self.free_memory_bytes(lane.name)) // max(1, worker.memory_bytes)
        lane.num_replicas = min(wanted, len(lane.workers) + further)
        scarce = f", as memory has no room for {wanted}" if lane.num_replicas < wanted else ""
        return f"{lane.num_replicas} replica(s) on {num_cores} core(s) for {row_s * 1e3:.3g} ms a row{scarce}"

    def keep_measurements(self, lane: DesiredLane, report: Message) -> None:
        """Record what a load has shown."""
        values: dict[str, float] = {"load_s": report["load_s"], "memory_bytes": report["memory_bytes"]}
        for rows, seconds in report.get("service_s", {}).items():
            values[f"service_s_batch_{rows}"] = seconds
        for rows, length, seconds in report.get("service", ()):
            if length:
                values[f"service_s_batch_{rows}_length_{length}"] = seconds
        setting = name_setting(lane.spec)
        self.ledger.store.add_measurements(lane.version, {f"{setting}{name}": value for name, value in values.items()})

    async def build_environment(self, name: str, runtime: str) -> None:
        """Build the environment of a runtime; meanwhile the status of the deployment says what it waits for.

        Raises:
            FaultError: it cannot be built.
        """
        self.note_problem(name, f"waits for the environment of runtime {runtime}, which is being built")
        try:
            await self.node.build_environment(runtime)
        finally:
            self.clear_problem(name)

    # memory

    def reserve_memory(self, name: str, num_bytes: int) -> None:
        """Keep memory for what a deployment's rollout is about to load."""
        self._reserved[name] = num_bytes

    def release_memory(self, name: str) -> None:
        """The rollout is over: what it has loaded is measured by now."""
        self._reserved.pop(name, None)

    def free_memory_bytes(self, name: str) -> int:
        """What further workers of a deployment may use. What others load soon, for the first time or again, is not free."""
        return self.node.free_memory_bytes() - self.count_reserved_bytes(name) - self._count_reloading_bytes(name)

    def _count_reloading_bytes(self, name: str) -> int:
        others = [lane for lanes in self._lanes.values() for lane in lanes if lane.name not in (name, *self._reserved)]
        return sum(lane.count_reloading_bytes(self.node.workers) for lane in others if not lane.is_draining)

    def count_reserved_bytes(self, name: str) -> int:
        """What the rollouts of other deployments are about to load: less, if they fail."""
        return sum(kept for other, kept in self._reserved.items() if other != name)

    def is_loading(self, name: str) -> bool:
        """Say whether a rollout of a deployment has begun to load its version."""
        return name in self._reserved

    def log(self, text: str) -> None:
        """One line for the control process's log."""
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, file=sys.stderr, flush=True)
