"""Methods of the gRPC service that are not inference: health, metadata, configuration, statistics, the repository.

What they say stands in `v2_models.py`, once for both protocols; here it becomes messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import ParseDict

from argosy.errors import ArgosyError, InputError, NotFoundError
from argosy.serve.dispatch.errands import Errand
from argosy.serve.grpc import messages
from argosy.serve.grpc.replies import encode_status
from argosy.serve.grpc.requests import read_parameters
from argosy.serve.v2.models import EXTENSIONS, describe_config, describe_lane, list_repository, list_stats

if TYPE_CHECKING:
    from argosy.serve.grpc.connection import GrpcConnection, GrpcHead, Message

__all__ = ["METHODS"]

Method = Callable[["GrpcConnection", int, "GrpcHead", "Message"], object]


def _server_live(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    messages.ServerLiveRequest.FromString(message)
    connection.send_reply(stream_id, messages.ServerLiveResponse(live=True))


def _server_ready(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    messages.ServerReadyRequest.FromString(message)
    server = connection.server
    is_ready = server.router.is_server_ready and not server.is_draining
    connection.send_reply(stream_id, messages.ServerReadyResponse(ready=is_ready))


def _model_ready(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    request = messages.ModelReadyRequest.FromString(message)
    try:
        is_ready = connection.server.router.is_ready(request.name, request.version)
    except NotFoundError:
        # As Triton answers: a client that polls for a model to appear expects an answer, not an error.
        is_ready = False
    connection.send_reply(stream_id, messages.ModelReadyResponse(ready=is_ready))


def _server_metadata(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    messages.ServerMetadataRequest.FromString(message)
    reply = messages.ServerMetadataResponse(name="argosy", version=connection.server.version, extensions=EXTENSIONS)
    connection.send_reply(stream_id, reply)


def _model_metadata(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    request = messages.ModelMetadataRequest.FromString(message)
    body = describe_lane(connection.server.router.describe(request.name, request.version))
    for described in (body, *body["inputs"], *body["outputs"]):
        # A parameter of MLServer's messages is a plain value: what is more goes as JSON.
        for key, value in described.get("parameters", {}).items():
            described["parameters"][key] = {"string_param": value if isinstance(value, str) else json.dumps(value)}
    connection.send_reply(stream_id, ParseDict(body, messages.ModelMetadataResponse()))


def _model_config(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    request = messages.ModelConfigRequest.FromString(message)
    body = describe_config(connection.server.router.describe(request.name, request.version))
    connection.send_reply(stream_id, messages.ModelConfigResponse(config=body))


def _model_statistics(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    request = messages.ModelStatisticsRequest.FromString(message)
    router = connection.server.router
    body = list_stats(router, router.counters, request.name, request.version)
    connection.send_reply(stream_id, messages.ModelStatisticsResponse(**body))


def _repository_index(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> None:
    request = messages.RepositoryIndexRequest.FromString(message)
    _refuse_repository(request)
    models = list_repository(connection.server.router, is_ready=request.ready)
    connection.send_reply(stream_id, messages.RepositoryIndexResponse(models=models))


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise InputError("bad_parameter", name="repository_name", got=request.repository_name[:40], expected="none: there is one")


def _load(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> Errand:
    request = messages.RepositoryModelLoadRequest.FromString(message)
    return _send_errand(connection, stream_id, head, "load", request, messages.RepositoryModelLoadResponse())


def _unload(connection: GrpcConnection, stream_id: int, head: GrpcHead, message: Message) -> Errand:
    request = messages.RepositoryModelUnloadRequest.FromString(message)
    return _send_errand(connection, stream_id, head, "unload", request, messages.RepositoryModelUnloadResponse())


def _send_errand(connection: GrpcConnection, stream_id: int, head: GrpcHead, op: str, request: Any, reply: Any) -> Errand:
    _refuse_repository(request)

    def answer(error: ArgosyError | None) -> None:
        if error is None:
            connection.send_reply(stream_id, reply)
        else:
            connection.respond(stream_id, encode_status(error))

    parameters = read_parameters(request.parameters, request.parameters)
    return connection.server.errands.send(op, request.model_name, parameters, head.authorization, answer)


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
"""By name; each answers with `send_reply`, or returns what will answer later."""
