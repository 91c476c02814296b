"""What a trial's model costs to keep and to run, by the runtime that would serve it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from argosy.bench.artifact import open_version
from argosy.bench.probe import Probe
from argosy.bench.rows import write_rows
from argosy.search.child import CANDIDATE
from argosy.serve.worker.cores import count_cores
from argosy.store.local import Store

__all__ = ["COSTS", "TIMED", "measure_costs"]

_BLOCKS: Final = 8
_BLOCK_S: Final = 0.05
_MAX_ROWS: Final = 64
_LIMIT_S: Final = 1.0

COSTS: Final = {"size": "minimize", "latency": "minimize", "throughput": "maximize", "memory": "minimize"}
"""Objectives that the exported model is measured for: bytes, seconds of one row alone, rows a second, bytes of a worker."""
TIMED: Final = frozenset({"latency", "throughput", "memory"})
"""Those that are measured in a worker, alone on the machine."""


def measure_costs(home: Path, wanted: Mapping[str, object]) -> dict[str, float]:
    """Measure the model of a trial.

    Args:
        home: of the trial's own store.
        wanted: names of `COSTS`; others are left out.

    Raises:
        FaultError: `engine_failed`, it does not load or run.
        StoreError: its files are damaged.
    """
    store = Store(home)
    version = store.get_version(CANDIDATE)
    artifact = open_version(store, version)
    found: dict[str, float] = {"size": float(artifact.size_bytes)}
    if TIMED & wanted.keys():
        golden = store.load_golden(version)
        rows = [{name: array[place : place + 1] for name, array in golden.inputs.items()} for place in range(golden.num_examples)]
        with Probe(artifact, threads=count_cores(), title="the trial's model") as probe:
            probe.choose(write_rows(rows, probe.work / "rows"))
            found["latency"] = _time_one(probe, len(rows))
            if "throughput" in wanted:
                batches = probe.time_batches(_MAX_ROWS, _LIMIT_S)
                found["throughput"] = max(count / seconds for count, seconds in batches.items())
            found["memory"] = float(probe.take_memory())
    return {name: value for name, value in found.items() if name in wanted}


def _time_one(probe: Probe, num_rows: int) -> float:
    """Give the median over blocks of what a block's faster quarter takes: other work on the machine only ever slows runs."""
    warm = probe.time_rounds(1, 2 * num_rows)
    runs = int(min(500, max(4, _BLOCK_S / max(1e-6, float(np.median(warm))))))
    return float(np.median([np.quantile(probe.time_rounds(1, runs), 0.25) for _ in range(_BLOCKS)]))
