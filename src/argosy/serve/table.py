"""What the control process tells fronts: which versions answer for which names, and which workers hold them."""

from __future__ import annotations

import msgspec

from argosy.signature import Signature

__all__ = ["LaneEntry", "Table", "TableEntry"]


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


class TableEntry(msgspec.Struct, frozen=True):
    """One deployment."""

    name: str
    model: str
    lanes: tuple[LaneEntry, ...]


class Table(msgspec.Struct, frozen=True):
    """All deployments; a later epoch replaces an earlier one."""

    epoch: int
    deployments: tuple[TableEntry, ...]
