"""A node in memory: workers that load, refuse and die as a test says, fronts that serve by the tables that they are told.

`Machine` is what outlives a control process; `MadeUpNode` is one control process' view of it. Whatever must never happen is
noted in `Machine.violations`, whoever caused it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from argosy.deploy.front_link import SILENT_S
from argosy.deploy.node import Asked, WorkerHandle, Workers
from argosy.deploy.table_log import TableLog
from argosy.errors import FaultError
from argosy.serve.node.family import STABLE_S
from argosy.serve.wire.control_messages import ArrivalsAnswer, LaneStats
from argosy.serve.wire.table import LaneEntry, RepositoryEntry, Table, TableEntry, merge_repository

Message = dict[str, Any]

MB = 1 << 20


class Killed(BaseException):
    """The control process ends here, without another word."""


@dataclass(eq=False)
class Behaviour:
    """What workers of a version do."""

    memory_bytes: int = 100 * MB
    load_s: float = 0.5
    end_s: float = 0.1
    refusal: str = ""
    """It says so instead of loading, and is not started again."""
    golden_difference: float = 0.0
    """Beyond 0, it refuses for that."""
    num_deaths: int = 0
    """How often it dies while it loads, before it does."""
    load_log: str = "about to die"
    service_s: dict[str, float] = field(default_factory=dict)
    join_refusal: str = ""


@dataclass(eq=False)
class Worker:
    """A process."""

    name: str
    spec: Message
    pid: int
    report: Message | None = None
    num_deaths: int = 0
    """As the supervisor counts: anew after it has run for some time."""
    num_failed_loads: int = 0
    started_s: float = 0.0
    is_stopping: bool = False


@dataclass(eq=False)
class Request:
    """One of a client."""

    name: str
    deadline_s: float
    busy_s: float
    version: str = ""
    worker: str = ""
    """That answers it; "" while it waits."""
    outcome: str = ""


class Front:
    """A front: it answers by the last table that it took, and holds requests."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.epoch = 0
        self.entries: dict[str, TableEntry] = {}
        self.repository: tuple[RepositoryEntry, ...] = ()
        self.is_dead = False
        self.stopped_s: float | None = None
        self.late_s = 0.0
        """How long it takes to take a table, and to answer."""
        self.known: set[str] | None = None
        """Workers that it shares memory with, while it has no descriptor left for others; None while it has."""
        self.requests: list[Request] = []
        self.num_tables = 0
        self.num_whole = 0
        self.num_bytes = 0

    @property
    def answers(self) -> bool:
        return not self.is_dead and self.stopped_s is None

    def apply(self, table: Table) -> None:
        """As `Router.apply`."""
        self.num_tables += 1
        self.num_whole += not table.base
        if table.base not in (0, self.epoch):
            return
        self.epoch = table.epoch
        self.repository = merge_repository(self.repository, table)
        if not table.base:
            self.entries = {}
        for name in table.removed:
            self.entries.pop(name, None)
        self.entries.update((entry.name, entry) for entry in table.deployments)
        self.move()

    def read_index(self, name: str) -> tuple[str, str] | None:
        """Version and reason of a name in the repository's index."""
        return next(((entry.version, entry.reason) for entry in self.repository if entry.name == name), None)

    def find_lane(self, name: str) -> LaneEntry | None:
        """Where the next request for a deployment goes."""
        entry = self.entries.get(name)
        return next((lane for lane in entry.lanes if lane.weight > 0), None) if entry is not None else None

    def put(self, request: Request) -> None:
        lane = self.find_lane(request.name)
        if lane is None:
            request.outcome = "refused: not deployed"
            return
        request.version = lane.version
        self.requests.append(request)
        self.move()

    def move(self) -> None:
        """Send what waits to replicas that are ready; what waits where no replicas are any more goes to another version."""
        for request in list(self.requests):
            if request.worker or not self.answers:
                continue
            entry = self.entries.get(request.name)
            lane = next((each for each in entry.lanes if each.version == request.version), None) if entry is not None else None
            if lane is None or (lane.is_draining and not self._list_ready(lane)):
                lane = self.find_lane(request.name)
                if lane is None:
                    self._end(request, "refused: no replica")
                    continue
                request.version = lane.version
            ready = self._list_ready(lane)
            if not ready and any(map(self.machine.is_ready, lane.workers)):
                self._end(request, "refused: no room")
            if ready:
                request.worker = min(ready, key=lambda name: sum(other.worker == name for other in self.requests))
                self.machine.loop.call_later(request.busy_s, self._answer, request, request.worker)

    def _list_ready(self, lane: LaneEntry) -> list[str]:
        return [name for name in lane.workers if self.machine.is_ready(name) and not self.lacks(name)]

    def lacks(self, worker: str) -> bool:
        return self.known is not None and worker not in self.known

    def _answer(self, request: Request, worker: str) -> None:
        if request in self.requests and request.worker == worker and not self.is_dead:
            if self.stopped_s is not None:
                # It reads the answer when it goes on.
                self.machine.loop.call_later(1.0, self._answer, request, worker)
                return
            self._end(request, f"answered by {request.version}")

    def lose(self, worker: str) -> None:
        """A worker has died: what it held is sent again."""
        for request in self.requests:
            if request.worker == worker:
                request.worker = ""
        self.move()

    def expire(self) -> None:
        for request in list(self.requests):
            if request.deadline_s <= self.machine.loop.time():
                self._end(request, "late")

    def _end(self, request: Request, outcome: str) -> None:
        self.requests.remove(request)
        request.outcome = outcome

    def may_send_to(self, worker: str) -> LaneEntry | None:
        """The lane by which this front would give a worker a new request."""
        lanes = [lane for entry in self.entries.values() for lane in entry.lanes if lane.weight > 0]
        return next((lane for lane in lanes if worker in lane.workers), None)


