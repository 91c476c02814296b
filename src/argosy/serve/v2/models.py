"""What the V2 protocol says of models, not of requests: metadata, configuration, statistics, the repository's index.

Each is a plain dict in the form of the HTTP bodies; for gRPC, `grpc_models.py` makes messages of the same dicts.

Source: kserve/open-inference-protocol, inference_rest.md; Triton's extension_model_configuration.md, model_config.proto,
extension_statistics.md and extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from argosy.errors import InputError
from argosy.serve.dispatch.call import Lane
from argosy.serve.dispatch.router import Router
from argosy.serve.wire.counters import Counters
from argosy.signature import TensorSpec

__all__ = [
    "EXTENSIONS",
    "ChangeJson",
    "IndexJson",
    "describe_config",
    "describe_lane",
    "list_repository",
    "list_stats",
    "read_repository_body",
]

EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)

_PLATFORMS: Final = {
    "jax": "jax_export",
    "keras": "keras_keras",
    "mxnet": "mxnet_symbol",
    "onnx": "onnxruntime_onnx",
    "openvino": "openvino_model",
    "python": "python_module",
    "tensorflow": "tensorflow_savedmodel",
    "torch": "pytorch_export",
}
"""Runtimes as V2 has them, PROJECT_FORMAT; those that Triton has, too, under its names."""

Body = dict[str, Any]
BodyJson = TypeVar("BodyJson")


class IndexJson(msgspec.Struct):
    """The body of a request for the repository's index."""

    ready: bool = False


class ChangeJson(msgspec.Struct):
    """The body of a request to load or unload."""

    parameters: dict[str, str | int | float | bool] | None = None


def read_repository_body(body: bytes | memoryview, kind: type[BodyJson]) -> BodyJson:
    """Read the body of a request to the repository; an empty one stands for all defaults.

    Raises:
        InputError: `bad_json`.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("bad_json", detail=str(error)) from None


def describe_lane(lane: Lane) -> Body:
    """The metadata of a model."""
    body: Body = {
        "name": lane.name,
        "versions": lane.versions,
        "platform": _PLATFORMS.get(lane.platform, lane.platform),
        "inputs": _describe_tensors(lane.signature.inputs),
        "outputs": _describe_tensors(lane.signature.outputs),
    }
    if lane.signature.preprocess:
        # What may be sent instead of `inputs`.
        body["parameters"] = {"raw_inputs": _describe_tensors(lane.signature.raw_inputs)}
    return body


def _describe_tensors(specs: Sequence[TensorSpec]) -> list[Body]:
    """As V2 has it; what it has no field for stands in `parameters`, which its extensions may fill."""
    tensors: list[Body] = []
    for spec in specs:
        tensor: Body = {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
        more = {"labels": spec.labels, "unit": spec.unit}
        if given := {name: value for name, value in more.items() if value is not None}:
            tensor["parameters"] = given
        tensors.append(tensor)
    return tensors


def describe_config(lane: Lane) -> Body:
    """The configuration of a model, as Triton's clients read it.

    `max_batch_size` is the rows of a request that fits one batch, 0 where the signature has no axis of rows; `dims` are then
    without that axis. A request may have more rows, and is refused only beyond what may wait.
    """
    is_batched = lane.signature.is_batched
    skip = 1 if is_batched else 0

    def describe(specs: Sequence[TensorSpec]) -> list[Body]:
        return [{"name": spec.name, "data_type": _name_type(spec.datatype), "dims": list(spec.shape[skip:])} for spec in specs]

    config: Body = {
        "name": lane.name,
        "platform": _PLATFORMS.get(lane.platform, lane.platform),
        "backend": lane.platform,
        "version_policy": {"specific": {"versions": [int(version) for version in lane.versions]}},
        "max_batch_size": lane.max_batch_rows if is_batched else 0,
        "input": describe(lane.signature.inputs),
        "output": describe(lane.signature.outputs),
        "instance_group": [{"name": lane.name, "kind": "KIND_CPU", "count": max(1, len(lane.links))}],
        "model_transaction_policy": {"decoupled": False},
    }
    if is_batched and lane.can_join:
        # No timer holds a request back for others.
        config["dynamic_batching"] = {"preferred_batch_size": [lane.max_batch_rows], "max_queue_delay_microseconds": 0}
    return config


def _name_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def list_stats(router: Router, counters: Counters, name: str = "", version: str = "") -> Body:
    """The statistics of a model's versions, or of all models, over all fronts of the node since its start.

    Raises:
        NotFoundError, UnavailableError: as `Router.find`.
    """
    if name:
        found = router.find(name, version)
        lanes = [lane for lane in router.list_lanes() if lane.name == name and version in ("", lane.version)] or [found]
    else:
        lanes = router.list_lanes()
    return {"model_stats": [_describe_stats(lane, counters) for lane in lanes]}


def _describe_stats(lane: Lane, counters: Counters) -> Body:
    """One version's statistics. Times are cumulative over requests, as Triton counts them, but for `batch_stats`.

    What is neither queue nor runtime (the rows' way to the worker and the answer's way back) stands in `compute_output`; it is
    not kept by size of batch.
    """
    totals = counters.total(lane.series.index)
    rest_s = max(0.0, totals.ok_s - totals.queue_s - totals.worker_s)
    return {
        "name": lane.name,
        "version": lane.version,
        "last_inference": int(counters.last_answer_s(lane.series.index) * 1e3),
        "inference_count": totals.rows,
        "execution_count": totals.batches,
        "inference_stats": {
            "success": _duration(totals.ok, totals.ok_s),
            "fail": _duration(totals.failed, 0.0),
            "queue": _duration(totals.ok, totals.queue_s),
            "compute_input": _duration(totals.ok, 0.0),
            "compute_infer": _duration(totals.ok, totals.worker_s),
            "compute_output": _duration(totals.ok, rest_s),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": int(min(size.max_rows, lane.max_batch_rows)),
                "compute_input": _duration(size.batches, 0.0),
                "compute_infer": _duration(size.batches, size.service_s),
                "compute_output": _duration(size.batches, 0.0),
            }
            for size in totals.sizes
            if size.batches
        ],
    }


def _duration(count: int, seconds: float) -> Body:
    return {"count": count, "ns": round(seconds * 1e9)}


def list_repository(router: Router, *, is_ready: bool = False) -> list[Body]:
    """Every model of the store and every deployment: which versions take requests here, and why others do not.

    Args:
        router: of this front.
        is_ready: leave out what does not.
    """
    states: dict[tuple[str, str], Body] = {}
    for entry in router.repository:
        states[entry.name, entry.version] = {
            "name": entry.name, "version": entry.version, "state": "UNAVAILABLE", "reason": entry.reason,
        }  # fmt: skip
    for lane in router.list_lanes():
        if lane.version in lane.versions:
            known = states.get((lane.name, lane.version), {"reason": ""})
            state = "READY" if lane.is_ready else "UNAVAILABLE"
            reason = "" if lane.is_ready else known["reason"] or "no replica is ready"
            states[lane.name, lane.version] = {"name": lane.name, "version": lane.version, "state": state, "reason": reason}
    return [states[key] for key in sorted(states) if not is_ready or states[key]["state"] == "READY"]
