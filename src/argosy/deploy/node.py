"""What the control plane asks of a node: to start and end workers, to tell fronts tables, to ask them what they hold.

One machine (`local_node.py`) is one kind of node.

**Silence is unknown, not idle.** Whatever is asked of fronts gives their answers and says who was silent. A front that is known
to be dead is neither: it holds nothing any more. All are asked at once, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from argosy.deploy.table_log import TableLog
from argosy.serve.wire.control_messages import ArrivalsAnswer, LaneStats

__all__ = ["Asked", "Node", "WorkerHandle", "Workers"]

MANY_LOADS: Final = 2
"""A worker that died so often while it loaded is not waited for."""
Message = dict[str, Any]
Answer = TypeVar("Answer")


@dataclass
class WorkerHandle:
    """A worker process as the control process knows it."""

    name: str
    spec: Message
    pid: int = 0
    report: Message | None = None
    num_deaths: int = 0
    """As its node counts: since it last ran for some time."""
    num_seen_deaths: int = 0
    """Since this control process has known it."""
    num_failed_loads: int = 0
    """How often it died while it loaded, since it last had its model."""
    last_death: str = ""
    """How it died last, with the end of its log."""
    is_stopping: bool = False
    """It was told to end."""
    is_gone: bool = False
    """It will not be started again."""

    @property
    def is_ready(self) -> bool:
        """True when it has loaded and verified its model."""
        return self.pid != 0 and self.report is not None and self.report["state"] == "ready"

    @property
    def is_expected(self) -> bool:
        """True while it is likely to be ready soon."""
        return not self.is_gone and not self.is_stopping and self.num_failed_loads < MANY_LOADS

    @property
    def memory_bytes(self) -> int:
        """What it holds, as measured after its load; 0 before."""
        return int(self.report.get("memory_bytes", 0)) if self.report is not None else 0


class Workers(Mapping[str, WorkerHandle]):
    """The workers that a node has, by name and by deployment; those that were told to end are among them until they have."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerHandle] = {}
        self._by_deployment: dict[str, dict[str, WorkerHandle]] = {}
        self._changed: set[str] = set()

    def __getitem__(self, name: str) -> WorkerHandle:
        return self._workers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: WorkerHandle) -> None:
        """Know a worker."""
        self._workers[worker.name] = worker
        self._by_deployment.setdefault(worker.spec["deployment"], {})[worker.name] = worker
        self.note(worker)

    def remove(self, worker: WorkerHandle) -> None:
        """Forget one that has gone."""
        del self._workers[worker.name]
        name = worker.spec["deployment"]
        del self._by_deployment[name][worker.name]
        if not self._by_deployment[name]:
            del self._by_deployment[name]
        self.note(worker)

    def note(self, worker: WorkerHandle) -> None:
        """Something about a worker has changed."""
        self._changed.add(worker.spec["deployment"])

    def of(self, deployment: str) -> list[WorkerHandle]:
        """The workers of one deployment."""
        return list(self._by_deployment.get(deployment, {}).values())

    def measure(self, name: str) -> int:
        """Bytes that a worker holds; 0 while it loads, or where there is none of this name."""
        worker = self._workers.get(name)
        return worker.memory_bytes if worker is not None else 0

    def take_changed(self) -> set[str]:
        """Deployments whose workers have changed since this was last called."""
        changed, self._changed = self._changed, set()
        return changed


class Asked(NamedTuple, Generic[Answer]):
    """What came of asking all fronts."""

    answers: dict[str, Answer]
    """By front."""
    silent: tuple[str, ...]
    """Fronts that have not answered, and may hold anything. Sorted."""


class Node(Protocol):
    """A place where workers and fronts run. What it does may be asked for twice."""

    workers: Workers
    memory_limit_bytes: int
    """What all workers may use together."""

    # interpreters

    def find_python(self, runtime: str) -> str | None:
        """The interpreter of a runtime's workers; None while its environment is not built.

        Raises:
            InputError: `missing_extra`, the runtime's package is neither here nor has an environment.
            NotAllowedError: `unsafe_cache`, other users may change what would be run.
        """
        ...

    async def build_environment(self, runtime: str) -> None:
        """Build the environment of a runtime.

        Raises:
            NotAllowedError: as `find_python`.
            FaultError: `environment_failed`, `environment_python`.
        """
        ...

    # workers

    def start_worker(self, deployment: str, version: int, spec: Message) -> str:
        """Start a worker; returns its name. It is started again whenever it dies, unless it refuses its model.

        Raises:
            FaultError: `environment_failed`, the environment of its runtime is not there any more; else as `find_python`.
            InputError: `spec_too_large`, no message holds the spec.
        """
        ...

    def stop_workers(self, names: Iterable[str]) -> None:
        """End workers, at once; they are known, and hold their memory, until they have gone."""
        ...

    async def wait_changed(self, timeout_s: float) -> None:
        """Wait until something about a worker has changed, at most `timeout_s`."""
        ...

    def free_memory_bytes(self) -> int:
        """What further workers may use."""
        ...

    # fronts

    def tell_table(self, log: TableLog) -> None:
        """Have every front serve by this log from now on, whatever becomes of it and of them. Returns at once."""
        ...

    async def wait_told(self) -> tuple[str, ...]:
        """Wait until the fronts serve by the table as it is now; returns those that are silent."""
        ...

    async def ask_busy(self, lanes: Iterable[tuple[str, str]], workers: Iterable[str]) -> Asked[bool]:
        """Ask whether one of these lanes (deployment and version) holds a request, or one of these workers a batch.

        What counts is what a front says once it serves by the table as it is now: before that, it is silent.
        """
        ...

    async def ask_links(self, name: str, workers: Iterable[str], *, is_raw: bool) -> Asked[tuple[str, ...]]:
        """Ask which of these workers, which have loaded, a front could not give requests of a deployment at once."""
        ...

    async def ask_stats(self) -> Asked[tuple[LaneStats, ...]]:
        """Ask for each front's lanes: queues, and what they are worth now."""
        ...

    async def ask_arrivals(self, recording: str, name: str) -> Asked[ArrivalsAnswer]:
        """Ask when requests to a deployment arrived since the recording was last asked for."""
        ...
