"""gRPC to the server under test, through grpcio, with messages from a table of the suite's own.

Source: kserve/open-inference-protocol, open_inference_grpc.proto; Triton's grpc_service.proto and model_config.proto.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.text_format import MessageToString

from argosy.conformance.evidence import Evidence, NotOffered, show
from argosy.errors import InputError

__all__ = ["GrpcAnswer", "GrpcWire", "StreamAnswer", "make_message"]

SERVICE: Final = "/inference.GRPCInferenceService/"
MAX_ANSWER_BYTES: Final = 256 << 20

# A message a line; a field is its number, its name and its type: * is repeated, = a map from string.
_TABLE: Final = """
ServerLiveRequest
ServerLiveResponse: 1 live bool
ServerReadyRequest
ServerReadyResponse: 1 ready bool
ModelReadyRequest: 1 name string, 2 version string
ModelReadyResponse: 1 ready bool
ServerMetadataRequest
ServerMetadataResponse: 1 name string, 2 version string, 3 extensions *string
ModelMetadataRequest: 1 name string, 2 version string
TensorMetadata: 1 name string, 2 datatype string, 3 shape *int64
ModelMetadataResponse: 1 name string, 2 versions *string, 3 platform string, 4 inputs *TensorMetadata, 5 outputs *TensorMetadata
InferParameter: 1 bool_param bool, 2 int64_param int64, 3 string_param string
InferTensorContents: 1 bool_contents *bool, 2 int_contents *int32, 3 int64_contents *int64, 4 uint_contents *uint32, \
5 uint64_contents *uint64, 6 fp32_contents *float, 7 fp64_contents *double, 8 bytes_contents *bytes
InferTensor: 1 name string, 2 datatype string, 3 shape *int64, 4 parameters =InferParameter, 5 contents InferTensorContents
RequestedOutput: 1 name string, 2 parameters =InferParameter
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string, 4 parameters =InferParameter, \
5 inputs *InferTensor, 6 outputs *RequestedOutput, 7 raw_input_contents *bytes
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string, 4 parameters =InferParameter, \
5 outputs *InferTensor, 6 raw_output_contents *bytes
ModelStreamInferResponse: 1 error_message string, 2 infer_response ModelInferResponse
ModelConfigRequest: 1 name string, 2 version string
ModelInput: 1 name string, 2 data_type int32, 4 dims *int64
ModelOutput: 1 name string, 2 data_type int32, 3 dims *int64
ModelConfig: 1 name string, 2 platform string, 4 max_batch_size int32, 5 input *ModelInput, 6 output *ModelOutput
ModelConfigResponse: 1 config ModelConfig
ModelStatisticsRequest: 1 name string, 2 version string
StatisticDuration: 1 count uint64, 2 ns uint64
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64, 5 execution_count uint64, \
6 inference_stats InferStatistics
ModelStatisticsResponse: 1 model_stats *ModelStatistics
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
RepositoryIndexResponse: 1 models *ModelIndex
RepositoryModelLoadRequest: 1 repository_name string, 2 model_name string
RepositoryModelLoadResponse
"""
_Field: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    # A pool of its own, and a package of its own: names of messages are not on the wire.
    file = descriptor_pb2.FileDescriptorProto(name="argosy/conformance.proto", package="conformance", syntax="proto3")
    for line in _TABLE.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        if name == "InferParameter":
            message.oneof_decl.add(name="parameter_choice")
        for field in fields.split(",") if fields else ():
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if kind[0] in "*=" else _Field.LABEL_OPTIONAL
    if message.oneof_decl:
        field.oneof_index = 0
    type_name = kind.lstrip("*=")
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
        return
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".conformance.{type_name}"
    if kind[0] == "=":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "1", "key", "string")
        _add_field(entry, "2", "value", type_name)
        field.type_name = f".conformance.{message.name}.{entry.name}"


@cache
def _message_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"conformance.{name}"))


def make_message(kind: str, **fields: Any) -> Any:
    """A message by its name in `_TABLE`: fields are set, dicts become messages."""
    return _message_class(kind)(**fields)


class GrpcAnswer(Evidence):
    """What came back of a call.

    Attributes:
        code: name of the status, such as `OK`.
        message: the answer; empty where the code is not OK.
    """

    def __init__(self, sent: str, code: str, detail: str, message: Any) -> None:
        super().__init__(sent, f"{code} {show(_describe(message) if code == 'OK' else detail)}".rstrip())
        self.code = code
        self.message = message

    def read(self) -> Any:
        """The message of a good answer.

        Raises:
            Failure: the code is not OK.
        """
        self.expect(self.code == "OK", "status OK")
        return self.message

    def expect_refusal(self) -> None:
        """Go on if the server refused.

        Raises:
            Failure: it answered OK, or does not have the method.
        """
        self.expect(self.code not in ("OK", "UNIMPLEMENTED"), "a status other than OK")


class StreamAnswer(Evidence):
    """What came back of a stream.

    Attributes:
        code: of its end.
        messages: before it.
    """

    def __init__(self, sent: str, code: str, detail: str, messages: list[Any]) -> None:
        super().__init__(sent, show("; ".join([*map(_describe, messages), f"{code} {detail}".rstrip()])))
        self.code = code
        self.messages = messages


def _describe(message: Any) -> str:
    return MessageToString(message, as_one_line=True)


class GrpcWire:
    """Calls to one server.

    Args:
        address: host and port.
        timeout_s: for a call.

    Raises:
        InputError: `missing_extra`, grpcio is not installed.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        try:
            self._grpc: Any = importlib.import_module("grpc")
        except ImportError as error:
            raise InputError("missing_extra", feature="The gRPC part", package="grpcio", extra="conformance") from error
        self._channel: Any = self._grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", MAX_ANSWER_BYTES)])
        self._timeout_s = timeout_s

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def call(self, method: str, request: Any = None, *, reply: str = "", metadata: Iterable[tuple[str, str]] = ()) -> GrpcAnswer:
        """Make a unary call.

        Args:
            method: of the service.
            request: None for an empty one.
            reply: kind of the answer's message.  Default: `<method>Response`.
            metadata: of the call.
        """
        reply_class = _message_class(reply or f"{method}Response")
        sent = f"{method} {show(_describe(request)) if request is not None else ''}".rstrip()
        made = self._channel.unary_unary(f"{SERVICE}{method}", response_deserializer=reply_class.FromString)
        try:
            message = made(_encode(request), timeout=self._timeout_s, metadata=tuple(metadata))
        except self._grpc.RpcError as error:
            return GrpcAnswer(sent, error.code().name, error.details() or "", reply_class())
        return GrpcAnswer(sent, "OK", "", message)

    def call_optional(self, method: str, request: Any = None, *, metadata: Iterable[tuple[str, str]] = ()) -> GrpcAnswer:
        """As `call`, for a method that a server may do without.

        Raises:
            NotOffered: the server does.
        """
        answer = self.call(method, request, metadata=metadata)
        if answer.code == "UNIMPLEMENTED":
            raise NotOffered(f"the method {method} is not implemented")
        return answer

    def stream(self, requests: list[Any]) -> StreamAnswer:
        """Send inference requests on one ModelStreamInfer, close our side, and read to the end.

        Raises:
            NotOffered: the server does not have the method.
        """
        reply_class = _message_class("ModelStreamInferResponse")
        made = self._channel.stream_stream(f"{SERVICE}ModelStreamInfer", response_deserializer=reply_class.FromString)
        sent = "ModelStreamInfer " + show("; ".join(map(_describe, requests)))
        messages: list[Any] = []
        try:
            for message in made(map(_encode, requests), timeout=self._timeout_s):
                messages.append(message)
        except self._grpc.RpcError as error:
            if error.code().name == "UNIMPLEMENTED":
                raise NotOffered("the method ModelStreamInfer is not implemented") from None
            return StreamAnswer(sent, error.code().name, error.details() or "", messages)
        return StreamAnswer(sent, "OK", "", messages)


def _encode(request: Any) -> bytes:
    return b"" if request is None else request.SerializeToString()
