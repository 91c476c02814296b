"""Publish what compression made as the next version of its model, with all that was measured in its lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import Rows, write_rows
from argosy.compress.recipe import Recipe, retrains
from argosy.compress.result import CompressResult, name_recipe
from argosy.compress.sample import take_golden
from argosy.errors import FaultError
from argosy.frameworks.describe import digest_arrays
from argosy.importers.onnx import check_graphs
from argosy.signature import JoinVerdict
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import list_step_files
from argosy.train.lineage import describe_environment

__all__ = ["PACKAGES", "answer_golden", "judge_joining", "publish_artifact"]

PACKAGES = ("argosy", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch")
"""What a compression depends on."""


def publish_artifact(store: Store, result: CompressResult, artifact: Artifact, calibration: Rows, training: Rows = ()) -> Version:
    """Publish an artifact as the child of the version that it was made of."""
    parent = result.parent
    manifest = parent.manifest
    lineage: dict[str, Any] = {
        "kind": "compression",
        "precision": next((step.precision for step in reversed(result.recipe) if step.precision), _read_precision(parent)),
        "parent": {"name": parent.name, "number": parent.number, "digest": parent.digest},
        "compression": result.describe(),
        "environment": describe_environment(PACKAGES),
    }
    if any(step.needs_calibration for step in result.recipe):
        digest = digest_arrays(*(array for row in calibration for array in row.values()))
        lineage["calibration"] = {"rows": len(calibration), "digest": digest}
    if retrains(result.recipe):
        digest = digest_arrays(*(array for row in training for array in row.values()))
        lineage["retraining"] = {"rows": len(training), "digest": digest}
    # What the parent was trained on and by which recipe holds for its child too.
    lineage |= {key: manifest.lineage[key] for key in ("data", "recipe", "training") if key in manifest.lineage}
    step_files = list_step_files(manifest.signature)
    folder = store.open_artifact(parent) if step_files else Path()
    golden = answer_golden(artifact, store.load_golden(parent)) if manifest.num_golden else None
    return store.publish(
        parent.name,
        {**artifact.files, **{name: folder / name for name in step_files}},
        signature=manifest.signature,
        runtime=artifact.runtime,
        entry=artifact.entry,
        repeatable=manifest.repeatable,
        golden=golden,
        golden_is_synthetic=manifest.golden_is_synthetic and golden is not None,
        lineage=lineage,
        measurements=_list_measurements(result),
        options=artifact.options,
        joining=judge_joining(parent, artifact, result.recipe),
    )


def _read_precision(parent: Version) -> str:
    return str(parent.manifest.lineage.get("precision", "float32"))


def _list_measurements(result: CompressResult) -> dict[str, float]:
    after = result.after
    found = {
        result.score.metric: result.score.after,
        "size_bytes": after.size_bytes,
        "latency_s": after.latency_s,
        "batch_difference": after.batch_difference,
    }
    if after.served is None:
        return found
    # `memory_bytes` is what a rollout goes by: whether the version fits beside the one that is live.
    kept = ("p50_s", "p99_s", "load_p50_s", "load_p99_s", "rows_per_s", "memory_bytes")
    return found | {name: getattr(after.served, name) for name in kept}


def answer_golden(artifact: Artifact, golden: Golden) -> Golden:
    """Give examples with an artifact's own answers.

    Args:
        artifact: answers.
        golden: the examples; their answers are not looked at.

    Raises:
        FaultError: `engine_failed`, it cannot run them.
    """
    sample = take_golden(artifact.signature, golden)
    with Probe(artifact) as probe:
        # The files of a probe go with it.
        answers = probe.answer(write_rows(sample.rows, probe.work / "golden"))
    join = np.concatenate if artifact.signature.is_batched else np.stack
    try:
        return Golden(golden.inputs, {name: join([answer[name] for answer in answers]) for name in answers[0]})
    except ValueError as error:
        detail = "its answers to golden examples have other shapes each"
        raise FaultError("engine_failed", engine=artifact.runtime, detail=detail) from error


def judge_joining(parent: Version, artifact: Artifact, recipe: Recipe) -> JoinVerdict:
    """Say whether rows may be joined, by the graph that was made; of a graph that is not read, by the parent's and the steps.

    The graph is read in a confined process, as one that is imported is.

    Raises:
        InputError: `bad_onnx`, `bad_external_data`, its weights would be read from a file that is none of its own.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
    """
    if artifact.path.suffix == ".onnx":
        judged = artifact.path if artifact.signature.is_batched else None
        names = artifact.files
        verdict = check_graphs([artifact.path], artifact.folder, names, judged=judged, signature=artifact.signature)
        if judged is not None:
            return verdict
    if all(step.keeps_rows for step in recipe):
        return parent.manifest.joining
    return JoinVerdict("unknown", f"made by {name_recipe(recipe)}, whose graph is not read")
