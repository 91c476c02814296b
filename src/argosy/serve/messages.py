"""The messages of the Open Inference Protocol V2 over gRPC, package `inference`, with the public field numbers.

They are built from the table below into a descriptor pool of our own: the default pool of the process may hold
another `inference` package (tritonclient's, kserve's), and two descriptions of one name cannot share a pool.

Source: kserve/open-inference-protocol, open_inference_grpc.proto; Triton's grpc_service.proto.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "POOL",
    "DecodeError",
    "InferParameter",
    "InferTensorContents",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ServerLiveRequest",
    "ServerLiveResponse",
    "ServerMetadataRequest",
    "ServerMetadataResponse",
    "ServerReadyRequest",
    "ServerReadyResponse",
]

from google.protobuf.message import DecodeError

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
ModelMetadataResponse: 1 name string, 2 versions *string, 3 platform string, 4 inputs *.TensorMetadata, 5 outputs *.TensorMetadata
ModelMetadataResponse.TensorMetadata: 1 name string, 2 datatype string, 3 shape *int64
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
"""
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
    pool.Add(file)
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
