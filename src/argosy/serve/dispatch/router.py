"""Pick the version and the replica that answer a request, from the table that the control process sent.

A front keeps its last table while the control process is away. Lanes (one per deployment and version)
outlive tables: a lane that the table drains answers what it holds, then reports that it is empty.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from argosy.errors import NotFoundError, UnavailableError, list_choices
from argosy.serve.dispatch.batch import Batch
from argosy.serve.dispatch.batcher import Batcher
from argosy.serve.dispatch.link import Link
from argosy.serve.dispatch.streams import StreamQueue
from argosy.serve.v2.repeats import Repeats
from argosy.serve.wire.table import LaneEntry, RepositoryEntry, Table, TableEntry, merge_repository

if TYPE_CHECKING:
    from argosy.serve.dispatch.call import Call
    from argosy.serve.http.raw import RawCall
    from argosy.serve.wire.counters import Counters

__all__ = ["Deployment", "Lane", "Router"]

PRIORITY_SHARE: Final = 0.25
"""Of a deployment's timeout: a request that waits so much longer goes before one that is a step more urgent."""


class Lane(Batcher):
    """One version of one deployment, as a front sees it: its description, queue and replicas."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, entry: TableEntry, lane: LaneEntry, counters: Counters, num_fronts: int
    ) -> None:
        super().__init__(loop, lane.signature, entry.name, lane.version, counters.series(lane.series))
        self.model = entry.model
        self.series_index = lane.series
        self.place = counters.front or 0
        self.num_fronts = num_fronts
        self.output_index = {spec.name: index for index, spec in enumerate(lane.signature.outputs)}
        axes = [(index, axis) for index, own in enumerate(lane.signature.free_axes.values()) for axis in own]
        self.free_axis = axes[0] if axes else None
        """Input and axis whose length a request chooses, the first of those."""
        self.versions: list[str] = []
        self.repeats = Repeats(self)
        self.streams = StreamQueue(self)
        self.cache: dict[str, Any] = {}
        """Whatever a protocol prepares once per lane."""

    def update(self, entry: TableEntry, lane: LaneEntry) -> None:
        """Take what a new table says of this lane."""
        self.max_batch_rows = lane.max_batch_rows
        self.can_join = lane.can_join and self.signature.is_batched
        self.is_repeatable = lane.is_repeatable
        self.lines.can_pad = lane.can_pad
        self.lines.level_s = PRIORITY_SHARE * lane.timeout_s
        self.plan.configure(lane.service, lane.max_batch_rows, can_join=self.can_join)
        self.join_refusal, self.pad_refusal = lane.join_refusal, lane.pad_refusal
        self.timeout_s = lane.timeout_s
        self.max_queue_rows = lane.max_queue_rows
        self.max_queue_bytes = lane.max_queue_bytes
        self.free_rows = min(lane.max_batch_rows, lane.max_queue_rows // self.num_fronts)
        self.streams.max_streams = lane.max_streams
        self.platform = lane.platform
        self.created_s = lane.created_s
        self.versions = [other.version for other in entry.lanes if not other.is_draining]

    def expire(self, now: float) -> None:
        """As `Batcher.expire`, for raw requests that wait as well."""
        super().expire(now)
        self.streams.expire(now)

    @property
    def is_ready(self) -> bool:
        """True when a warm replica answers."""
        return bool(self.links)


class Deployment:
    """Where the requests for one name go."""

    def __init__(self, entry: TableEntry, lanes: dict[str, Lane]) -> None:
        self.name = entry.name
        self.lanes = lanes
        self._targets = [lanes[lane.version] for lane in entry.lanes if lane.weight > 0]
        self._weights = [lane.weight for lane in entry.lanes if lane.weight > 0]
        self._served = {lane.version: lanes[lane.version] for lane in entry.lanes if not lane.is_draining}
        self._only = self._targets[0] if len(self._targets) == 1 else None

    def pick(self) -> Lane:
        """The lane for a request that names no version.

        Raises:
            UnavailableError: no version takes requests.
        """
        if self._only is not None:
            return self._only
        if not self._targets:
            raise UnavailableError("no_replica", model=self.name, retry_after_s=1.0)
        return random.choices(self._targets, self._weights)[0]  # noqa: S311 - a traffic split needs no secrecy

    def pick_version(self, version: str) -> Lane:
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
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, num_fronts: int = 1) -> None:
        self.deployments: dict[str, Deployment] = {}
        self.counters = counters
        self._num_fronts = num_fronts
        self.epoch = 0
        self.repository: tuple[RepositoryEntry, ...] = ()
        self.on_change: list[Callable[[], None]] = []
        self._loop = loop
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._links: dict[str, Link] = {}
        self._lane_of_worker: dict[str, Lane] = {}
        self._workers: dict[str, set[str]] = {}

    # requests

    @property
    def is_server_ready(self) -> bool:
        """True when a table has come and every deployment has a lane that is ready."""
        return self.epoch > 0 and all(any(lane.is_ready for lane in dep.lanes.values()) for dep in self.deployments.values())

    def find(self, name: str, version: str = "") -> Lane:
        """The lane that takes the next request for this deployment.

        Raises:
            NotFoundError: no such deployment, or the version is not served.
            UnavailableError: the deployment takes no requests now.
        """
        deployment = self.deployments.get(name)
        if deployment is None:
            if not self.epoch:
                raise UnavailableError("starting", retry_after_s=1.0)
            raise NotFoundError("unknown_deployment", name=name[:128], known=list_choices(self.deployments))
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

    def list_lanes(self) -> list[Lane]:
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
        self.repository = merge_repository(self.repository, table)
        present = {entry.name for entry in table.deployments}
        removed = table.removed if table.base else [name for name in self.deployments if name not in present]
        old = self._take_out([*present, *removed])
        lanes, draining = self._put_in(table.deployments, old)
        for name in removed:
            self.deployments.pop(name, None)
        for key, lane in old.items():
            if self._lanes[key] is lane:
                del self._lanes[key]
            lane.links = []
            lane.streams.max_streams = 0
            self._reroute(lane)
        for lane in draining:
            if not lane.links:
                self._reroute(lane)
        for lane in lanes:
            lane.flush()
            lane.streams.flush()
        for callback in self.on_change:
            callback()

    def _take_out(self, names: Iterable[str]) -> dict[tuple[str, str], Lane]:
        """Forget which workers some deployments have; returns the lanes of these."""
        lanes: dict[tuple[str, str], Lane] = {}
        for name in names:
            if (deployment := self.deployments.get(name)) is not None:
                lanes |= {(name, version): lane for version, lane in deployment.lanes.items()}
            for worker in self._workers.pop(name, ()):
                self._lane_of_worker.pop(worker, None)
        return lanes

    def _put_in(self, entries: Iterable[TableEntry], old: dict[tuple[str, str], Lane]) -> tuple[list[Lane], list[Lane]]:
        """Know deployments as they are now; lanes that go on are taken from `old`. Returns theirs, and which of these drain."""
        known: list[Lane] = []
        draining: list[Lane] = []
        for entry in entries:
            lanes: dict[str, Lane] = {}
            for description in entry.lanes:
                key = (entry.name, description.version)
                lane = old.get(key)
                if lane is not None and lane.signature == description.signature:
                    del old[key]
                else:
                    lane = Lane(self._loop, entry, description, self.counters, self._num_fronts)
                lane.update(entry, description)
                self._lanes[key] = lanes[description.version] = lane
                self._lane_of_worker.update(dict.fromkeys(description.workers, lane))
                # In one order in all fronts, so that each finds another of its own.
                lane.links = [link for worker in sorted(description.workers) if (link := self._links.get(worker)) is not None]
                known.append(lane)
                if description.is_draining:
                    draining.append(lane)
            self.deployments[entry.name] = Deployment(entry, lanes)
            self._workers[entry.name] = {worker for description in entry.lanes for worker in description.workers}
        return known, draining

    def _reroute(self, lane: Lane) -> None:
        """Move what waits in a lane that has no replicas any more to the lane that takes its requests now."""
        for call in lane.take_queued():
            self._move(call, lane)
        for call in lane.streams.take_waiting():
            self._move_raw(call, lane)

    def _move(self, call: Call, lane: Lane) -> None:
        deployment = self.deployments.get(lane.name)
        target: Lane | None = None
        if deployment is not None:
            try:
                target = deployment.pick()
            except UnavailableError:
                target = None
        if target is None or target is lane or target.signature != lane.signature:
            call.is_done = True
            lane.series.add_failure(UnavailableError.status)
            call.fail(UnavailableError("no_replica", model=lane.name, retry_after_s=1.0))
            return
        call.lane = target
        target.put(call)

    def _move_raw(self, call: RawCall, lane: Lane) -> None:
        try:
            call.lane = self.find(lane.name)
        except (NotFoundError, UnavailableError):
            call.fail(UnavailableError("no_replica", model=lane.name, retry_after_s=1.0))
            return
        if call.lane is lane or not call.lane.streams.max_streams:
            call.fail(UnavailableError("no_replica", model=lane.name, retry_after_s=1.0))
            return
        call.lane.streams.put(call)

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

    def add_link(self, link: Link) -> None:
        """A worker can take batches."""
        self._links[link.worker] = link
        if (lane := self._lane_of_worker.get(link.worker)) is not None:
            lane.links = [other for other in lane.links if other.worker != link.worker]
            lane.links.append(link)
            lane.links.sort(key=lambda link: link.worker)
            lane.flush()
            lane.streams.flush()

    def remove_link(self, link: Link) -> None:
        """A worker is gone: what it held is sent again or refused."""
        if self._links.get(link.worker) is link:
            del self._links[link.worker]
        lanes: dict[Batcher, list[Batch]] = {}
        for lane in self._lanes.values():
            if link in lane.links:
                lane.links.remove(link)
        for batch in link.take_batches():
            lanes.setdefault(batch.lane, []).append(batch)
        known = set(self._lanes.values())
        for lane, batches in lanes.items():
            lane.take_loss(batches, link.worker, link.fault)
            if lane not in known:
                # Its deployment or version has left the table meanwhile.
                self._reroute(cast(Lane, lane))
        for lane in link.streams.close():
            if lane in known:
                lane.streams.flush()
            else:
                self._reroute(lane)

    def find_hung(self, now: float, limit_s: float) -> set[tuple[str, float]]:
        """Workers that have held a batch for longer than `limit_s`, and since when."""
        held = {(worker, sent_s) for worker, link in self._links.items() if (sent_s := link.oldest_sent_s) < math.inf}
        held |= {(worker, since_s) for worker, link in self._links.items() if (since_s := link.streams.stuck_since_s) is not None}
        return {(worker, sent_s) for worker, sent_s in held if now - sent_s > limit_s}
