"""The message table against the public description, and the parser of large requests against hostile ones."""

import struct

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from argosy.errors import InputError
from argosy.serve.grpc import messages

NAMES = [name for name in messages.__all__ if name[0].isupper() and name not in ("POOL", "DecodeError")]
# Fields of MLServer's description of the protocol that Triton's lacks, by message.
EXTRAS = {
    "inference.ModelMetadataResponse": {"parameters": 6},
    "inference.ModelMetadataResponse.TensorMetadata": {"parameters": 4},
}


def list_fields(descriptor):
    # A field itself says by another attribute in every major version of protobuf how often it may stand.
    described = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(described)
    labels = {field.name: field.label for field in described.field}
    return {
        field.name: (
            field.number,
            field.type,
            labels[field.name],
            field.message_type.full_name if field.message_type else None,
            field.containing_oneof.name if field.containing_oneof else None,
        )
        for field in descriptor.fields
    }


def compare(ours, theirs):
    assert ours.full_name == theirs.full_name
    extras = EXTRAS.get(ours.full_name, {})
    fields = list_fields(ours)
    assert {name: fields.pop(name)[0] for name in extras} == extras
    assert fields == list_fields(theirs)
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry
    nested_types = [one for one in ours.nested_types if not (extras and one.name == "ParametersEntry")]
    assert {one.name for one in nested_types} == {one.name for one in theirs.nested_types}
    for nested in nested_types:
        compare(nested, theirs.nested_types_by_name[nested.name])


@pytest.mark.parametrize("name", NAMES)
def test_message_has_the_public_fields(name):
    compare(getattr(messages, name).DESCRIPTOR, service_pb2.DESCRIPTOR.message_types_by_name[name])


OURS = messages.ModelInferRequest.DESCRIPTOR.file
# Of these only what Argosy says is described; the field that lacks is one that it never sends.
PARTS = [name for name in OURS.message_types_by_name if name not in NAMES]


@pytest.mark.parametrize("name", PARTS)
def test_part_of_a_message_has_the_public_numbers(name):
    files = [file.DESCRIPTOR.message_types_by_name for file in (service_pb2, model_config_pb2)]
    ours = OURS.message_types_by_name[name]
    (theirs,) = [known[name] for known in files if name in known]
    public = list_fields(theirs)
    for field, (number, kind, label, *_) in list_fields(ours).items():
        assert (number, kind, label) == public[field][:3]


def test_enumerations_have_the_public_numbers():
    public = {
        "DataType": model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"],
        "InstanceKind": model_config_pb2.ModelInstanceGroup.DESCRIPTOR.enum_types_by_name["Kind"],
    }
    assert set(OURS.enum_types_by_name) == set(public)
    for name, theirs in public.items():
        ours = OURS.enum_types_by_name[name]
        assert [(value.name, value.number) for value in ours.values] == [(value.name, value.number) for value in theirs.values]


def test_pool_is_not_the_default_one():
    assert messages.ModelInferRequest.DESCRIPTOR.file.pool is not service_pb2.DESCRIPTOR.pool
    assert messages.ModelInferRequest is not service_pb2.ModelInferRequest


def make_request(num_bytes, count=1):
    request = service_pb2.ModelInferRequest(model_name="m", id="é")
    request.parameters["timeout"].int64_param = 5
    for index in range(count):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[1, num_bytes])
        request.raw_input_contents.append(bytes([index]) * num_bytes)
    request.outputs.add(name="y")
    return request


@pytest.mark.parametrize("size", [0, 100, 70_000, 1 << 20], ids=["empty", "small", "large", "larger"])
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_request_is_parsed_as_the_public_client_wrote_it(size, wrap):
    sent = make_request(size, count=3)
    request, raws = messages.parse_infer_request(wrap(sent.SerializeToString()))
    assert [bytes(raw) for raw in raws] == list(sent.raw_input_contents)
    del sent.raw_input_contents[:]
    if size > messages.PLAIN_BYTES:
        assert all(isinstance(raw, memoryview) for raw in raws)
        assert not request.raw_input_contents
        assert request.SerializeToString() == sent.SerializeToString()
    assert (request.model_name, request.id, len(request.inputs), len(request.outputs)) == ("m", "é", 3, 1)


def test_large_typed_contents_are_taken_up_to_a_limit():
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 100_000]).contents.fp32_contents.extend(range(100_000))
    parsed, raws = messages.parse_infer_request(request.SerializeToString())
    assert not raws
    assert len(parsed.inputs[0].contents.fp32_contents) == 100_000
    request.inputs[0].contents.fp32_contents.extend(range(1_000_000))
    with pytest.raises(InputError, match="raw_input_contents"):
        messages.parse_infer_request(request.SerializeToString())


BIG = 8 << 20


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"\x2a\x00" * BIG, InputError, id="empty inputs"),
        pytest.param(b"\x32\x00" * BIG, InputError, id="empty outputs"),
        pytest.param(b"\x3a\x00" * BIG, InputError, id="empty raw contents"),
        pytest.param(b"\x22\x00" * BIG, InputError, id="empty parameters"),
        pytest.param(b"\x0a" + b"\xff\xff\x7f" + b"m" * (1 << 21), InputError, id="long name"),
        pytest.param(b"\x2a\xfe\xff\x7f" + b"\x22\x00" * (1 << 20), InputError, id="parameters of an input"),
        pytest.param(b"\x2a\xff\xff\x7f" + b"\x1a\xfb\xff\x7f" + b"\x01" * ((1 << 21) - 5), InputError, id="long shape"),
        pytest.param(b"\x0b" * BIG, messages.DecodeError, id="groups"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x07" + bytes(BIG), messages.DecodeError, id="field ends after the message"),
        pytest.param(b"\xff" * BIG, messages.DecodeError, id="number that does not end"),
        pytest.param(bytes(BIG), InputError, id="zeros"),
    ],
)
def test_hostile_request_is_refused_before_it_is_built(data, error):
    with pytest.raises(error):
        messages.parse_infer_request(data)


def test_cut_requests_are_refused_or_parsed_but_never_fail_otherwise():
    data = make_request(70_000, count=2).SerializeToString()
    for end in [*range(200), *range(69_900, 70_300), len(data) - 1]:
        for piece in (data[:end], struct.pack(">I", end) + data[end:]):
            try:
                messages.parse_infer_request(piece)
            except (InputError, messages.DecodeError):
                continue
