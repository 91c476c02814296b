"""Publish what compression made as the next version of its model, with all that was measured in its lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import Rows, stack_answers, write_rows
from argosy.compress.result import CompressResult
from argosy.compress.sample import take_golden
from argosy.errors import FaultError
from argosy.rows.axis import judge_file
from argosy.signature import JoinVerdict
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import list_step_files
from argosy.train.data import digest_arrays
from argosy.train.lineage import describe_environment

__all__ = ["publish_artifact"]

_PACKAGES = ("argosy", "numpy", "onnx", "onnxruntime", "openvino", "nncf")


def publish_artifact(store: Store, result: CompressResult, artifact: Artifact, calibration: Rows) -> Version:
    """Publish an artifact as the child of the version that it was made of."""
    parent = result.parent
    manifest = parent.manifest
    lineage: dict[str, Any] = {
        "kind": "compression",
        "precision": next((step.precision for step in reversed(result.recipe) if step.precision), _read_precision(parent)),
        "parent": {"name": parent.name, "number": parent.number, "digest": parent.digest},
        "compression": result.describe(),
        "environment": describe_environment(_PACKAGES),
    }
    if any(step.needs_calibration for step in result.recipe):
        digest = digest_arrays(*(array for row in calibration for array in row.values()))
        lineage["calibration"] = {"rows": len(calibration), "digest": digest}
    # What the parent was trained on and by which recipe holds for its child too.
    lineage |= {key: manifest.lineage[key] for key in ("data", "recipe", "training") if key in manifest.lineage}
    step_files = list_step_files(manifest.signature)
    folder = store.open_artifact(parent) if step_files else Path()
    golden = _answer_golden(artifact, store.load_golden(parent)) if manifest.num_golden else None
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
        measurements={
            result.score.metric: result.score.after,
            "size_bytes": result.after.size_bytes,
            "latency_s": result.after.latency_s,
            "batch_difference": result.after.batch_difference,
        },
        options=artifact.options,
        joining=_judge_joining(parent, artifact, result),
    )


def _read_precision(parent: Version) -> str:
    return str(parent.manifest.lineage.get("precision", "float32"))


def _answer_golden(artifact: Artifact, golden: Golden) -> Golden:
    """Give the parent's examples with the child's own answers."""
    sample = take_golden(artifact.signature, golden)
    with Probe(artifact) as probe:
        # The files of a probe go with it.
        files = write_rows(sample.rows, probe.work / "golden")
        found = probe.answer(files)
    # Of a version without rows each example is a request, whose first axis, if it is 1, stays.
    whole = found if artifact.signature.is_batched else [{name: array[None] for name, array in one.items()} for one in found]
    answers = stack_answers(whole)
    if answers is None:
        raise FaultError("engine_failed", engine=artifact.runtime, detail="its answers to golden examples have other shapes each")
    return Golden(golden.inputs, answers)


def _judge_joining(parent: Version, artifact: Artifact, result: CompressResult) -> JoinVerdict:
    """Say whether rows may be joined, by the graph that was made; of a graph that is not read, by the parent's and the steps."""
    if artifact.path.suffix == ".onnx" and artifact.signature.is_batched:
        return judge_file(artifact.path, artifact.signature)
    if all(step.keeps_rows for step in result.recipe):
        return parent.manifest.joining
    return JoinVerdict("unknown", f"made by {result.title}, whose graph is not read")
