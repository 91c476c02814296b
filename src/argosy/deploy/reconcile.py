"""Make what runs what should run: the same loop on one machine and, later, on a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from argosy.deploy.ledger import Ledger
from argosy.deploy.node import LocalNode
from argosy.deploy.repository import describe_repository
from argosy.deploy.rollout import Lane, build_worker_spec, name_setting, roll_out
from argosy.deploy.spec import Deployment
from argosy.errors import ArgosyError
from argosy.serve.wire.control_messages import AskBusy, BusyAnswer, PutTable, TableTaken
from argosy.serve.wire.table import RepositoryEntry, Table, TableEntry
from argosy.serve.worker.cores import choose_replicas, count_cores

__all__ = ["Reconciler"]

_PERIOD_S: Final = 1.0
_RETRY_S: Final = 5.0

Message = dict[str, Any]


class Reconciler:
    """Desired state (the ledger) against present state (the node).

    Args:
        ledger: deployments and rollouts.
        node: workers and fronts.
        name_series: gives a deployment's version the index of its counters.
        num_fronts: fronts of this node.
    """

    def __init__(self, ledger: Ledger, node: LocalNode, name_series: Callable[[str, str], int], num_fronts: int) -> None:
        self.ledger = ledger
        self.node = node
        self.wake = asyncio.Event()
        self.is_settled = False
        """The first table is made: before that, fronts keep the one that they have."""
        self.problems: dict[str, str] = {}
        self._num_fronts = num_fronts
        self._name_series = name_series
        self._lanes: dict[str, list[Lane]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._repository: tuple[RepositoryEntry, ...] = ()
        # Epochs grow over restarts of this process, too.
        self._epoch = time.time_ns() // 1_000_000
        self._retry_at_s: dict[str, float] = {}

    # what fronts are told

    async def publish(self) -> None:
        """Send the table to every front, and wait until all serve by it."""
        await self.node.ask_fronts(PutTable(msgspec.to_builtins(self._build_table())), TableTaken)

    def _build_table(self) -> Table:
        self._epoch += 1
        entries: list[TableEntry] = []
        for name, lanes in self._lanes.items():
            described = tuple(
                lane.describe(self.node.workers, self._name_series(name, str(lane.version.number)), self._num_fronts)
                for lane in lanes
            )
            entries.append(TableEntry(name, lanes[-1].spec.model, described))
        return Table(self._epoch, tuple(entries), self._repository)

    # lanes

    def live_lane(self, name: str) -> Lane | None:
        """The lane that holds a deployment's traffic."""
        return next((lane for lane in self._lanes.get(name, []) if not lane.is_draining and lane.weight > 0), None)

    def list_lanes(self, name: str) -> list[Lane]:
        """All lanes of a deployment."""
        return list(self._lanes.get(name, []))

    def add_lane(self, lane: Lane) -> None:
        """Tell fronts of this lane from the next table on."""
        lanes = self._lanes.setdefault(lane.spec.name, [])
        if lane not in lanes:
            lanes.append(lane)

    def drop_lane(self, lane: Lane) -> None:
        """Forget a lane and stop its workers, but for those that another lane uses."""
        lanes = self._lanes.get(lane.spec.name, [])
        if lane in lanes:
            lanes.remove(lane)
        if not lanes:
            self._lanes.pop(lane.spec.name, None)
        used = {name for other in lanes for name in other.workers}
        self.node.stop_workers(self.workers_of(lane) - used)

    def workers_of(self, lane: Lane) -> set[str]:
        """Every worker that was started for this deployment and version."""
        key = (lane.spec.name, lane.version.digest)
        return {name for name, w in self.node.workers.items() if (w.spec["deployment"], w.spec["digest"]) == key}

    async def stop_lane_workers(self, lane: Lane) -> None:
        """Stop a lane's workers and wait until their memory is back."""
        names = self.workers_of(lane)
        lane.workers = []
        self.node.stop_workers(names)
        while any(name in self.node.workers for name in names):
            await self.node.wait_changed(_PERIOD_S)

    def _find_workers(self, lane: Lane) -> tuple[Message, list[str]]:
        """What a lane's workers are told, and the names of those that were told so already."""
        spec = build_worker_spec(lane.spec, lane.version, lane.folder, self._num_fronts)
        names = [name for name, worker in self.node.workers.items() if worker.spec["key"] == spec["key"] and not worker.is_gone]
        return spec, names[: lane.num_replicas or None]

    def ensure_workers(self, lane: Lane) -> list[str]:
        """The names of as many fitting workers as the lane wants; missing ones are started."""
        spec, names = self._find_workers(lane)
        for _ in range((lane.num_replicas or 1) - len(names)):
            names.append(self.node.start_worker(lane.spec.name, lane.version.number, spec))
        return names

    def settle_replicas(self, lane: Lane) -> str:
        """Decide how many replicas a lane has that leaves it open, as its first one was measured; says why."""
        worker = self.node.workers[lane.workers[0]]
        times = (worker.report or {}).get("service_s", {})
        if not times:
            lane.num_replicas = 1
            return "one replica, for nothing was measured"
        row_s = min(seconds / int(rows) for rows, seconds in times.items())
        num_cores = count_cores()
        wanted = choose_replicas(row_s, max(1, num_cores // max(1, lane.spec.threads)))
        further = max(0, self.node.free_memory_bytes()) // max(1, worker.memory_bytes)
        lane.num_replicas = min(wanted, len(lane.workers) + further)
        scarce = f", as memory has no room for {wanted}" if lane.num_replicas < wanted else ""
        return f"{lane.num_replicas} replica(s) on {num_cores} core(s) for {row_s * 1e3:.3g} ms a row{scarce}"

    async def build_environment(self, name: str, runtime: str) -> None:
        """Build the environment of a runtime; meanwhile the status of the deployment says what it waits for.

        Raises:
            FaultError: it cannot be built.
        """
        self.problems[name] = f"waits for the environment of runtime {runtime}, which is being built"
        try:
            await self.node.build_environment(runtime)
        finally:
            self.problems.pop(name, None)

    def keep_measurements(self, lane: Lane, report: Message) -> None:
        """Record what a load has shown."""
        values: dict[str, float] = {"load_s": report["load_s"], "memory_bytes": report["memory_bytes"]}
        for rows, seconds in report.get("service_s", {}).items():
            values[f"service_s_batch_{rows}"] = seconds
        for rows, length, seconds in report.get("service", ()):
            if length:
                values[f"service_s_batch_{rows}_length_{length}"] = seconds
        setting = name_setting(lane.spec)
        self.ledger.store.add_measurements(lane.version, {f"{setting}{name}": value for name, value in values.items()})

    # the loop

    async def run_forever(self) -> None:
        """Reconcile whenever something changed, and every second."""
        while True:
            self.wake.clear()
            try:
                await self._reconcile()
            except ArgosyError as error:
                self.log(f"reconcile: {error}")
            try:
                await asyncio.wait_for(self.wake.wait(), _PERIOD_S)
            except TimeoutError:
                pass

    async def _reconcile(self) -> None:
        deployments = {deployment.spec.name: deployment for deployment in self.ledger.list_deployments()}
        is_changed = await self._add_missing_lanes(deployments)
        gone = [name for name in self._lanes if name not in deployments and name not in self._running]
        lost = [lane for name in gone for lane in self._lanes.pop(name)]
        for name in [name for name in self._lanes if name not in self._running]:
            is_changed |= self._keep_live(name)
        repository = await asyncio.to_thread(describe_repository, self.ledger, deployments, dict(self.problems))
        is_changed |= repository != self._repository
        self._repository = repository
        if is_changed or lost or not self.is_settled:
            self.is_settled = True
            await self.publish()
        for rollout in self.ledger.list_open_rollouts():
            name = rollout.spec.name
            # One that could not even record its steps is not begun again at once.
            is_due = time.monotonic() >= self._retry_at_s.get(name, 0.0)
            if name not in self._running and name in deployments and is_due:
                self._start(name, roll_out(self, rollout))
        await self._stop_orphans()

    async def _add_missing_lanes(self, deployments: dict[str, Deployment]) -> bool:
        """Know every version that holds traffic; also after a restart of this process or of the server."""
        is_changed = False
        for name, deployment in deployments.items():
            is_due = time.monotonic() >= self._retry_at_s.get(name, 0.0)
            if not deployment.is_live or name in self._running or self._lanes.get(name) or not is_due:
                continue
            spec = deployment.spec
            try:
                version = self.ledger.store.get_version(f"{spec.model}@{spec.version}")
                folder = await asyncio.to_thread(self.ledger.store.open_artifact, version)
            except ArgosyError as error:
                self._note_problem(name, str(error))
                continue
            self.add_lane(Lane(spec, version, folder, weight=1.0))
            is_changed = True
        return is_changed

    def _keep_live(self, name: str) -> bool:
        """Have a live version's replicas run; true when the fronts must be told."""
        lane = self.live_lane(name)
        if lane is None or time.monotonic() < self._retry_at_s.get(name, 0.0):
            return False
        missing = [worker for worker in lane.workers if worker not in self.node.workers]
        if lane.workers and not missing:
            return False
        if missing:
            # Refused when it loaded again: the file or the machine has changed under it.
            self._note_problem(name, f"worker {missing[0]} cannot load any more; argosy logs {missing[0]} shows why")
        if not self._can_start(lane):
            return False
        try:
            lane.workers = self.ensure_workers(lane)
        except ArgosyError as error:
            self._note_problem(name, str(error))
            return False
        # Told now, so that requests wait rather than fail; and again when it is known whether rows may be joined.
        self._start(name, self._await_ready(lane))
        return True

    def _can_start(self, lane: Lane) -> bool:
        """Say whether what a lane lacks can be started now; an environment that it needs first begins to be built."""
        name, runtime = lane.spec.name, lane.runtime
        if len(self._find_workers(lane)[1]) >= (lane.num_replicas or 1):
            return True
        try:
            python = self.node.find_python(runtime)
        except ArgosyError as error:
            self._note_problem(name, str(error))
            return False
        if python is None:
            self._start(name, self.build_environment(name, runtime))
        return python is not None

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except ArgosyError as error:
                self._note_problem(name, str(error))
            except Exception as error:  # the edge of a task: told, and tried again after a pause
                traceback.print_exc()
                self._note_problem(name, f"Internal error: {type(error).__name__}: {error}")
            finally:
                del self._running[name]
                self.wake.set()

        self._running[name] = asyncio.create_task(run())

    async def _await_ready(self, lane: Lane) -> None:
        while not all(name in self.node.workers and self.node.workers[name].is_ready for name in lane.workers):
            if any(name not in self.node.workers for name in lane.workers):
                return
            await self.node.wait_changed(_PERIOD_S)
        if not lane.num_replicas:
            self.log(f"deployment {lane.spec.name}: {self.settle_replicas(lane)}")
            lane.workers = self.ensure_workers(lane)
        self.problems.pop(lane.spec.name, None)
        await self.publish()

    async def _stop_orphans(self) -> None:
        """Stop the workers that no lane uses, once they hold no batch."""
        wanted = {worker for lanes in self._lanes.values() for lane in lanes for worker in lane.workers}
        orphans = [n for n, w in self.node.workers.items() if n not in wanted and w.spec["deployment"] not in self._running]
        if not orphans:
            return
        answers = await self.node.ask_fronts(AskBusy((), tuple(orphans)), BusyAnswer)
        if not any(answer.is_busy for answer in answers.values()):
            self.node.stop_workers(orphans)

    def _note_problem(self, name: str, text: str) -> None:
        self.problems[name] = text
        self._retry_at_s[name] = time.monotonic() + _RETRY_S
        self.log(f"deployment {name}: {text}")

    def log(self, text: str) -> None:
        """One line for the control process's log."""
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, file=sys.stderr, flush=True)
