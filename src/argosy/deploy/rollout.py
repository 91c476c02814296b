"""One rollout: check, load, verify, shift, drain, unload; or a swap where both versions do not fit.

Every step may be taken twice: a control process that starts anew runs the rollout from its beginning,
finds the workers that are loaded already, and goes on. Nothing that fails before the shift touches the
version that is live; nothing that fails after it takes the new version's traffic away.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from argosy.deploy.lanes import LATE_S, DesiredLane, Lanes
from argosy.deploy.memory import Need, weigh
from argosy.deploy.node import WorkerHandle
from argosy.deploy.spec import DeploymentSpec, Rollout, choose_runtime
from argosy.deploy.worker_spec import estimate_memory
from argosy.errors import ArgosyError, ConflictError, FaultError, NotAllowedError, StoreError
from argosy.runtimes.base import CODE_RUNTIMES

__all__ = ["roll_out"]

LOAD_TIMEOUT_S: Final = 600.0
MAX_LOAD_DEATHS: Final = 2
_PERIOD_S: Final = 1.0
_POLL_S: Final = 0.02
_SLOWER: Final = 1.5
"""A row that takes so many times as long as was measured before is called slower: another machine, or a busy one."""

Message = dict[str, Any]


async def roll_out(lanes: Lanes, rollout: Rollout) -> None:
    """Carry out a rollout to its end, and record how it went.

    Raises:
        StoreError: a step could not be recorded. What runs stays as it is; the rollout is to be begun again.
    """
    work = _Work(lanes, rollout)
    try:
        if lanes.ledger.start_rollout(rollout):
            await work.run()
    finally:
        work.let_go()


class _Work:
    """A rollout on its way."""

    def __init__(self, lanes: Lanes, rollout: Rollout) -> None:
        self.lanes = lanes
        self.node = lanes.node
        self.ledger = lanes.ledger
        self.rollout = rollout
        self.spec = rollout.spec
        self._loop = asyncio.get_running_loop()
        self._lane: DesiredLane | None = None
        self._is_shifted = False
        """It is recorded that the new version holds the traffic: nothing takes that back."""
        self._is_restoring = False

    async def run(self) -> None:
        """From the first step to the last."""
        started_s = self._loop.time()
        try:
            # What the control process had begun, if it was started again since.
            turn = self.ledger.find_turn(self.rollout)
            await self._retire()
            old = self.lanes.live_lane(self.spec.name)
            if turn is not None and turn.step == "restore" and old is not None:
                await self._restore(old)
                raise _failed(self.spec, "load", f"before the control process was started again: {turn.detail}")
            lane = self._lane = await self._check()
            if old is not None and old.version.digest == lane.version.digest:
                await self._resize(lane, old)
            elif await self._must_swap(lane, old) or (turn is not None and old is not None):
                assert old is not None
                await self._swap(lane, old)
            else:
                await self._load(lane)
                await self._shift(lane, old)
                await self._retire()
            self._say("done", f"version {self.spec.version} is live after {self._loop.time() - started_s:.2f} s")
            self.ledger.end_rollout(self.rollout, "done")
        except ArgosyError as error:
            await self._give_up(error, str(error))
        except Exception as error:  # the edge of a rollout: whatever went wrong, its caller must not wait for ever
            traceback.print_exc()
            await self._give_up(error, f"Internal error: {type(error).__name__}: {error}")

    def let_go(self) -> None:
        """It is over, or will be begun again: the reconcile loop keeps what there is."""
        self.lanes.release_memory(self.spec.name)
        for lane in self.lanes.list_lanes(self.spec.name):
            lane.is_held = False
        self.lanes.touch(self.spec.name)

    async def _give_up(self, error: Exception, reason: str) -> None:
        """Take back what was begun; the version that is live is not touched."""
        if self._is_shifted:
            # The record alone is behind: begun again, the rollout finds all in its place and completes it.
            raise error
        if self._lane is not None:
            self.lanes.remove_lane(self._lane)
            await self.lanes.publish(self.spec.name)
        self._say("failed", reason)
        self.ledger.end_rollout(self.rollout, "failed")

    def _say(self, step: str, detail: str) -> None:
        self.lanes.log(f"rollout {self.rollout.id} of {self.spec.name} to version {self.spec.version}: {step}: {detail}")
        try:
            self.ledger.add_event(self.rollout, step, detail)
        except StoreError as error:
            # To bring the old version back matters more than to have it recorded.
            if not self._is_restoring:
                raise
            self.lanes.log(f"rollout {self.rollout.id}: {error}")

    # check

    async def _check(self) -> DesiredLane:
        """Find the version and what its runtime needs, check every digest, and unpack it."""
        spec, store = self.spec, self.ledger.store
        version = await asyncio.to_thread(store.get_version, f"{spec.model}@{spec.version}")
        if version.manifest.runtime in CODE_RUNTIMES and not spec.allow_code:
            raise NotAllowedError("code_not_allowed", name=version.name, version=version.number, runtime=version.manifest.runtime)
        if (failure := version.manifest.lineage.get("example_error")) is not None:
            raise ConflictError("example_fails", name=version.name, version=version.number, detail=failure)
        await self._prepare(choose_runtime(spec, version.manifest.runtime))
        before_s = self._loop.time()
        folder = await asyncio.to_thread(store.open_artifact, version)
        self._say("check", f"{version.size_bytes} bytes verified in {self._loop.time() - before_s:.2f} s")
        return DesiredLane(spec, version, folder, is_verified=True)

    async def _prepare(self, runtime: str) -> None:
        """Have the interpreter of the version's workers before anything else is touched.

        Raises:
            InputError: `missing_extra`.
            FaultError: its environment cannot be built.
        """
        if self.node.find_python(runtime) is None:
            before_s = self._loop.time()
            self._say("check", f"building the environment of runtime {runtime}; this is done once")
            await self.lanes.build_environment(self.spec.name, runtime)
            self._say("check", f"environment built in {self._loop.time() - before_s:.1f} s")

    async def _must_swap(self, lane: DesiredLane, old: DesiredLane | None) -> bool:
        """Say whether the old version has to leave before the new one can load. Memory that is about to return is waited for.

        Raises:
            ConflictError: the new version does not fit at all.
        """
        deadline_s = self._loop.time() + LOAD_TIMEOUT_S
        is_told = False
        while True:
            need = weigh(self.lanes, lane, old)
            can_wait = self._loop.time() < deadline_s
            if need.fits or (need.fits_instead and not (can_wait and need.will_fit)):
                self.lanes.reserve_memory(self.spec.name, need.needed)
                return not need.fits
            if not (can_wait and need.may_fit):
                raise self._refuse(need)
            if not is_told:
                is_told = True
                self._say("check", f"waits for memory that returns: {_show(need.needed)} needed, {_show(need.free)} free")
            await self.node.wait_changed(_PERIOD_S)

    def _refuse(self, need: Need) -> ConflictError:
        return ConflictError(
            "does_not_fit",
            version=self.spec.version,
            name=self.spec.name,
            needed=_show(need.needed),
            free=_show(need.free + need.freed),
            limit=_show(self.node.memory_limit_bytes),
        )

    # load

    async def _load(self, lane: DesiredLane) -> None:
        """Have all replicas loaded, verified and measured.

        Raises:
            FaultError: one cannot load, or answers its golden examples wrongly.
        """
        await self._start(lane)
        report = self.node.workers[lane.workers[0]].report or {}
        if not self._is_restoring:
            self.lanes.keep_measurements(lane, report)
        self._say("verify", _describe_report(lane, report))
        if not lane.num_replicas:
            self._say("load", self.lanes.settle_replicas(lane))
            if lane.num_replicas != len(lane.workers):
                await self._start(lane)

    async def _start(self, lane: DesiredLane) -> None:
        """Start the workers that are missing, and wait until all are ready and every front can give them requests."""
        lane.workers = self.lanes.ensure_workers(lane)
        workers = [self.node.workers[name] for name in lane.workers]
        deaths = {worker.name: worker.num_seen_deaths for worker in workers}
        self._say("load", f"{len(workers)} worker(s)")
        deadline_s = self._loop.time() + LOAD_TIMEOUT_S
        told: list[str] = []
        while True:
            lacking: list[str] = []
            if not all(worker.is_ready for worker in workers):
                await self.node.wait_changed(_PERIOD_S)
            elif self._is_restoring or not (lacking := await self.lanes.find_lacking(lane)):
                return
            for worker in workers:
                _check_load(lane.spec, worker, deaths[worker.name])
            if self._loop.time() > deadline_s:
                raise _failed(lane.spec, "load", f"{_describe_lack(lacking, lane) or 'not ready'} after {LOAD_TIMEOUT_S:.0f} s")
            # A link ends with its worker.
            if lacking not in ([], told) and all(worker.is_ready for worker in workers):
                told = lacking
                self._say("load", f"waits: {_describe_lack(lacking, lane)}")

    # shift, drain, unload

    def _record_shift(self) -> None:
        self.ledger.shift(self.rollout)
        self._is_shifted = True

    async def _shift(self, lane: DesiredLane, old: DesiredLane | None) -> None:
        """Give the new version all of the traffic, at once."""
        self._record_shift()
        lane.serve()
        if old is not None:
            old.drain(self._loop.time())
        self.lanes.add_lane(lane)
        await self._publish_shift(f"all requests go to version {lane.version.number}")

    async def _publish_shift(self, detail: str) -> None:
        silent = await self.lanes.publish(self.spec.name)
        late = f"; {_list_names(silent)} will do so when it answers again" if silent else ""
        self._say("shift", f"{detail}{late}")

    async def _retire(self) -> None:
        """Let the versions that drain finish what they hold, then give their memory back."""
        for old in self.lanes.list_lanes(self.spec.name):
            if old.is_draining:
                await self._drain(old)
                self.lanes.drop_lane(old)
                await self.lanes.publish(self.spec.name)
                self._say("unload", f"version {old.version.number} unloaded")

    async def _drain(self, lane: DesiredLane) -> None:
        number = lane.version.number
        outcome = await self._wait_idle(f"version {number}", lane.drained_by_s, lanes=[(lane.name, str(number))])
        self._say("drain", outcome)

    async def _wait_idle(
        self, what: str, until_s: float, lanes: Iterable[tuple[str, str]] = (), workers: Iterable[str] = ()
    ) -> str:
        """Wait until every front has died or says that it holds nothing of some lanes and workers. Returns how it ended.

        Never longer than until all requests have passed their deadlines: a front that is stopped keeps nothing for ever.
        """
        told: tuple[str, ...] = ()
        while True:
            asked = await self.node.ask_busy(lanes, workers)
            if not asked.silent and not any(asked.answers.values()):
                return f"{what} holds no request"
            if (left_s := until_s - self._loop.time()) <= 0:
                silent = f"{_list_names(asked.silent)} does not answer, but " if asked.silent else ""
                return f"{silent}the deadlines of all requests to {what} have passed"
            if asked.silent not in ((), told):
                told = asked.silent
                self._say("drain", f"{what} is kept until {_list_names(told)} answers or has died, at most {left_s:.0f} s more")
            await asyncio.sleep(_POLL_S)

    # a swap

    async def _swap(self, lane: DesiredLane, old: DesiredLane) -> None:
        """Unload the old version, then load the new one; requests queue meanwhile, bounded and by deadline."""
        self._say_swap("both versions", lane)
        lane.is_held = old.is_held = True
        lane.serve()
        old.drain(self._loop.time())
        self.lanes.add_lane(lane)
        try:
            await self.lanes.publish(self.spec.name)
            await self._drain(old)
            await self.lanes.end_workers(old, old.workers)
            await self._load(lane)
            self._record_shift()
        except ArgosyError as error:
            await self._bring_back(old, error)
        self.lanes.drop_lane(old)
        await self._publish_shift(f"all requests go to version {lane.version.number}")

    def _say_swap(self, what: str, lane: DesiredLane) -> None:
        needed = _show(estimate_memory(lane.spec, lane.version) * max(1, lane.num_replicas))
        free = _show(self.node.free_memory_bytes())
        self._say("swap", f"{what} do not fit ({needed} needed, {free} free): requests wait while they change")

    async def _bring_back(self, old: DesiredLane, error: ArgosyError) -> NoReturn:
        """After a swap that failed: have the old version again, and raise what went wrong."""
        self._is_restoring = True
        self._say("restore", f"loading version {old.version.number} again, for: {error.message}")
        try:
            await self._restore(old)
        except ArgosyError as second:
            detail = f"{error.message}; then version {old.version.number} could not be loaded again: {second.message}"
            raise _failed(self.spec, "load", detail) from error
        raise error

    async def _restore(self, old: DesiredLane) -> None:
        self._is_restoring = True
        old.is_held = True
        # First the table, so that what waits moves to the old version before the new one's queue is gone.
        old.serve()
        others = [lane for lane in self.lanes.list_lanes(old.name) if lane is not old]
        for lane in others:
            lane.drain(self._loop.time())
        await self.lanes.publish(old.name)
        for lane in others:
            # One of its replicas may have been ready, and have been given requests.
            await self._drain(lane)
            self.lanes.drop_lane(lane)
        await self.lanes.publish(old.name)
        # Of the new version, or of another control process: whoever started them, they may hold batches.
        orphans = self.lanes.list_orphans(old.name)
        await self._end_idle(old, orphans)
        await self.lanes.end_workers(old, orphans)
        await self._load(old)
        await self.lanes.publish(old.name)

    # other settings for the same version

    async def _resize(self, lane: DesiredLane, old: DesiredLane) -> None:
        """The version stays, its settings change: add, replace or remove workers."""
        if await self._must_swap(lane, old):
            await self._swap_workers(lane, old)
        else:
            await self._load(lane)
            self._record_shift()
        surplus = [name for name in old.workers if name not in lane.workers]
        old.resize(lane)
        await self._publish_shift(f"{len(lane.workers)} replica(s), {len(surplus)} of the old ones leave")
        await self._end_idle(old, surplus)

    async def _swap_workers(self, lane: DesiredLane, old: DesiredLane) -> None:
        """End the workers that do not fit the new settings before those that do are started; requests queue meanwhile."""
        self._say_swap("old and new replicas", lane)
        fitting = self.lanes.find_workers(lane)[1]
        leaving = [name for name in old.workers if name not in fitting]
        old.is_held = True
        old.workers = [name for name in old.workers if name in fitting]
        try:
            await self.lanes.publish(old.name)
            await self._end_idle(old, leaving)
            await self.lanes.end_workers(old, leaving)
            await self._load(lane)
            self._record_shift()
        except ArgosyError as error:
            await self._bring_back(old, error)

    async def _end_idle(self, lane: DesiredLane, workers: list[str]) -> None:
        """End workers that no lane has any more, once they hold no batch."""
        if workers:
            until_s = self._loop.time() + lane.timeout_s + LATE_S
            self._say("drain", await self._wait_idle(f"{len(workers)} replica(s)", until_s, workers=workers))
            self.node.stop_workers(workers)


def _show(num_bytes: int) -> str:
    return f"{max(0, num_bytes) >> 20} MiB"


def _list_names(names: Iterable[str]) -> str:
    return " and ".join(names)


def _describe_lack(fronts: Iterable[str], lane: DesiredLane) -> str:
    names = _list_names(fronts)
    return names and f"no memory is shared yet by {names} with {_list_names(lane.workers)} (a descriptor may be lacking)"


def _check_load(spec: DeploymentSpec, worker: WorkerHandle, num_deaths: int) -> None:
    report = worker.report
    if report is not None and report["state"] == "failed":
        if "tensor" in report:
            got, allowed = report.get("got"), report["allowed"]
            fields: dict[str, Any] = {"version": spec.version, "name": spec.name, "tensor": report["tensor"]}
            if spec.precision == "bfloat16" and got is not None:
                raise FaultError("golden_rounded", **fields, got=max(-1.0, 1.0 - got), allowed=1.0 - allowed)
            detail = report.get("how") or f"differs by {got:.3g}, allowed {allowed:.3g}"
            raise FaultError("golden_differs", **fields, detail=detail)
        raise _failed(spec, "load", report["error"])
    if worker.is_gone or worker.num_seen_deaths - num_deaths > MAX_LOAD_DEATHS:
        raise _failed(spec, "load", f"worker {worker.name} died: {worker.last_death}")


def _failed(spec: DeploymentSpec, step: str, detail: str) -> FaultError:
    return FaultError("rollout_failed", name=spec.name, version=spec.version, step=step, detail=detail)


def _describe_report(lane: DesiredLane, report: Message) -> str:
    manifest = lane.version.manifest
    kind = "synthetic " if manifest.golden_is_synthetic else ""
    if "golden_difference" in report:
        golden = f"{manifest.num_golden} {kind}golden examples answered, largest difference {report['golden_difference']:.2g}"
        golden += " (1 - cosine)" if lane.spec.precision == "bfloat16" else ""
    else:
        golden = f"no golden examples, nothing verified; {report.get('trial') or 'it takes no tensors to try it with'}"
    refusal = report["join_refusal"]
    joining = f"rows are not joined: {refusal}" if refusal else f"rows are joined: {report['joining']}"
    if report.get("pad_refusal") and not report["join_refusal"]:
        joining += f", those of different lengths not: {report['pad_refusal']}"
    runtime = " ".join(filter(None, (lane.runtime, lane.spec.precision)))
    speed = _describe_speed(lane, report)
    return f"loaded by {runtime} in {report['load_s']:.2f} s, {report['threads']} thread(s); {golden}; {joining}{speed}"


def _describe_speed(lane: DesiredLane, report: Message) -> str:
    """Say how long a row takes beside what was found when the version was compressed; "" where nothing is known of that."""
    expected_s = lane.version.measurements.get("latency_s")
    found_s = {int(rows): seconds for rows, seconds in report.get("service_s", {}).items()}.get(1)
    if expected_s is None or found_s is None or lane.runtime != lane.version.manifest.runtime or lane.spec.precision:
        return ""
    slower = f": {found_s / expected_s:.1f} times as long" if found_s > _SLOWER * expected_s else ""
    return f"; a row takes {found_s * 1e3:.3g} ms, {expected_s * 1e3:.3g} ms when it was compressed{slower}"
