"""Pick the version and the replica that answer a request, from the table that the control process sent.

A front keeps its last table while the control process is away. Lanes (one per deployment and version)
outlive tables: a lane that the table drains answers what it holds, then reports that it is empty.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Final

from argosy.errors import NotFoundError, UnavailableError, list_choices
from argosy.serve.dispatch.batcher import Batcher
from argosy.serve.dispatch.call import Batch, Call, Clock, Lane
from argosy.serve.dispatch.link import Link
from argosy.serve.dispatch.streams import RawCall, StreamQueue
from argosy.serve.wire.counters import Counters
from argosy.serve.wire.table import RepositoryEntry, Table, TableEntry, merge_repository

__all__ = ["Route", "Router"]


MANY_LINKS: Final = 2
"""A link that could not be made so often is not waited for."""


class Route:
    """Where the requests for one name go."""

    def __init__(self, entry: TableEntry, lanes: dict[str, Batcher]) -> None:
        self.name = entry.name
        self.lanes = lanes
        self._targets = [lanes[lane.version] for lane in entry.lanes if lane.weight > 0]
        self._weights = [lane.weight for lane in entry.lanes if lane.weight > 0]
        self._served = {lane.version: lanes[lane.version] for lane in entry.lanes if not lane.is_draining}
        self.is_gone = not self._served
        """It answers what it holds, and takes nothing further: it was removed."""
        self._only = self._targets[0] if len(self._targets) == 1 else None

    def pick(self) -> Batcher:
        """The lane for a request that names no version.

        Raises:
            UnavailableError: no version takes requests.
        """
        if self._only is not None:
            return self._only
        if not self._targets:
            raise UnavailableError("no_replica", model=self.name, retry_after_s=1.0)
        return random.choices(self._targets, self._weights)[0]  # noqa: S311 - a traffic split needs no secrecy

    def pick_version(self, version: str) -> Batcher:
        """The lane of a version that the request names.

        Raises:
            NotFoundError: it is not served.
        """
        lane = self._served.get(version)
        if lane is None:
            raise NotFoundError("version_not_served", name=self.name, version=version[:40], known=list_choices(self._served))
        return lane


class Router:
    """All lanes of a front, and the links of its workers.

    Args:
        loop: the front's event loop.
        counters: the node's counters.
        num_fronts: of the node.
        clock: of its lanes.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, counters: Counters, num_fronts: int = 1, clock: Clock = time.monotonic
    ) -> None:
        self.deployments: dict[str, Route] = {}
        self.counters = counters
        self._num_fronts = num_fronts
        self.epoch = 0
        self.repository: tuple[RepositoryEntry, ...] = ()
        self._wanted: frozenset[str] = frozenset()
        """Deployments, also those of which no version has loaded yet."""
        self.on_change: list[Callable[[], None]] = []
        self._loop = loop
        self._clock = clock
        self._lanes: dict[tuple[str, str], Batcher] = {}
        self._links: dict[str, Link] = {}
        self._lane_of_worker: dict[str, Batcher] = {}
        self._unlinked: dict[str, int] = {}
        """How often this process has had no room for a link to a worker that was to be made."""

    # requests

    @property
    def is_server_ready(self) -> bool:
        """True when a table has come, and everything that should run has a lane that is ready."""
        if not self.epoch or not self._wanted <= self.deployments.keys():
            return False
        routes = (route for route in self.deployments.values() if not route.is_gone)
        return all(any(lane.is_ready for lane in route.lanes.values()) for route in routes)

    def find(self, name: str, version: str = "") -> Batcher:
        """The lane that takes the next request for this deployment.

        Raises:
            NotFoundError: no such deployment, or the version is not served.
            UnavailableError: the deployment takes no requests now.
        """
        deployment = self.deployments.get(name)
        if deployment is None or deployment.is_gone:
            if not self.epoch:
                raise UnavailableError("starting", retry_after_s=1.0)
            if name in self._wanted:
                raise UnavailableError("no_replica", model=name, retry_after_s=1.0)
            known = (name for name, route in self.deployments.items() if not route.is_gone)
            raise NotFoundError("unknown_deployment", name=name[:128], known=list_choices(known))
        return deployment.pick_version(version) if version else deployment.pick()

    describe = find

    def is_ready(self, name: str, version: str = "") -> bool:
        """Say whether a warm replica answers for this deployment and version.

        Raises:
            NotFoundError: no such deployment, or the version is not served.
        """
        try:
            return self.find(name, version).is_ready
        except UnavailableError:
            return False

    def list_lanes(self) -> list[Batcher]:
        """Every lane, draining ones included."""
        return list(self._lanes.values())

    def count_ready(self) -> dict[tuple[str, str], int]:
        """Replicas that answer, by deployment and version."""
        return {key: len(lane.links) for key, lane in self._lanes.items()}

    # tables

    def apply(self, table: Table) -> None:
        """Serve by this table from now on. A change of another table than the present one is not taken: `epoch` says so."""
        if table.base not in (0, self.epoch):
            return
        self.epoch = table.epoch
        self.repository = merge_repository(known := self.repository, table)
        if self.repository is not known:
            self._wanted = frozenset(entry.name for entry in self.repository if entry.is_wanted)
        present = {entry.name for entry in table.deployments}
        removed = table.removed if table.base else [name for name in self.deployments if name not in present]
        old = self._take_out([*present, *removed])
        lanes, draining = self._put_in(table.deployments, old)
        for name in removed:
            self.deployments.pop(name, None)
        for key, lane in old.items():
            if self._lanes[key] is lane:
                del self._lanes[key]
            lane.workers = ()
            lane.streams.max_streams = 0
            self._connect(lane)
            self._reroute(lane)
        for lane in draining:
            if not lane.links:
                self._reroute(lane)
        for lane in lanes:
            self._note_lost(lane)
        for lane in lanes:
            lane.flush()
            lane.streams.flush()
        for callback in self.on_change:
            callback()

    def _take_out(self, names: Iterable[str]) -> dict[tuple[str, str], Batcher]:
        """Forget which workers some deployments have; returns the lanes of these."""
        taken: dict[tuple[str, str], Batcher] = {}
        for name in names:
            if (route := self.deployments.get(name)) is not None:
                taken |= {(name, version): lane for version, lane in route.lanes.items()}
        for lane in taken.values():
            for worker in lane.workers:
                self._lane_of_worker.pop(worker, None)
        return taken

    def _put_in(self, entries: Iterable[TableEntry], old: dict[tuple[str, str], Batcher]) -> tuple[list[Batcher], list[Batcher]]:
        """Know deployments as they are now; lanes that go on are taken from `old`. Returns theirs, and which of these drain."""
        known: list[Batcher] = []
        draining: list[Batcher] = []
        for entry in entries:
            lanes: dict[str, Batcher] = {}
            for description in entry.lanes:
                key = (entry.name, description.version)
                lane = old.get(key)
                if lane is not None and lane.signature == description.signature:
                    del old[key]
                else:
                    lane = Batcher(self._loop, entry, description, self.counters, self._num_fronts, self._clock)
                lane.update(entry, description)
                self._lanes[key] = lanes[description.version] = lane
                self._lane_of_worker.update(dict.fromkeys(description.workers, lane))
                self._connect(lane)
                known.append(lane)
                if description.is_draining:
                    draining.append(lane)
            self.deployments[entry.name] = Route(entry, lanes)
        return known, draining

    def _note_lost(self, lane: Batcher) -> None:
        """Refuse what waits in a lane that no replica is to be expected for, and what comes."""
        is_lost = bool(lane.workers) and all(self._unlinked.get(worker, 0) >= MANY_LINKS for worker in lane.workers)
        lane.lack = (
            f"it shares no memory with worker {lane.workers[0]} yet (a descriptor is lacking, here or there)" if is_lost else ""
        )
        lane.set_down(lane.is_given_up or is_lost)
        if lane.is_down and not lane.links:
            self._reroute(lane)

    def _connect(self, lane: Batcher) -> None:
        """Give a lane the links of its workers, in one order in all fronts, so that each finds another of its own."""
        links = [link for worker in lane.workers if (link := self._links.get(worker)) is not None]
        lane.links = [*links]
        lane.streams.pools = [link.streams for link in links]

    def _reroute(self, lane: Batcher) -> None:
        """Move what waits in a lane that has no replicas any more to the lane that takes its requests now."""
        self._reroute_calls(lane)
        self._reroute_streams(lane.streams)

    def _reroute_calls(self, lane: Lane) -> None:
        for call in lane.take_queued():
            self._move(call, lane)

    def _reroute_streams(self, queue: StreamQueue) -> None:
        for call in queue.take_waiting():
            self._move_raw(call, queue)

    def _move(self, call: Call, lane: Lane) -> None:
        route = self.deployments.get(lane.name)
        target: Lane | None = None
        if route is not None:
            try:
                target = route.pick()
            except UnavailableError:
                target = None
        if target is None or target is lane or target.signature != lane.signature:
            call.is_done = True
            lane.series.add_failure(UnavailableError.status)
            call.fail(lane.refuse())
            return
        call.lane = target
        target.put(call)

    def _move_raw(self, call: RawCall, queue: StreamQueue) -> None:
        name = queue.lane.name
        try:
            target = self.find(name).streams
        except (NotFoundError, UnavailableError):
            target = queue
        if target is queue or not target.max_streams:
            call.fail(queue.lane.refuse())
            return
        call.queue = target
        target.put(call)

    def expire_streams(self, now: float) -> None:
        """End raw requests whose deadline has passed while a worker answers them."""
        for link in self._links.values():
            if link.streams.num_busy:
                link.streams.expire(now)

    def is_busy(self, lanes: list[tuple[str, str]], workers: list[str]) -> bool:
        """Say whether one of these lanes holds a request, or one of these workers a batch."""
        known = [lane for key in lanes if (lane := self._lanes.get((key[0], key[1]))) is not None]
        links = [link for worker in workers if (link := self._links.get(worker)) is not None]
        return any(lane.num_open for lane in known) or any(link.num_in_flight or link.streams.num_busy for link in links)

    # workers

    def make_room(self, name: str, workers: Iterable[str], *, is_raw: bool) -> list[str]:
        """Have all that requests of a deployment need with workers that it may get; those that this cannot be had for now.

        What its present workers share with this process is large enough for what is asked of it.
        """
        route = self.deployments.get(name)
        present = [worker for lane in route.lanes.values() for worker in lane.workers] if route is not None else []
        sizes = [self._links[worker].arena_bytes for worker in present if worker in self._links]
        input_bytes, output_bytes = max((size[0] for size in sizes), default=0), max((size[1] for size in sizes), default=0)
        lacking: list[str] = []
        for worker in workers:
            link = self._links.get(worker)
            # One that works already has what it needs.
            has_room = worker in self._lane_of_worker or (link is not None and link.make_room(input_bytes, output_bytes))
            if link is None or not has_room or (is_raw and not link.streams.make_room()):
                lacking.append(worker)
        return lacking

    def lose_link(self, worker: str) -> None:
        """This process has no room for a link to a worker, and gets none for now."""
        self._unlinked[worker] = self._unlinked.get(worker, 0) + 1
        if (lane := self._lane_of_worker.get(worker)) is not None:
            self._note_lost(lane)

    def add_link(self, link: Link) -> None:
        """A worker can take batches."""
        self._links[link.worker] = link
        self._unlinked.pop(link.worker, None)
        if (lane := self._lane_of_worker.get(link.worker)) is not None:
            self._connect(lane)
            self._note_lost(lane)
            lane.flush()
            lane.streams.flush()

    def remove_link(self, link: Link) -> None:
        """A worker is gone: what it held is sent again or refused."""
        if self._links.get(link.worker) is link:
            del self._links[link.worker]
        self._unlinked.pop(link.worker, None)
        if (lane := self._lane_of_worker.get(link.worker)) is not None:
            self._connect(lane)
        lost: dict[Lane, list[Batch]] = {}
        for batch in link.take_batches():
            lost.setdefault(batch.lane, []).append(batch)
        known: set[Lane] = set(self._lanes.values())
        for lane, batches in lost.items():
            lane.take_loss(batches, link.worker, link.fault or "the worker's process died", link.unread)
            if lane not in known:
                # Its deployment or version has left the table meanwhile.
                self._reroute_calls(lane)
        for queue in link.streams.close():
            if queue.lane in known:
                queue.flush()
            else:
                self._reroute_streams(queue)

    def find_late_s(self, worker: str, unknown_s: float) -> float:
        """What a batch of a worker hangs after, however large it is; `unknown_s` while nobody knows how long they take."""
        lane = self._lane_of_worker.get(worker)
        return unknown_s if lane is None else lane.plan.late_s(unknown_s)
