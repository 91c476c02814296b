"""The gRPC half of the reference server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from argosy.conformance.grpc_infer import FIELDS
from argosy.conformance.grpc_wire import make_message
from argosy.conformance.tensors import DATATYPES, Array, from_raw, to_raw
from tests.conformance.reference_models import Refusal, describe_tensors

if TYPE_CHECKING:
    from tests.conformance.reference import Reference

_SERVICE = "/inference.GRPCInferenceService/"
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND"}


class Service(grpc.GenericRpcHandler):
    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def service(self, details: Any) -> Any:
        name = details.method.removeprefix(_SERVICE)
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream, self._parse("ModelInferRequest"), _serialize)
        function = getattr(self, re.sub("(?=[A-Z])", "_", name).lower(), None)
        if function is None and "any-method" in self._reference.flags:
            name, function = "ServerLive", self._server_live
        if function is None:
            return None
        kind = "RepositoryModelLoadRequest" if name == "RepositoryModelUnload" else f"{name}Request"

        def run(request: Any, context: Any) -> Any:
            try:
                reply: Any = function(request, context)
            except Refusal as error:
                reply = error
            reply = self._reference.grpc_fault(name, request, reply)
            if self._reference.has_lost_health:
                reply = Refusal("lost")
            if isinstance(reply, Refusal):
                context.abort(grpc.StatusCode[_CODES.get(reply.status, "INTERNAL")], str(reply))
            return reply

        return grpc.unary_unary_rpc_method_handler(run, self._parse(kind), _serialize)

    def _parse(self, kind: str) -> Callable[[bytes], Any]:
        return type(make_message(kind)).FromString

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        messages: list[Any] = []
        for request in requests:
            try:
                reply = self._model_infer(request, context)
                messages.append(make_message("ModelStreamInferResponse", infer_response=reply))
            except Refusal as error:
                messages.append(make_message("ModelStreamInferResponse", error_message=str(error)))
        yield from self._reference.stream_fault(messages)

    def _server_live(self, _: Any, __: Any) -> Any:
        return make_message("ServerLiveResponse", live=True)

    def _server_ready(self, _: Any, __: Any) -> Any:
        return make_message("ServerReadyResponse", ready=True)

    def _model_ready(self, request: Any, _: Any) -> Any:
        return make_message("ModelReadyResponse", ready=request.name in self._reference.loaded)

    def _server_metadata(self, _: Any, __: Any) -> Any:
        return make_message("ServerMetadataResponse", name="reference", version="1.0", extensions=self._reference.extensions)

    def _model_metadata(self, request: Any, _: Any) -> Any:
        return make_message(
            "ModelMetadataResponse", **self._reference.describe(self._reference.find(request.name, request.version))
        )

    def _model_config(self, request: Any, _: Any) -> Any:
        config = self._reference.describe_config(self._reference.find(request.name))
        sides = {side: [{"name": item["name"], "dims": item["dims"]} for item in config[side]] for side in ("input", "output")}
        return make_message("ModelConfigResponse", config={**config, **sides})

    def _model_statistics(self, request: Any, _: Any) -> Any:
        names = [self._reference.find(request.name)] if request.name else self._reference.names
        rows = [(name, *self._reference.counts[name]) for name in names]
        stats = [
            {"name": name, "inference_count": count, "inference_stats": {"success": {"count": requests}}}
            for name, count, requests in rows
        ]
        return make_message("ModelStatisticsResponse", model_stats=stats)

    def _repository_index(self, request: Any, _: Any) -> Any:
        return make_message("RepositoryIndexResponse", models=self._reference.list_index(request.ready))

    def _repository_model_load(self, request: Any, context: Any) -> Any:
        token = dict(context.invocation_metadata()).get("authorization", "")
        self._reference.change_repository(request.model_name, "load", token)
        return make_message("RepositoryModelLoadResponse")

    def _model_infer(self, request: Any, _: Any) -> Any:
        name = self._reference.find(request.model_name, request.model_version)
        raws = list(request.raw_input_contents)
        if raws and len(raws) != len(request.inputs):
            raise Refusal("raw_input_contents")
        inputs: dict[str, Array] = {}
        for place, item in enumerate(request.inputs):
            self._reference.check(name, item.name, item.datatype, list(item.shape))
            if item.name in inputs or (raws and item.HasField("contents")):
                raise Refusal(f"{item.name} twice")
            try:
                inputs[item.name] = _read_contents(item) if not raws else from_raw(raws[place], item.datatype, tuple(item.shape))
            except (ValueError, OverflowError) as error:
                raise Refusal(str(error)) from None
        outputs = self._reference.run(name, inputs, [output.name for output in request.outputs])
        reply = make_message("ModelInferResponse", model_name=name, model_version="1", id=request.id)
        datatypes = {spec["name"]: spec["datatype"] for spec in describe_tensors(name)[1]}
        for each, array in outputs.items():
            item = reply.outputs.add(name=each, datatype=datatypes[each], shape=array.shape)
            if self._reference.is_typed:
                getattr(item.contents, FIELDS[datatypes[each]]).extend(array.ravel().tolist())
            else:
                reply.raw_output_contents.append(to_raw(array, datatypes[each]))
        return reply


def _read_contents(item: Any) -> Array:
    fields = item.contents.ListFields()
    if [found.name for found, _ in fields] != [FIELDS.get(item.datatype)]:
        raise ValueError("contents")
    values, dtype = list(fields[0][1]), DATATYPES[item.datatype]
    if len(values) != int(np.prod(item.shape)):
        raise ValueError("number of values")
    array = np.array([*values, None], object)[:-1] if dtype.kind == "O" else np.array(values, dtype)
    return array.reshape(tuple(item.shape))


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()
