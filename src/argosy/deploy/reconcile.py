"""Make what runs what should run: the same loop on one machine and, later, on a cluster.

A pass looks at the deployments alone that something has happened to: their rows in the ledger, their workers, a rollout's end,
a pause that is over. One that finds nothing of the kind costs a query, however many deployments there are.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

from argosy.deploy.lanes import LATE_S, DesiredLane, Lanes
from argosy.deploy.ledger import Mark, Standing
from argosy.deploy.repository import describe_name
from argosy.deploy.rollout import roll_out
from argosy.deploy.spec import Deployment
from argosy.deploy.worker_spec import ESCAPE
from argosy.errors import ArgosyError
from argosy.store.manifest import Version

__all__ = ["Reconciler"]

_PERIOD_S: Final = 1.0
_RETRY_S: Final = 5.0
_POLL_S: Final = 0.1

_NOTHING: Final = Standing(None, None, None)


class _Running(NamedTuple):
    """A rollout that is carried out."""

    identifier: int
    task: asyncio.Task[None]


class Reconciler:
    """Desired state (the ledger) against present state (the node).

    Args:
        lanes: of the node, with its ledger.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._ledger = lanes.ledger
        self._node = lanes.node
        self._mark: Mark | None = None
        self._standings: dict[str, Standing] = {}
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: set[str] = set()
        self._ailing: set[str] = set()
        """Deployments whose problem is that of their live version's workers."""
        # When to try again: to have a live version's workers, and to begin a rollout that could not be recorded.
        self._heal_at_s: dict[str, float] = {}
        self._begin_at_s: dict[str, float] = {}
        self._builds: set[str] = set()
        self._sweeps: dict[str, asyncio.Task[None]] = {}

    async def run_forever(self) -> None:
        """Reconcile whenever something changed, and every second."""
        fault = ""
        while True:
            self._lanes.wake.clear()
            try:
                await self.reconcile()
                fault = ""
            except ArgosyError as error:
                if str(error) != fault:
                    fault = str(error)
                    self._lanes.log(f"reconcile: {fault}")
            try:
                async with asyncio.timeout(_PERIOD_S):
                    await self._lanes.wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """One pass."""
        names = self._find_changed()
        for name in sorted(names):
            try:
                await self._look_at(name)
            except ArgosyError as error:
                self._note_ailing(name, str(error))
        try:
            self._tell(names)
        except ArgosyError:
            self._pending |= names
            raise
        for name in names:
            self._begin_rollout(name)
            self._sweep(name)

    def _find_changed(self) -> set[str]:
        """The names that something has happened to since the last pass."""
        now_s = asyncio.get_running_loop().time()
        for pauses in (self._heal_at_s, self._begin_at_s):
            for name in [name for name, at_s in pauses.items() if at_s <= now_s]:
                del pauses[name]
                self._pending.add(name)
        self._pending |= self._lanes.take_touched() | self._node.workers.take_changed()
        self._mark, changed = self._read_ledger()
        names = self._pending | changed
        self._pending = set()
        return names

    def _read_ledger(self) -> tuple[Mark, set[str]]:
        mark, changed = self._ledger.read_changes(self._mark)
        if self._mark is None or not mark.follows(self._mark):
            # The start, or a database that was put in the place of another: whatever is known or runs may be no more.
            changed |= self._standings.keys() | {worker.spec["deployment"] for worker in self._node.workers.values()}
        if changed:
            self._standings.update(self._ledger.read_standings(changed))
        return mark, changed

    def _tell(self, names: set[str]) -> None:
        """Have fronts told what has become of these names."""
        lanes = self._lanes
        entries = {
            name: describe_name(self._ledger, name, self._standings.get(name, _NOTHING), lanes.problems.get(name, ""))
            for name in names
        }
        is_changed = lanes.table.update({name: lanes.describe(name) for name in names}, entries)
        if is_changed or not lanes.settled.is_set():
            self._node.tell_table(lanes.table)
        lanes.settled.set()

    # the version that is live

    async def _look_at(self, name: str) -> None:
        """Have a deployment's live version known, and its workers there."""
        lanes = self._lanes
        deployment, rollout, _ = self._standings.get(name, _NOTHING)
        running = self._running.get(name)
        if running is not None and (rollout is None or rollout.id != running.identifier):
            # The deployment was removed. When the task has ended, this name is looked at again.
            running.task.cancel()
            return
        if running is None:
            if deployment is None or not deployment.is_live:
                if lanes.forget(name) or deployment is None:
                    self._ailing.discard(name)
                    lanes.clear_problem(name)
                return
            if lanes.live_lane(name) is None and name not in self._heal_at_s:
                # What may be there was left by a rollout that broke off.
                lanes.forget(name)
                await self._add_live(name, deployment)
        lane = lanes.live_lane(name)
        if lane is not None and not lane.is_held and name not in self._heal_at_s:
            await self._heal(lane)

    async def _add_live(self, name: str, deployment: Deployment) -> None:
        """Know the version that holds a deployment's traffic; also after a restart of this process or of the server."""
        spec, rollout = deployment.spec, self._standings[name].rollout
        version = self._ledger.store.get_version(f"{spec.model}@{spec.version}")
        folder = self._find_folder(name, version)
        is_verified = folder is None
        if folder is None:
            folder = await asyncio.to_thread(self._ledger.store.open_artifact, version)
        lane = DesiredLane(spec, version, folder, is_verified)
        lane.workers = self._lanes.find_workers(lane)[1]
        lane.serve()
        if rollout is not None and rollout.spec != spec and self._ledger.find_turn(rollout) is not None:
            # A rollout had begun to change its workers, and goes on from there.
            lane.is_held = True
        self._lanes.add_lane(lane)

    def _find_folder(self, name: str, version: Version) -> Path | None:
        """Where workers that run the version have its files: these were checked when they were loaded."""
        workers = self._node.workers.of(name)
        return next((Path(worker.spec["folder"]) for worker in workers if worker.spec["digest"] == version.digest), None)

    async def _heal(self, lane: DesiredLane) -> None:
        """Have the workers of a live version: as many as it wants, and what they have shown of it."""
        lanes, name = self._lanes, lane.name
        if lost := [worker for worker in lane.workers if worker not in self._node.workers]:
            # Refused when it loaded again: the file or the machine has changed under it.
            lane.is_verified = False
            lane.workers = [worker for worker in lane.workers if worker not in lost]
            self._note_ailing(name, f"worker {lost[0]} cannot load any more; argosy logs {lost[0]} shows why")
        if len(lane.workers) < (lane.num_replicas or 1):
            if not await self._can_start(lane) or lane is not lanes.live_lane(name):
                return
            lane.workers = lanes.ensure_workers(lane)
        self._note_escape(lane)
        if not lane.num_replicas and self._node.workers[lane.workers[0]].is_ready:
            lanes.log(f"deployment {name}: {lanes.settle_replicas(lane)}")
            lane.workers = lanes.ensure_workers(lane)
        if name in self._ailing and all(self._node.workers[worker].is_ready for worker in lane.workers):
            self._ailing.discard(name)
            lanes.clear_problem(name)

    def _note_escape(self, lane: DesiredLane) -> None:
        """Keep with a version that its rows do influence one another, as a worker has found while it served."""
        reports = [worker.report for name in lane.workers if (worker := self._node.workers.get(name)) is not None]
        found = [report["escape"] for report in reports if report is not None and "escape" in report]
        if found and not lane.has_escaped:
            lane.has_escaped = True
            self._lanes.log(
                f"deployment {lane.name}: rows of version {lane.version.number} influence one another, and are not joined"
            )
            self._ledger.store.add_measurements(lane.version, {ESCAPE: max(found)})

    async def _can_start(self, lane: DesiredLane) -> bool:
        """Say whether what a lane lacks can be started now; an environment that it needs first begins to be built.

        Raises:
            StoreError: the version's files are damaged.
            ArgosyError: as `Node.find_python`.
        """
        if self._node.find_python(lane.runtime) is None:
            self._build(lane.name, lane.runtime)
            return False
        if not lane.is_verified:
            lane.folder = await asyncio.to_thread(self._ledger.store.open_artifact, lane.version)
            lane.is_verified = True
        return True

    def _build(self, name: str, runtime: str) -> None:
        if name not in self._builds:
            self._builds.add(name)
            self._spawn(self._build_environment(name, runtime))

    async def _build_environment(self, name: str, runtime: str) -> None:
        try:
            await self._lanes.build_environment(name, runtime)
        except ArgosyError as error:
            self._note_ailing(name, str(error))
        finally:
            self._builds.discard(name)
            self._lanes.touch(name)

    def _note_ailing(self, name: str, text: str) -> None:
        self._ailing.add(name)
        self._heal_at_s[name] = asyncio.get_running_loop().time() + _RETRY_S
        self._lanes.note_problem(name, text)

    # rollouts

    def _begin_rollout(self, name: str) -> None:
        """Begin the rollout that a deployment waits for; one that could not even record its steps not at once again."""
        deployment, rollout, _ = self._standings.get(name, _NOTHING)
        if deployment is None or rollout is None or name in self._running or name in self._begin_at_s:
            return

        async def run() -> None:
            if name not in self._ailing:
                self._lanes.clear_problem(name)
            try:
                await roll_out(self._lanes, rollout)
            except ArgosyError as error:
                self._pause_rollout(name, str(error))
            except Exception as error:  # the edge of a task: told, and tried again after a pause
                traceback.print_exc()
                self._pause_rollout(name, f"Internal error: {type(error).__name__}: {error}")
            finally:
                del self._running[name]
                self._lanes.touch(name)

        self._running[name] = _Running(rollout.id, self._spawn(run()))

    def _pause_rollout(self, name: str, text: str) -> None:
        self._begin_at_s[name] = asyncio.get_running_loop().time() + _RETRY_S
        self._lanes.note_problem(name, text)

    # workers that nobody needs

    def _sweep(self, name: str) -> None:
        """End a deployment's workers that no lane uses, once they hold no batch."""
        if name not in self._sweeps and self._list_orphans(name):
            self._sweeps[name] = self._spawn(self._end_orphans(name))

    def _list_orphans(self, name: str) -> set[str]:
        rollout = self._standings.get(name, _NOTHING).rollout
        orphans = {worker: self._node.workers[worker].spec for worker in self._lanes.list_orphans(name)}
        if rollout is None:
            return set(orphans)
        # Those of the version that is rolled out are what its lane is made of.
        wanted = (rollout.spec.model, rollout.spec.version)
        return {worker for worker, spec in orphans.items() if (spec["model"], spec["version"]) != wanted}

    async def _end_orphans(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        since_s: dict[str, float] = {}
        try:
            while orphans := self._list_orphans(name):
                for worker in orphans:
                    since_s.setdefault(worker, loop.time())
                asked = await self._node.ask_busy([], sorted(orphans))
                is_idle = not asked.silent and not any(asked.answers.values())
                # Asked while others worked: what has a use by now stays.
                for worker in orphans & self._list_orphans(name):
                    timeout_s = self._node.workers[worker].spec.get("timeout_s", 0.0)
                    if is_idle or loop.time() > since_s[worker] + timeout_s + LATE_S:
                        self._node.stop_workers([worker])
                await asyncio.sleep(_POLL_S)
        finally:
            del self._sweeps[name]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