class Machine:
    """What there is besides the control process: the supervisor with its workers and fronts."""

    def __init__(self, num_fronts: int = 2, memory_limit_bytes: int = 1000 * MB) -> None:
        self.loop = asyncio.get_running_loop()
        self.memory_limit_bytes = memory_limit_bytes
        self.behaviours: dict[tuple[str, int], Behaviour] = {}
        self.workers: dict[str, Worker] = {}
        self.fronts = {f"front-{index}": Front(self, f"front-{index}") for index in range(num_fronts)}
        self.environments: dict[str, bool | str] = {}
        """By runtime: whether its environment is built, or why it cannot be. What is not named here needs none."""
        self.violations: list[str] = []
        self.node: MadeUpNode | None = None
        self.most_memory_bytes = 0
        self._numbers = itertools.count(1)

    def behaviour(self, spec: Message) -> Behaviour:
        return self.behaviours.setdefault((spec["model"], spec["version"]), Behaviour())

    # workers

    def is_ready(self, name: str) -> bool:
        worker = self.workers.get(name)
        return worker is not None and worker.pid != 0 and worker.report is not None and worker.report["state"] == "ready"

    def start(self, name: str, spec: Message) -> None:
        worker = self.workers[name] = Worker(name, spec, next(self._numbers))
        self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        worker.pid, worker.report, worker.started_s = next(self._numbers), None, self.loop.time()
        self._tell(worker)
        self.loop.call_later(self.behaviour(worker.spec).load_s, self._load, worker, worker.pid)

    def _load(self, worker: Worker, pid: int) -> None:
        if worker.pid != pid or worker.report is not None:
            return
        behaviour = self.behaviour(worker.spec)
        if behaviour.num_deaths > worker.num_failed_loads:
            worker.num_failed_loads += 1
            self.die(worker.name, behaviour.load_log)
        elif behaviour.refusal:
            self._refuse(worker, {"state": "failed", "error": behaviour.refusal})
        elif behaviour.golden_difference:
            difference = {"tensor": "y", "got": behaviour.golden_difference, "allowed": 1e-3}
            self._refuse(worker, {"state": "failed", "error": "golden", **difference})
        else:
            worker.report = {
                "state": "ready",
                "load_s": behaviour.load_s,
                "threads": 1,
                "join_refusal": behaviour.join_refusal,
                "joining": "independent",
                "memory_bytes": behaviour.memory_bytes,
                "service_s": behaviour.service_s,
                "service": [],
            }
            used = sum(other.report["memory_bytes"] for other in self.workers.values() if other.report and other.pid)
            self.most_memory_bytes = max(self.most_memory_bytes, used)
            self._tell(worker)
            for front in self.fronts.values():
                front.move()

    def _refuse(self, worker: Worker, report: Message) -> None:
        worker.report = report
        self._tell(worker)
        self._end(worker, "exit code 3", is_final=True)

    def load(self, name: str) -> None:
        """A worker is ready sooner than the others."""
        worker = self.workers[name]
        self._load(worker, worker.pid)

    def refuse(self, name: str, error: str) -> None:
        """A worker refuses its model, and is not started again."""
        self._refuse(self.workers[name], {"state": "failed", "error": error})

    def die(self, name: str, log: str = "") -> None:
        """A worker dies, and is started again."""
        worker = self.workers[name]
        if self.loop.time() - worker.started_s > STABLE_S:
            worker.num_deaths = 0
        worker.num_deaths += 1
        self._end(worker, "signal SIGKILL", log=log, is_final=worker.is_stopping)
        if not worker.is_stopping:
            self.loop.call_later(0.05, self._begin_again, worker)

    def _begin_again(self, worker: Worker) -> None:
        if worker.name in self.workers and not worker.is_stopping:
            self._begin(worker)

    def _end(self, worker: Worker, how: str, *, is_final: bool, log: str = "") -> None:
        report, worker.pid, worker.report = worker.report, 0, None
        if is_final:
            del self.workers[worker.name]
        if self.node is not None:
            self.node.take_end(worker, report, how, log, is_final=is_final)
        for front in self.fronts.values():
            front.lose(worker.name)

    def stop(self, name: str) -> None:
        """A worker is told to end."""
        worker = self.workers.get(name)
        if worker is None or worker.is_stopping:
            return
        self._check_stop(worker)
        worker.is_stopping = True
        self.loop.call_later(self.behaviour(worker.spec).end_s, self._stopped, worker)

    def _stopped(self, worker: Worker) -> None:
        if worker.name in self.workers:
            self._end(worker, "exit code 0", is_final=True)

    def _check_stop(self, worker: Worker) -> None:
        now_s = self.loop.time()
        for front in self.fronts.values():
            if front.is_dead:
                continue
            lane = front.may_send_to(worker.name)
            stopped_s = front.stopped_s if front.stopped_s is not None else now_s
            if lane is not None and (now_s - stopped_s < lane.timeout_s):
                self.violations.append(f"{worker.name} is ended, and {front.name} may send to it")
            held = [each for each in front.requests if each.worker == worker.name and each.deadline_s > now_s]
            if held:
                self.violations.append(f"{worker.name} is ended, and {front.name} waits for {len(held)} answers of it")

    def _tell(self, worker: Worker) -> None:
        if self.node is not None:
            self.node.take_worker(worker)

    # fronts

    def kill_front(self, name: str) -> None:
        front = self.fronts.pop(name)
        front.is_dead = True
        for request in front.requests:
            request.outcome = "front died"

    def start_front(self, name: str) -> None:
        self.fronts[name] = Front(self, name)
        if self.node is not None:
            self.node.deliver()

    def fill_front(self, name: str) -> None:
        """A front has no descriptor left."""
        self.fronts[name].known = set(self.workers)

    def relieve_front(self, name: str) -> None:
        self.fronts[name].known = None
        self.fronts[name].move()

    def stop_front(self, name: str) -> None:
        """As by SIGSTOP."""
        self.fronts[name].stopped_s = self.loop.time()

    def continue_front(self, name: str) -> None:
        front = self.fronts[name]
        front.stopped_s = None
        front.expire()
        if self.node is not None:
            self.node.deliver()
        front.move()

    def ask(self, name: str, *, busy_s: float = 0.01, timeout_s: float = 30.0, front: str = "front-0") -> Request:
        """A client asks."""
        request = Request(name, self.loop.time() + timeout_s, busy_s)
        chosen = self.fronts[front]
        chosen.put(request)
        self.loop.call_later(timeout_s, chosen.expire)
        return request


