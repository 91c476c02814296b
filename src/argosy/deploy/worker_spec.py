"""What a worker is told to load, and what it is expected to need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from argosy.deploy.spec import DeploymentSpec, choose_runtime
from argosy.errors import StoreError
from argosy.rows.edition import EDITION
from argosy.runtimes.base import OWN_THREADS
from argosy.serve.worker.cores import count_cores
from argosy.store.manifest import GOLDEN_FILE, OWN_FILES, Version
from argosy.store.preprocess import list_step_files

__all__ = ["ESCAPE", "build_worker_spec", "estimate_memory", "judge_version", "name_setting"]

# A session holds its weights once more while it optimises them; the rest is the runtime itself.
_LOAD_FACTOR: Final = 1.6
_RUNTIME_BYTES: Final = 24 << 20

ESCAPE: Final = "joined_row_difference"
"""Measurement of a version: by how much a row has moved that was joined."""

Message = dict[str, Any]


def build_worker_spec(spec: DeploymentSpec, version: Version, folder: Path, num_fronts: int) -> Message:
    """What a worker is told to load. `key` is equal where one worker can stand for another.

    Raises:
        StoreError: the version's files are not in the folder.
    """
    manifest = version.manifest
    runtime = choose_runtime(spec, manifest.runtime)
    worker: Message = {
        "deployment": spec.name,
        "model": version.name,
        "version": version.number,
        "digest": version.digest,
        "runtime": runtime,
        "own_runtime": manifest.runtime,
        "precision": spec.precision or "",
        "folder": str(folder),
        "entry": manifest.entry,
        "signature": _strip_signature(msgspec.to_builtins(manifest.signature)),
        "exact": spec.exact,
        "repeatable": manifest.repeatable,
        "golden": GOLDEN_FILE if manifest.num_golden else "",
        "options": {
            **manifest.options,
            "threads": spec.threads,
            "max_threads": 1 if runtime in OWN_THREADS or not spec.replicas else max(1, count_cores() // spec.replicas),
            "share_weights": runtime == "onnx" and _shares_weights(spec, version, folder),
            **({"precision": spec.precision} if spec.precision else {}),
        },
        "max_batch_rows": spec.max_batch_rows,
        "num_fronts": num_fronts,
    }
    worker["key"] = hashlib.sha256(json.dumps(worker, sort_keys=True).encode()).hexdigest()[:16]
    # What workers found out is no reason to replace those that run.
    worker["joining"] = judge_version(version)
    # For whoever has to end it later, and may know no more of the deployment.
    worker["timeout_s"] = spec.timeout_s
    return worker


def judge_version(version: Version) -> Message:
    """What is known of the version's rows, with what workers have found out since it was published: `kind` and `reason`."""
    verdict = version.manifest.joining
    if (difference := version.measurements.get(ESCAPE)) is not None:
        return {"kind": "dependent", "reason": f"a joined row has moved by {difference:.3g} while it was served"}
    if version.pulled_from and verdict.kind == "independent":
        # What others say of it is no proof: it is tried, and watched.
        return {"kind": "unknown", "reason": f"whoever made it says that it is independent ({verdict.reason})"}
    if verdict.kind == "independent" and verdict.edition != EDITION:
        hint = "import or publish it again to have it judged"
        return {"kind": "unknown", "reason": f"another edition of the proof called it independent ({verdict.reason}); {hint}"}
    return {"kind": verdict.kind, "reason": verdict.reason}


def _shares_weights(spec: DeploymentSpec, version: Version, folder: Path) -> bool:
    if spec.share_weights is not None:
        return spec.share_weights
    own = {version.manifest.entry, *OWN_FILES, *list_step_files(version.manifest.signature)}
    try:
        return any(path.name not in own for path in folder.iterdir())
    except OSError as error:
        raise StoreError("missing_file", path=folder, detail=str(error)) from error


def _strip_signature(signature: Message) -> Message:
    """Of a tensor its name, datatype and shape alone: labels may be many, and a worker does not need them."""
    keys = ("name", "datatype", "shape")
    tensors = {side: [{key: spec[key] for key in keys} for spec in signature[side]] for side in ("inputs", "outputs")}
    return {**signature, **tensors}


def estimate_memory(spec: DeploymentSpec, version: Version) -> int:
    """Bytes that one replica needs: as measured at an earlier load, else guessed from the artifact's size."""
    measured = version.measurements.get(f"{name_setting(spec)}memory_bytes")
    return int(measured) if measured else int(version.size_bytes * _LOAD_FACTOR) + _RUNTIME_BYTES


def name_setting(spec: DeploymentSpec) -> str:
    """What stands before the name of a measurement that was taken of another runtime than the version's own."""
    return "".join(f"{part}_" for part in (spec.runtime, spec.precision) if part)
