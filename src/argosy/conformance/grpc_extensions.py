"""Clauses on the methods that Triton added to the service: ModelConfig, ModelStatistics and the repository's."""

from __future__ import annotations

import time
from typing import Any, Final

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Skip
from argosy.conformance.grpc_basics import UNKNOWN
from argosy.conformance.grpc_infer import call_infer, make_infer
from argosy.conformance.grpc_wire import GrpcAnswer, make_message
from argosy.conformance.target import Target

_CONFIG: Final = "extension_model_configuration.md: GRPC"
_STATS: Final = "extension_statistics.md: GRPC"
_REPOSITORY: Final = "extension_model_repository.md: GRPC"
_PAUSE_S: Final = 0.05


def _read_config(target: Target) -> tuple[GrpcAnswer, Any]:
    answer = target.grpc.call_optional("ModelConfig", make_message("ModelConfigRequest", name=target.main.name))
    return answer, answer.read().config


@clause("grpc.config.model", "ModelConfig has the model's name, inputs and outputs", Level.MUST, _CONFIG)
def check_config(target: Target) -> None:
    answer, config = _read_config(target)
    answer.expect(config.name == target.main.name, f"name {target.main.name}")
    for kind, tensors in (("input", target.main.inputs), ("output", target.main.outputs)):
        found = [item.name for item in getattr(config, kind)]
        expected = [tensor.name for tensor in tensors]
        answer.expect(found == expected, f"{kind}s {', '.join(expected)}", f"{kind}s {', '.join(found)}")


@clause(
    "grpc.config.dims",
    "Dims are the metadata's shape, without the axis of rows where max_batch_size is above 0",
    Level.MUST,
    _CONFIG,
)
def check_dims(target: Target) -> None:
    answer, config = _read_config(target)
    first = 1 if config.max_batch_size > 0 else 0
    for items, tensors in ((config.input, target.main.inputs), (config.output, target.main.outputs)):
        found = {item.name: list(item.dims) for item in items}
        for tensor in tensors:
            expected, got = list(tensor.shape[first:]), found.get(tensor.name)
            answer.expect(got == expected, f"dims {expected} of {tensor.name}", f"dims {got}")


@clause("grpc.config.unknown-model", "ModelConfig of an unknown model is an error", Level.MUST, _CONFIG)
def check_config_unknown(target: Target) -> None:
    target.grpc.call_optional("ModelConfig", make_message("ModelConfigRequest", name=UNKNOWN)).expect_refusal()


def _read_stats(target: Target, name: str) -> tuple[GrpcAnswer, Any]:
    answer = target.grpc.call_optional("ModelStatistics", make_message("ModelStatisticsRequest", name=name))
    own = [item for item in answer.read().model_stats if item.name == target.main.name]
    answer.expect(bool(own), f"model_stats of {target.main.name}")
    return answer, own[-1]


@clause("grpc.stats.all", "ModelStatistics without a name has every model", Level.MUST, _STATS)
def check_stats_all(target: Target) -> None:
    answer, _ = _read_stats(target, "")
    missing = target.models.keys() - {item.name for item in answer.message.model_stats}
    answer.expect(not missing, "model_stats of every model", f"none of {', '.join(sorted(missing))}")


@clause(
    "grpc.stats.counts",
    "Requests and their rows are counted",
    Level.MUST,
    _STATS,
    "Other clients must be silent; counts may take a moment.",
)
def check_counts(target: Target) -> None:
    _, before = _read_stats(target, target.main.name)
    call_infer(target, make_infer(target.main)).read()
    num_rows = 2 if all(tensor.shape[:1] == (-1,) for tensor in target.main.inputs) else 1
    end = time.monotonic() + target.http.timeout_s
    while True:
        answer, after = _read_stats(target, target.main.name)
        got = (
            after.inference_count - before.inference_count,
            (after.inference_stats.success.count - before.inference_stats.success.count),
        )
        if got == (num_rows, 1) or time.monotonic() > end:
            break
        time.sleep(_PAUSE_S)
    answer.expect(got == (num_rows, 1), f"{num_rows} rows and 1 request more", f"{got[0]} and {got[1]} more")


@clause("grpc.stats.unknown-model", "ModelStatistics of an unknown model is an error", Level.MUST, _STATS)
def check_stats_unknown(target: Target) -> None:
    target.grpc.call_optional("ModelStatistics", make_message("ModelStatisticsRequest", name=UNKNOWN)).expect_refusal()


@clause("grpc.repository.index", "RepositoryIndex has every model, and the state of each", Level.MUST, _REPOSITORY)
def check_index(target: Target) -> None:
    answer = target.grpc.call_optional("RepositoryIndex", make_message("RepositoryIndexRequest"))
    found = {item.name: item.state for item in answer.read().models}
    for name in target.models:
        answer.expect(bool(found.get(name)), f"the state of {name}")


@clause("grpc.repository.index-ready", "ready = true leaves what is not ready out", Level.MUST, _REPOSITORY)
def check_index_ready(target: Target) -> None:
    answer = target.grpc.call_optional("RepositoryIndex", make_message("RepositoryIndexRequest", ready=True))
    states = {item.state for item in answer.read().models}
    answer.expect(states == {"READY"}, "models whose state is READY", f"states {', '.join(sorted(states))}")


@clause("grpc.repository.load-unknown", "RepositoryModelLoad of an unknown model is an error", Level.MUST, _REPOSITORY)
def check_load_unknown(target: Target) -> None:
    wire = target.grpc
    request = make_message("RepositoryModelLoadRequest", model_name=UNKNOWN)
    headers = [(name.lower(), value) for name, value in target.admin_headers.items()]
    answer = wire.call_optional("RepositoryModelLoad", request, metadata=headers)
    if answer.code in ("UNAUTHENTICATED", "PERMISSION_DENIED") and not headers:
        raise Skip("it needs --admin-token")
    answer.expect_refusal()
