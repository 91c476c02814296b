"""Methods of the gRPC service that are not inference: health, metadata, configuration, statistics, the repository.

What they say stands in `serve/v2/models.py`, once for both protocols; here it becomes messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from google.protobuf.json_format import ParseDict

from argosy.errors import InputError, NotFoundError
from argosy.serve.grpc import messages
from argosy.serve.grpc.requests import MessageBytes, read_parameters
from argosy.serve.grpc.server import GrpcServer
from argosy.serve.v2.models import EXTENSIONS, describe_config, describe_lane, list_repository, list_stats

__all__ = ["HEALTH", "METHODS", "SERVICE", "ErrandRequest", "Method"]

SERVICE: Final = "inference.GRPCInferenceService"


# Any: the classes of messages exist at run time only.
Method = Callable[[GrpcServer, MessageBytes], Any]


class _HealthReply(NamedTuple):
    """HealthCheckResponse, whose one field is an enumeration with the number 1."""

    is_serving: bool

    def SerializeToString(self) -> bytes:  # noqa: N802 - as messages call it
        return b"\x08\x01" if self.is_serving else b"\x08\x02"


class ErrandRequest(NamedTuple):
    """A load or unload that a client asks for; see `Errands.send`."""

    op: str
    model: str
    parameters: dict[str, Any]
    reply: Any
    """What answers it, once it is done."""


def _server_live(server: GrpcServer, message: MessageBytes) -> Any:
    messages.ServerLiveRequest.FromString(message)
    return messages.ServerLiveResponse(live=True)


def _server_ready(server: GrpcServer, message: MessageBytes) -> Any:
    messages.ServerReadyRequest.FromString(message)
    return messages.ServerReadyResponse(ready=_is_ready(server))


def _is_ready(server: GrpcServer) -> bool:
    return server.router.is_server_ready and not server.is_draining


def _check_health(server: GrpcServer, message: MessageBytes) -> Any:
    """As load balancers and Kubernetes ask; a service is the server, or a deployment by its name."""
    # HealthCheckRequest is another protocol's, and has one field: text with the number 1, as the name here.
    service = messages.ModelReadyRequest.FromString(message).name
    is_ready = _is_ready(server)
    if service not in ("", SERVICE):
        is_ready = server.router.is_ready(service) and is_ready
    return _HealthReply(is_ready)


def _model_ready(server: GrpcServer, message: MessageBytes) -> Any:
    request = messages.ModelReadyRequest.FromString(message)
    try:
        is_ready = server.router.is_ready(request.name, request.version)
    except NotFoundError:
        # As Triton answers: a client that polls for a model to appear expects an answer, not an error.
        is_ready = False
    return messages.ModelReadyResponse(ready=is_ready)


def _server_metadata(server: GrpcServer, message: MessageBytes) -> Any:
    messages.ServerMetadataRequest.FromString(message)
    return messages.ServerMetadataResponse(name="argosy", version=server.version, extensions=EXTENSIONS)


def _model_metadata(server: GrpcServer, message: MessageBytes) -> Any:
    request = messages.ModelMetadataRequest.FromString(message)
    body = describe_lane(server.router.describe(request.name, request.version))
    for described in (body, *body["inputs"], *body["outputs"]):
        # A parameter of MLServer's messages is a plain value: what is more goes as JSON.
        for key, value in described.get("parameters", {}).items():
            described["parameters"][key] = {"string_param": value if isinstance(value, str) else json.dumps(value)}
    return ParseDict(body, messages.ModelMetadataResponse())


def _model_config(server: GrpcServer, message: MessageBytes) -> Any:
    request = messages.ModelConfigRequest.FromString(message)
    body = describe_config(server.router.describe(request.name, request.version))
    return messages.ModelConfigResponse(config=body)


def _model_statistics(server: GrpcServer, message: MessageBytes) -> Any:
    request = messages.ModelStatisticsRequest.FromString(message)
    router = server.router
    body = list_stats(router, router.counters, request.name, request.version)
    return messages.ModelStatisticsResponse(**body)


def _repository_index(server: GrpcServer, message: MessageBytes) -> Any:
    request = messages.RepositoryIndexRequest.FromString(message)
    _refuse_repository(request)
    models = list_repository(server.router, is_ready=request.ready)
    return messages.RepositoryIndexResponse(models=models)


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise InputError("bad_parameter", name="repository_name", got=request.repository_name[:40], expected="none: there is one")


def _load(server: GrpcServer, message: MessageBytes) -> ErrandRequest:
    request = messages.RepositoryModelLoadRequest.FromString(message)
    return _make_errand("load", request, messages.RepositoryModelLoadResponse())


def _unload(server: GrpcServer, message: MessageBytes) -> ErrandRequest:
    request = messages.RepositoryModelUnloadRequest.FromString(message)
    return _make_errand("unload", request, messages.RepositoryModelUnloadResponse())


def _make_errand(op: str, request: Any, reply: Any) -> ErrandRequest:
    _refuse_repository(request)
    return ErrandRequest(op, request.model_name, read_parameters(request.parameters, request.parameters), reply)


HEALTH: Final[dict[str, Method]] = {"/grpc.health.v1.Health/Check": _check_health}
"""By path. Source: grpc/grpc, doc/health-checking.md; `Watch`, which a server need not have, is not offered."""

METHODS: Final[dict[str, Method]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelConfig": _model_config,
    "ModelStatistics": _model_statistics,
    "RepositoryIndex": _repository_index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
}
"""By name; each makes the reply to a message, or says which errand will answer it later."""
