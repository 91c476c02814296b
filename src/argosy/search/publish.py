"""Make the best trial's model a version, whose lineage says of which search it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from argosy.bench.artifact import open_version
from argosy.search.child import CANDIDATE
from argosy.search.record import Record, list_ancestry
from argosy.search.runner import find_home_of
from argosy.search.study import Study
from argosy.store.local import Store
from argosy.store.manifest import Version

__all__ = ["publish_best"]


def publish_best(study: Study, best: Record, store: Store, about: Mapping[str, Any], say: Callable[[str], None]) -> Version:
    """Publish a trial's model under the search's name; what was published before is given again.

    Raises:
        StoreError: the trial's files are damaged; `disk_full`, `write_failed`.
    """
    own = {**study.describe(), **about, "trial": best.number, "parameters": best.parameters, "values": best.values}
    for model in store.list_models():
        if model.name != study.name:
            continue
        for version in store.list_versions(study.name):
            known: Any = version.manifest.lineage.get("search", {})
            if {name: known.get(name) for name in own} == own:
                say(f"trial {best.number} is {version.name}@{version.number} already")
                return version
    kept = Store(find_home_of(study, best.number))
    candidate = kept.get_version(CANDIDATE)
    manifest, artifact = candidate.manifest, open_version(kept, candidate)
    found: dict[str, Any] = {"num_trials": len(study.trials), "journal": study.digest}
    way = list_ancestry(study.trials, best)
    if len(way) > 1:
        found["schedule"] = [{"epochs": max(one.steps, default=0), "parameters": one.parameters} for one in way]
    units = {"latency": "latency_s", "throughput": "rows_per_s", "memory": "memory_bytes", "size": "size_bytes"}
    measured = {units.get(name, f"validation_{name}"): value for name, value in best.values.items()}
    return store.publish(
        study.name,
        artifact.files,
        signature=manifest.signature,
        runtime=manifest.runtime,
        entry=manifest.entry,
        repeatable=manifest.repeatable,
        golden=kept.load_golden(candidate) if manifest.num_golden else None,
        golden_is_synthetic=manifest.golden_is_synthetic,
        lineage={**manifest.lineage, "search": {**own, **found}},
        measurements={**manifest.measurements, **measured},
        options=manifest.options,
        joining=manifest.joining,
    )
