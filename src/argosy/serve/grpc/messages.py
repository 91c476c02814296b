"""The messages of the Open Inference Protocol V2 over gRPC, package `inference`, with the public field numbers.

They are built from the table below into a descriptor pool of our own: the default pool of the process may hold
another `inference` package (tritonclient's, kserve's), and two descriptions of one name cannot share a pool.

Source: kserve/open-inference-protocol, open_inference_grpc.proto; Triton's grpc_service.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from argosy.errors import InputError

__all__ = [
    "POOL",
    "DecodeError",
    "InferParameter",
    "InferTensorContents",
    "ModelConfigRequest",
    "ModelConfigResponse",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ModelStatisticsRequest",
    "ModelStatisticsResponse",
    "ModelStreamInferResponse",
    "RepositoryIndexRequest",
    "RepositoryIndexResponse",
    "RepositoryModelLoadRequest",
    "RepositoryModelLoadResponse",
    "RepositoryModelUnloadRequest",
    "RepositoryModelUnloadResponse",
    "ServerLiveRequest",
    "ServerLiveResponse",
    "ServerMetadataRequest",
    "ServerMetadataResponse",
    "ServerReadyRequest",
    "ServerReadyResponse",
    "parse_infer_request",
]

PLAIN_BYTES: Final = 64 << 10
"""Requests up to this size are parsed as they are. Of a larger one, all that is not tensor data must fit in it."""
MAX_FIELDS: Final = 4096
"""Fields of a larger request, those of its inputs included."""
MAX_TYPED_BYTES: Final = 4 << 20
"""Typed contents of a request: they cost 50 ns an element and hold up the front meanwhile; raw contents do not."""

# One line a message; a field is NUMBER NAME TYPE. `*` marks a repeated field, `=` a map from string, and fields after
# `|` are alternatives, of which at most one is set.
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
ModelMetadataResponse: 1 name string, 2 versions *string, 3 platform string, 4 inputs *.TensorMetadata, \
5 outputs *.TensorMetadata, 6 parameters =InferParameter
ModelMetadataResponse.TensorMetadata: 1 name string, 2 datatype string, 3 shape *int64, 4 parameters =InferParameter
InferParameter: | 1 bool_param bool, 2 int64_param int64, 3 string_param string, 4 double_param double, 5 uint64_param uint64
InferTensorContents: 1 bool_contents *bool, 2 int_contents *int32, 3 int64_contents *int64, 4 uint_contents *uint32, \
5 uint64_contents *uint64, 6 fp32_contents *float, 7 fp64_contents *double, 8 bytes_contents *bytes
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string, 4 parameters =InferParameter, \
5 inputs *.InferInputTensor, 6 outputs *.InferRequestedOutputTensor, 7 raw_input_contents *bytes
ModelInferRequest.InferInputTensor: 1 name string, 2 datatype string, 3 shape *int64, 4 parameters =InferParameter, \
5 contents InferTensorContents
ModelInferRequest.InferRequestedOutputTensor: 1 name string, 2 parameters =InferParameter
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string, 4 parameters =InferParameter, \
5 outputs *.InferOutputTensor, 6 raw_output_contents *bytes
ModelInferResponse.InferOutputTensor: 1 name string, 2 datatype string, 3 shape *int64, 4 parameters =InferParameter, \
5 contents InferTensorContents
ModelStreamInferResponse: 1 error_message string, 2 infer_response ModelInferResponse
ModelConfigRequest: 1 name string, 2 version string
ModelConfigResponse: 1 config ModelConfig
ModelConfig: 1 name string, 2 platform string, 17 backend string, 3 version_policy ModelVersionPolicy, 4 max_batch_size int32, \
5 input *ModelInput, 6 output *ModelOutput, 11 dynamic_batching ModelDynamicBatching, 7 instance_group *ModelInstanceGroup, \
19 model_transaction_policy ModelTransactionPolicy
ModelVersionPolicy: 3 specific .Specific
ModelVersionPolicy.Specific: 1 versions *int64
ModelInput: 1 name string, 2 data_type DataType, 4 dims *int64
ModelOutput: 1 name string, 2 data_type DataType, 3 dims *int64
ModelDynamicBatching: 1 preferred_batch_size *int32, 2 max_queue_delay_microseconds uint64
ModelInstanceGroup: 1 name string, 4 kind InstanceKind, 2 count int32
ModelTransactionPolicy: 1 decoupled bool
ModelStatisticsRequest: 1 name string, 2 version string
ModelStatisticsResponse: 1 model_stats *ModelStatistics
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64, 5 execution_count uint64, \
6 inference_stats InferStatistics, 7 batch_stats *InferBatchStatistics
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration, \
4 compute_input StatisticDuration, 5 compute_infer StatisticDuration, 6 compute_output StatisticDuration, \
7 cache_hit StatisticDuration, 8 cache_miss StatisticDuration
InferBatchStatistics: 1 batch_size uint64, 2 compute_input StatisticDuration, 3 compute_infer StatisticDuration, \
4 compute_output StatisticDuration
StatisticDuration: 1 count uint64, 2 ns uint64
ModelRepositoryParameter: | 1 bool_param bool, 2 int64_param int64, 3 string_param string, 4 bytes_param bytes
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
RepositoryIndexResponse: 1 models *.ModelIndex
RepositoryIndexResponse.ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
RepositoryModelLoadRequest: 1 repository_name string, 2 model_name string, 3 parameters =ModelRepositoryParameter
RepositoryModelLoadResponse
RepositoryModelUnloadRequest: 1 repository_name string, 2 model_name string, 3 parameters =ModelRepositoryParameter
RepositoryModelUnloadResponse
"""
# The values of an enumeration, from 0 on.
_ENUMS: Final = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16",
        "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "InstanceKind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
