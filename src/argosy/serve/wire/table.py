"""What the control process tells fronts: which versions answer for which names, and which workers hold them."""

from __future__ import annotations

import msgspec

from argosy.signature import Signature

__all__ = ["LaneEntry", "RepositoryEntry", "Table", "TableEntry", "merge_repository"]


class LaneEntry(msgspec.Struct, frozen=True):
    """One version of a deployment, as the control process wants it served."""

    version: str
    weight: float
    """Share of the requests that name no version; 0 for one that drains."""
    is_draining: bool
    series: int
    """Index of its counters."""
    signature: Signature
    platform: str
    workers: tuple[str, ...]
    max_batch_rows: int
    can_join: bool
    is_repeatable: bool
    timeout_s: float
    max_queue_rows: int
    max_queue_bytes: int
    created_s: int = 0
    """When the version was published, in seconds since 1970."""
    can_pad: bool = False
    """Warm-up showed that rows of different lengths answer the same when padded to the longest."""
    join_refusal: str = ""
    """Why rows are not joined, where they are not."""
    joining: str = ""
    """Why they are, where they are."""
    pad_refusal: str = ""
    """Why only rows of equal lengths are joined, where the signature is ragged."""
    service: tuple[tuple[int, int, float], ...] = ()
    """Rows, length (0 where not ragged) and seconds of the batches that a worker measured at its warm-up."""
    max_streams: int = 0
    """Raw requests that a replica answers at once for each front; 0 where the version has no raw endpoint."""


class TableEntry(msgspec.Struct, frozen=True):
    """One deployment."""

    name: str
    model: str
    lanes: tuple[LaneEntry, ...]


class RepositoryEntry(msgspec.Struct, frozen=True):
    """A deployment, or a model of the store that is not deployed, for the repository's index."""

    name: str
    version: str
    """Of the deployment, or the newest."""
    reason: str
    """Why no requests are taken for it, as far as that is known; whether they are, each front sees for itself."""


class Table(msgspec.Struct, frozen=True):
    """All deployments, or what has become of some of them since an earlier table."""

    epoch: int
    """Grows with every change."""
    deployments: tuple[TableEntry, ...] = ()
    """Each as it is now, whole."""
    repository: tuple[RepositoryEntry, ...] = ()
    base: int = 0
    """The epoch that this is a change of; 0 for a table that is whole, and replaces whatever was before."""
    removed: tuple[str, ...] = ()
    """Of a change: the deployments that are no more."""
    repository_removed: tuple[str, ...] = ()


def merge_repository(known: tuple[RepositoryEntry, ...], table: Table) -> tuple[RepositoryEntry, ...]:
    """Give the repository's entries as a table leaves them, by name."""
    if table.base and not table.repository and not table.repository_removed:
        return known
    entries = {entry.name: entry for entry in known} if table.base else {}
    entries.update((entry.name, entry) for entry in table.repository)
    for name in table.repository_removed:
        entries.pop(name, None)
    return tuple(sorted(entries.values(), key=lambda entry: entry.name))
