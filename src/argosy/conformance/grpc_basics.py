"""Clauses on health, metadata and status codes over gRPC."""

from __future__ import annotations

from typing import Any, Final

from argosy.conformance.clause import Level, clause
from argosy.conformance.grpc_wire import make_message
from argosy.conformance.target import Target

UNKNOWN: Final = "conformance-no-such-model"
NO_VERSION: Final = "987654321"
_GRPC: Final = "inference_grpc.md: "


@clause("grpc.health.live", "ServerLive says live", Level.MUST, _GRPC + "Server Live")
def check_live(target: Target) -> None:
    answer = target.grpc.call("ServerLive")
    answer.expect(answer.read().live, "live: true")


@clause("grpc.health.ready", "ServerReady says ready", Level.MUST, _GRPC + "Server Ready")
def check_ready(target: Target) -> None:
    answer = target.grpc.call("ServerReady")
    answer.expect(answer.read().ready, "ready: true")


@clause("grpc.health.model-ready", "ModelReady says that a model is ready", Level.MUST, _GRPC + "Model Ready")
def check_model_ready(target: Target) -> None:
    answer = target.grpc.call("ModelReady", make_message("ModelReadyRequest", name=target.main.name))
    answer.expect(answer.read().ready, "ready: true")


@clause("grpc.health.version-ready", "ModelReady says that a version is ready", Level.MUST, _GRPC + "Model Ready")
def check_version_ready(target: Target) -> None:
    wire, version = target.grpc, target.need_version(target.main)
    answer = wire.call("ModelReady", make_message("ModelReadyRequest", name=target.main.name, version=version))
    answer.expect(answer.read().ready, "ready: true")


@clause(
    "grpc.health.unknown-model",
    "A model that does not exist is not ready",
    Level.MUST,
    _GRPC + "Model Ready",
    "ready = false and an error are both taken.",
)
def check_unknown_ready(target: Target) -> None:
    answer = target.grpc.call("ModelReady", make_message("ModelReadyRequest", name=UNKNOWN))
    answer.expect(answer.code != "UNIMPLEMENTED" and not answer.message.ready, "ready: false, or an error")


@clause("grpc.metadata.server", "ServerMetadata tells what HTTP does", Level.MUST, _GRPC + "Server Metadata")
def check_server_metadata(target: Target) -> None:
    answer = target.grpc.call("ServerMetadata")
    found = answer.read()
    expected = target.get("/v2").read_object()
    for name in ("name", "version"):
        got = getattr(found, name)
        answer.expect(bool(got) and got == expected.get(name), f"{name} {expected.get(name)!r}, as over HTTP")


def _read_metadata(target: Target, version: str = "") -> tuple[Any, Any]:
    answer = target.grpc.call("ModelMetadata", make_message("ModelMetadataRequest", name=target.main.name, version=version))
    return answer, answer.read()


def _check_tensors(target: Target, version: str) -> None:
    answer, found = _read_metadata(target, version)
    answer.expect(found.name == target.main.name, f"name {target.main.name}")
    for kind in ("inputs", "outputs"):
        got = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in getattr(found, kind)]
        expected = [tuple(tensor) for tensor in getattr(target.main, kind)]
        answer.expect(got == expected, f"{kind} {expected}, as over HTTP", f"{kind} {got}")


@clause("grpc.metadata.model", "ModelMetadata describes the tensors that HTTP does", Level.MUST, _GRPC + "Model Metadata")
def check_model_metadata(target: Target) -> None:
    _check_tensors(target, "")


@clause("grpc.metadata.version", "ModelMetadata of a version describes the same", Level.MUST, _GRPC + "Model Metadata")
def check_version_metadata(target: Target) -> None:
    _ = target.grpc
    _check_tensors(target, target.need_version(target.main))


@clause("grpc.metadata.versions", "ModelMetadata names the versions that HTTP does", Level.MUST, _GRPC + "Model Metadata")
def check_versions(target: Target) -> None:
    answer, found = _read_metadata(target)
    answer.expect(tuple(found.versions) == target.main.versions, f"versions {list(target.main.versions)}, as over HTTP")


@clause("grpc.metadata.unknown-model", "The metadata of an unknown model is an error", Level.MUST, _GRPC + "Model Metadata")
def check_unknown_model(target: Target) -> None:
    target.grpc.call("ModelMetadata", make_message("ModelMetadataRequest", name=UNKNOWN)).expect_refusal()


@clause("grpc.metadata.unknown-version", "The metadata of an unknown version is an error", Level.MUST, _GRPC + "Model Metadata")
def check_unknown_version(target: Target) -> None:
    wire = target.grpc
    target.need_version(target.main)
    wire.call("ModelMetadata", make_message("ModelMetadataRequest", name=target.main.name, version=NO_VERSION)).expect_refusal()


@clause(
    "grpc.status.unimplemented",
    "A method that does not exist is UNIMPLEMENTED",
    Level.MUST,
    "gRPC status codes: UNIMPLEMENTED",
)
def check_unimplemented(target: Target) -> None:
    answer = target.grpc.call("ConformanceNoSuchMethod", reply="ServerLiveResponse")
    answer.expect(answer.code == "UNIMPLEMENTED", "UNIMPLEMENTED")


@clause(
    "grpc.status.not-found",
    "An unknown model is NOT_FOUND",
    Level.SHOULD,
    "gRPC status codes: NOT_FOUND",
    "The V2 text leaves the code open.",
)
def check_not_found(target: Target) -> None:
    answer = target.grpc.call("ModelMetadata", make_message("ModelMetadataRequest", name=UNKNOWN))
    answer.expect(answer.code == "NOT_FOUND", "NOT_FOUND")
