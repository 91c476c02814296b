"""Whether a version fits: what it needs of a node's memory, what is free, and what will be."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from argosy.deploy.lanes import DesiredLane, Lanes
from argosy.deploy.node import WorkerHandle
from argosy.deploy.worker_spec import estimate_memory

__all__ = ["Need", "weigh"]


class Need(NamedTuple):
    """What the workers of a version that are not loaded yet need, and what there is for them; all in bytes."""

    needed: int
    free: int
    """That nobody else has, or is about to load."""
    freed: int
    """By ending workers of the version that is live."""
    returning: int
    """By workers that are on their way out."""
    promised: int
    """To rollouts of other deployments: free, if these fail."""

    @property
    def fits(self) -> bool:
        """It can be loaded beside all that there is."""
        return self.needed <= max(0, self.free)

    @property
    def will_fit(self) -> bool:
        """It can be loaded beside the version that is live, as soon as others have gone."""
        return self.needed <= self.free + self.returning

    @property
    def fits_instead(self) -> bool:
        """It can be loaded when the version that is live has gone."""
        return self.needed <= self.free + self.freed

    @property
    def may_fit(self) -> bool:
        """It can be loaded if all goes that may."""
        return self.needed <= self.free + self.freed + self.returning + self.promised


def weigh(lanes: Lanes, lane: DesiredLane, old: DesiredLane | None) -> Need:
    """See what a lane needs, and what there is for it.

    Args:
        lanes: of the node.
        lane: that is to be loaded.
        old: that holds its deployment's traffic; it may be of the same version.

    Raises:
        StoreError: as `Lanes.find_workers`.
    """
    workers = lanes.node.workers
    fitting = set(lanes.find_workers(lane)[1])
    num_loaded = sum(workers.measure(worker) > 0 for worker in fitting)
    reloading = old.count_reloading_bytes(workers, fitting) if old is not None else 0
    leaving = [worker for worker in old.workers if worker not in fitting] if old is not None else []
    return Need(
        needed=estimate_memory(lane.spec, lane.version) * max(0, max(1, lane.num_replicas) - num_loaded),
        free=lanes.free_memory_bytes(lane.name) - reloading,
        freed=sum(map(workers.measure, leaving)) + reloading,
        returning=_count_returning_bytes(lanes, lane.name, fitting),
        promised=lanes.count_reserved_bytes(lane.name),
    )


def _count_returning_bytes(lanes: Lanes, name: str, kept: Collection[str]) -> int:
    """What workers hold that are to go, but for those that are `kept`."""
    known = [lane for owner in lanes.list_names() for lane in lanes.list_lanes(owner)]
    draining = {worker for lane in known if lane.is_draining for worker in lane.workers}
    used = {worker for lane in known for worker in lane.workers}.union(kept)

    def is_leaving(worker: WorkerHandle) -> bool:
        # What no lane has is ended, unless it is what a rollout of another deployment has begun to load.
        owner = worker.spec["deployment"]
        is_orphan = worker.name not in used and (owner == name or not lanes.is_loading(owner))
        return worker.is_stopping or worker.name in draining or is_orphan

    return sum(worker.memory_bytes for worker in lanes.node.workers.values() if is_leaving(worker))