class MadeUpNode:
    """The machine as one control process sees it; see `Node`.

    Args:
        machine: that it runs on.
        step: called before whatever it does to the machine; may raise `Killed`.
    """

    def __init__(self, machine: Machine, step: Callable[[str], None]) -> None:
        self.workers = Workers()
        self.memory_limit_bytes = machine.memory_limit_bytes
        self.machine = machine
        self.changed = asyncio.Event()
        self.wake: Callable[[], None] = lambda: None
        self._step = step
        self._log: TableLog | None = None
        self._epochs: dict[Front, int] = {}
        self._is_due: set[Front] = set()
        machine.node = self
        for worker in list(machine.workers.values()):
            self.take_worker(worker)

    # what the supervisor says

    def take_worker(self, worker: Worker) -> None:
        handle = self.workers.get(worker.name) or WorkerHandle(worker.name, worker.spec)
        handle.pid, handle.report, handle.num_deaths = worker.pid, worker.report, worker.num_deaths
        handle.is_stopping = handle.is_stopping or worker.is_stopping
        self.workers.add(handle)
        self._note()

    def take_end(self, worker: Worker, report: Message | None, how: str, log: str, *, is_final: bool) -> None:
        handle = self.workers.get(worker.name)
        if handle is None:
            return
        handle.pid, handle.report = 0, report if is_final else None
        handle.num_deaths += 1
        handle.num_seen_deaths += 1
        handle.last_death = f"{how}; its log ends: {log}"
        self.workers.note(handle)
        if is_final:
            handle.is_gone = True
            self.workers.remove(handle)
        self._note()

    def _note(self) -> None:
        self.changed.set()
        self.wake()

    # interpreters

    def find_python(self, runtime: str) -> str | None:
        return sys.executable if self.machine.environments.get(runtime, True) is True else None

    async def build_environment(self, runtime: str) -> None:
        self._step(f"build {runtime}")
        await asyncio.sleep(60.0)
        state = self.machine.environments.get(runtime, True)
        if isinstance(state, str):
            raise FaultError("environment_failed", name=runtime, detail=state)
        self.machine.environments[runtime] = True

    # workers

    def start_worker(self, deployment: str, version: int, spec: Message) -> str:
        self._step(f"start {deployment}@{version}")
        name = f"w-{deployment}-{version}-{next(self.machine._numbers)}"
        self.machine.start(name, spec)
        return name

    def stop_workers(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.workers:
                self._step(f"stop {name}")
                self.workers[name].is_stopping = True
                self.machine.stop(name)

    async def wait_changed(self, timeout_s: float) -> None:
        self.changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
        except TimeoutError:
            pass

    def free_memory_bytes(self) -> int:
        return self.memory_limit_bytes - sum(worker.memory_bytes for worker in self.workers.values())

    # fronts

    def tell_table(self, log: TableLog) -> None:
        self._step("tell")
        self._log = log
        self.deliver()

    def deliver(self) -> None:
        """Give every front that answers what it lacks: at once, or as late as it is."""
        for front in self.machine.fronts.values():
            if front not in self._is_due:
                self._is_due.add(front)
                self.machine.loop.call_later(front.late_s, self._deliver, front)

    def _deliver(self, front: Front) -> None:
        self._is_due.discard(front)
        if self.machine.node is not self or self._log is None or not front.answers:
            return
        change = self._log.get_change(self._epochs.get(front, 0))
        if self._epochs.get(front) == change.epoch:
            return
        data = msgspec.json.encode(change)
        front.num_bytes += len(data)
        front.apply(msgspec.json.decode(data, type=Table))
        self._epochs[front] = change.epoch if front.epoch == change.epoch else 0
        self._deliver(front)

    async def wait_told(self) -> tuple[str, ...]:
        self._step("wait")
        return (await self._gather(lambda front: None)).silent

    async def ask_busy(self, lanes: Iterable[tuple[str, str]], workers: Iterable[str]) -> Asked[bool]:
        self._step("ask")
        known_lanes, known_workers = set(lanes), set(workers)

        def is_busy(front: Front) -> bool:
            return any((each.name, each.version) in known_lanes or each.worker in known_workers for each in front.requests)

        return await self._gather(is_busy)

    async def ask_links(self, name: str, workers: Iterable[str], *, is_raw: bool) -> Asked[tuple[str, ...]]:
        self._step("links")
        asked = tuple(workers)
        return await self._gather(lambda front: tuple(filter(front.lacks, asked)))

    async def ask_stats(self) -> Asked[tuple[LaneStats, ...]]:
        return await self._gather(lambda front: ())

    async def ask_arrivals(self, recording: str, name: str) -> Asked[ArrivalsAnswer]:
        return await self._gather(lambda front: ArrivalsAnswer(1, b"", 0))

    async def _gather(self, answer: Callable[[Front], Any]) -> Asked[Any]:
        answers: dict[str, Any] = {}
        silent: list[str] = []

        async def ask(front: Front) -> None:
            epoch = self._log.epoch if self._log is not None else 0
            asked_s = self.machine.loop.time() if front.stopped_s is None else front.stopped_s
            await asyncio.sleep(front.late_s)
            while not front.answers or self._epochs.get(front, 0) < epoch:
                if front.is_dead:
                    return
                if self.machine.loop.time() >= asked_s + SILENT_S:
                    silent.append(front.name)
                    return
                await asyncio.sleep(0.05)
            answers[front.name] = answer(front)

        await asyncio.gather(*(ask(front) for front in list(self.machine.fronts.values())))
        return Asked(answers, tuple(sorted(silent)))
