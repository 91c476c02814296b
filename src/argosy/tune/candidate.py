"""What can be chosen for a deployment: the engine that runs a version, and how it is arranged on the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from argosy.runtimes.base import ALSO_RUNS, OWN_THREADS, PRECISIONS

__all__ = ["BATCHES", "MAX_FRONTS", "Candidate", "Engine", "list_engines", "list_replicas"]

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
"""Values of `max_batch_rows` that are tried."""
MAX_FRONTS: Final = 4
"""One front answers 40,000 small requests/s; beyond four, a machine of this design has no workers left to ask."""


class Engine(msgspec.Struct, frozen=True, order=True):
    """What runs one replica."""

    runtime: str
    precision: str | None
    threads: int

    def __str__(self) -> str:
        return f"{' '.join(filter(None, (self.runtime, self.precision)))}, {self.threads} thread{'s' * (self.threads > 1)}"


class Candidate(msgspec.Struct, frozen=True, order=True):
    """Settings of a deployment, and the number of fronts."""

    engine: Engine
    replicas: int
    max_batch_rows: int
    num_fronts: int

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `DeploymentSpec`."""
        engine = self.engine
        return {
            "runtime": engine.runtime,
            "precision": engine.precision,
            "threads": engine.threads,
            "replicas": self.replicas,
            "max_batch_rows": self.max_batch_rows,
        }

    def __str__(self) -> str:
        counts = f"{self.replicas} replica{'s' * (self.replicas > 1)}, {self.num_fronts} front{'s' * (self.num_fronts > 1)}"
        return f"{self.engine}, {counts}, batches up to {self.max_batch_rows}"


def _double_up_to(limit: int) -> list[int]:
    """1, 2, 4 ... and the limit itself."""
    return sorted({limit, *(1 << power for power in range(limit.bit_length()) if 1 << power <= limit)})


def list_engines(own: str, available: Iterable[str], num_cores: int) -> list[Engine]:
    """Every engine that can run a version, by threads; its own runtime as it is comes first.

    Args:
        own: runtime of the version.
        available: other runtimes whose packages are here.
        num_cores: the most threads of one operator.
    """
    runtimes = [own, *(name for name in ALSO_RUNS.get(own, ()) if name in available)]
    return [
        Engine(runtime, precision, threads)
        for threads in _double_up_to(1 if own in OWN_THREADS else num_cores)
        for runtime in runtimes
        for precision in PRECISIONS.get(runtime, (None,))
    ]


def list_replicas(engine: Engine, num_cores: int) -> list[int]:
    """Numbers of replicas whose threads fit the cores."""
    return _double_up_to(max(1, num_cores // engine.threads))