_PACKAGE: Final = "inference"
_ONEOF: Final = "parameter_choice"
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


def _build_pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="argosy/inference.proto", package=_PACKAGE, syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    messages: dict[str, descriptor_pb2.DescriptorProto] = {}
    for line in _TABLE.strip().splitlines():
        path, _, fields = line.partition(":")
        outer, _, name = path.rpartition(".")
        message = messages[path] = (messages[outer].nested_type if outer else file.message_type).add(name=name)
        if fields.lstrip().startswith("|"):
            message.oneof_decl.add(name=_ONEOF)
        for field in fields.replace("|", "").split(",") if fields else ():
            _add_field(message, outer or path, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: descriptor_pb2.DescriptorProto, scope: str, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if kind[0] in "*=" else _Field.LABEL_OPTIONAL
    if message.oneof_decl:
        field.oneof_index = 0
    type_name = kind.lstrip("*=")
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
        return
    if type_name in _ENUMS:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{_PACKAGE}.{type_name}"
        return
    field.type = _Field.TYPE_MESSAGE
    if kind[0] != "=":
        field.type_name = f".{_PACKAGE}.{scope}{type_name}" if type_name[0] == "." else f".{_PACKAGE}.{type_name}"
        return
    # A map is a repeated message of key and value, whose name the protobuf compilers derive like this.
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _add_field(entry, scope, "1", "key", "string")
    _add_field(entry, scope, "2", "value", type_name)
    outer = f"{scope}.{message.name}" if message.name != scope else scope
    field.type_name = f".{_PACKAGE}.{outer}.{entry.name}"


POOL: Final = _build_pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


# Any: the classes exist at run time only, and stubs for them would be the generated code that this table replaces.
InferParameter: Final[Any] = _message("InferParameter")
InferTensorContents: Final[Any] = _message("InferTensorContents")
ModelInferRequest: Final[Any] = _message("ModelInferRequest")
ModelInferResponse: Final[Any] = _message("ModelInferResponse")
ModelMetadataRequest: Final[Any] = _message("ModelMetadataRequest")
ModelMetadataResponse: Final[Any] = _message("ModelMetadataResponse")
ModelReadyRequest: Final[Any] = _message("ModelReadyRequest")
ModelReadyResponse: Final[Any] = _message("ModelReadyResponse")
ServerLiveRequest: Final[Any] = _message("ServerLiveRequest")
ServerLiveResponse: Final[Any] = _message("ServerLiveResponse")
ServerMetadataRequest: Final[Any] = _message("ServerMetadataRequest")
ServerMetadataResponse: Final[Any] = _message("ServerMetadataResponse")
ServerReadyRequest: Final[Any] = _message("ServerReadyRequest")
ServerReadyResponse: Final[Any] = _message("ServerReadyResponse")
ModelConfigRequest: Final[Any] = _message("ModelConfigRequest")
ModelConfigResponse: Final[Any] = _message("ModelConfigResponse")
ModelStatisticsRequest: Final[Any] = _message("ModelStatisticsRequest")
ModelStatisticsResponse: Final[Any] = _message("ModelStatisticsResponse")
ModelStreamInferResponse: Final[Any] = _message("ModelStreamInferResponse")
RepositoryIndexRequest: Final[Any] = _message("RepositoryIndexRequest")
RepositoryIndexResponse: Final[Any] = _message("RepositoryIndexResponse")
RepositoryModelLoadRequest: Final[Any] = _message("RepositoryModelLoadRequest")
RepositoryModelLoadResponse: Final[Any] = _message("RepositoryModelLoadResponse")
RepositoryModelUnloadRequest: Final[Any] = _message("RepositoryModelUnloadRequest")
RepositoryModelUnloadResponse: Final[Any] = _message("RepositoryModelUnloadResponse")


def parse_infer_request(message: bytes | bytearray | memoryview) -> tuple[Any, list[Any]]:
    """Parse a ModelInferRequest; return it and its raw tensors, which are views of `message` where that is large.

    A parser makes up to 40 bytes of one byte of hostile input (an empty input is two bytes on the wire), and copies
    raw tensors twice. So of large requests the raw tensors are cut out first, and what is left has to be small.

    Raises:
        DecodeError: it is no such message.
        InputError: not_small or typed_too_large.
    """
    if len(message) <= PLAIN_BYTES:
        request = ModelInferRequest.FromString(message)
        return request, request.raw_input_contents[:]
    view = memoryview(message)
    raws: list[memoryview] = []
    rest: list[memoryview] = []
    num_fields = num_bytes = num_typed = 0
    for tag, begin, start, end in _walk(view):
        num_fields += 1
        if tag == _TAG_RAW:
            raws.append(view[start:end])
        else:
            rest.append(view[begin:end])
            num_bytes += end - begin
        if tag == _TAG_INPUT:
            for inner_tag, inner_begin, _, inner_end in _walk(view[start:end]):
                num_fields += 1
                if inner_tag == _TAG_CONTENTS:
                    num_bytes -= inner_end - inner_begin
                    num_typed += inner_end - inner_begin
                if num_fields > MAX_FIELDS:
                    break
        if num_fields > MAX_FIELDS or num_bytes > PLAIN_BYTES:
            raise InputError("not_small", limit=PLAIN_BYTES, num_fields=MAX_FIELDS)
        if num_typed > MAX_TYPED_BYTES:
            raise InputError("typed_too_large", limit=MAX_TYPED_BYTES)
    return ModelInferRequest.FromString(b"".join(rest)), raws


_TAG_RAW: Final = 7 << 3 | 2
_TAG_INPUT: Final = 5 << 3 | 2
_TAG_CONTENTS: Final = 5 << 3 | 2


def _walk(view: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, begin, begin of the value and end of each field."""
    pos, size = 0, len(view)
    while pos < size:
        begin = pos
        tag, pos = _read_varint(view, pos)
        start = pos
        kind = tag & 7
        if kind == 0:
            _, pos = _read_varint(view, pos)
        elif kind == 2:
            length, start = _read_varint(view, pos)
            pos = start + length
        elif kind in (1, 5):
            pos += 8 if kind == 1 else 4
        else:
            raise DecodeError(f"wire type {kind}")
        if pos > size:
            raise DecodeError("a field ends after its message")
        yield tag, begin, start, pos


def _read_varint(view: memoryview, pos: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if pos >= len(view):
            break
        byte = view[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise DecodeError("a number that does not end")
