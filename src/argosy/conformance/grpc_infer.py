"""Clauses on inference over gRPC: raw and typed contents, and streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Evidence, NotOffered, Skip
from argosy.conformance.grpc_wire import GrpcAnswer, make_message
from argosy.conformance.http_infer import list_float_models, need_inputs, need_outputs
from argosy.conformance.model import OCTETS, Model, name_same
from argosy.conformance.target import Target
from argosy.conformance.tensors import DATATYPES, Array, equal, from_raw, make_edges, make_not_finite, make_octets, to_raw

_INFER: Final = "inference_grpc.md: Inference"
_CONTENTS: Final = "inference_grpc.md: Tensor Data"
_STREAM: Final = "grpc_service.proto: ModelStreamInfer"
_NUM_PARALLEL: Final = 16

FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}
"""Datatype -> the field of its typed contents; 16-bit floats have none."""


def make_infer(
    model: Model, inputs: Mapping[str, Array] | None = None, *, is_typed: bool = False, order: int = 1, **fields: Any
) -> Any:
    """A ModelInferRequest with raw contents, or typed ones; `order` -1 turns the inputs around."""
    arrays = model.make_inputs() if inputs is None else inputs
    request = make_message("ModelInferRequest", model_name=model.name, **fields)
    for tensor in model.inputs[::order]:
        array = arrays[tensor.name]
        item = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        if is_typed:
            getattr(item.contents, FIELDS[tensor.datatype]).extend(array.ravel().tolist())
        else:
            request.raw_input_contents.append(to_raw(array, tensor.datatype))
    return request


def call_infer(target: Target, request: Any) -> GrpcAnswer:
    """Call ModelInfer."""
    return target.grpc.call("ModelInfer", request)


def read_reply(answer: Evidence, reply: Any) -> dict[str, Array]:
    """The outputs of a ModelInferResponse, raw or typed.

    Raises:
        Failure: it is not as the protocol has it.
    """
    raws = reply.raw_output_contents
    answer.expect(len(raws) in (0, len(reply.outputs)), "raw_output_contents for all outputs or none", f"{len(raws)} of them")
    found: dict[str, Array] = {}
    for place, item in enumerate(reply.outputs):
        answer.expect(item.datatype in DATATYPES, f"a datatype for output {item.name}", item.datatype or "none")
        answer.expect(item.name not in found, "each output once")
        shape = tuple(item.shape)
        answer.expect(all(dim >= 0 for dim in shape), "a shape of integers from 0", f"shape {list(shape)}")
        try:
            if raws:
                # An empty one is harmless, and a clause of its own.
                answer.expect(not item.contents.ListFields(), "no contents where there are raw_output_contents")
                found[item.name] = from_raw(raws[place], item.datatype, shape)
            else:
                found[item.name] = _read_typed(item, shape)
        except ValueError as error:
            raise answer.failure(f"contents of output {item.name} that fit {item.datatype} {list(shape)}", str(error)) from None
    answer.expect(bool(found), "outputs")
    return found


def _read_typed(item: Any, shape: tuple[int, ...]) -> Array:
    if item.datatype not in FIELDS:
        raise ValueError(f"{item.datatype} has no typed contents")
    values = list(getattr(item.contents, FIELDS[item.datatype]))
    if len(values) != np.prod(shape, dtype=int):
        raise ValueError(f"{len(values)} values in {FIELDS[item.datatype]}")
    dtype = DATATYPES[item.datatype]
    if dtype.kind == "O":
        return np.array([*values, None], object)[:-1].reshape(shape)
    return np.array(values, dtype).reshape(shape)


def expect_reply(answer: GrpcAnswer, expected: Mapping[str, Array]) -> None:
    """Go on if a good answer has these outputs.

    Raises:
        Failure: it has others.
    """
    found = read_reply(answer, answer.read())
    answer.expect(found.keys() == expected.keys(), f"outputs {', '.join(expected)}", f"outputs {', '.join(found)}")
    for name, array in expected.items():
        answer.expect(equal(found[name], array), f"output {name} = {array.tolist()}", f"{name} = {found[name].tolist()}")


def _need_known(target: Target) -> tuple[Model, dict[str, Array], dict[str, Array]]:
    """A model of the suite with inputs and the outputs that it must answer."""
    for model in target.models.values():
        inputs = model.make_inputs(seed=11)
        expected = model.answer(inputs)
        if expected is not None and all(tensor.datatype in FIELDS for tensor in model.inputs):
            return model, inputs, expected
    raise Skip("it needs a model of the suite, whose answers are known")


@clause("grpc.infer.raw", "raw_input_contents are answered", Level.MUST, _INFER)
def check_raw(target: Target) -> None:
    wire = target.grpc
    model, inputs, expected = _need_known(target)
    expect_reply(wire.call("ModelInfer", make_infer(model, inputs)), expected)


@clause("grpc.infer.typed", "Typed contents are answered", Level.MUST, _INFER)
def check_typed(target: Target) -> None:
    wire = target.grpc
    model, inputs, expected = _need_known(target)
    expect_reply(wire.call("ModelInfer", make_infer(model, inputs, is_typed=True)), expected)


@clause(
    "grpc.infer.contents-absent", "Outputs have no contents, not even empty ones, beside raw_output_contents", Level.MUST, _INFER
)
def check_contents_absent(target: Target) -> None:
    answer = call_infer(target, make_infer(target.main))
    reply = answer.read()
    if not reply.raw_output_contents:
        raise NotOffered("answers are typed")
    answer.expect(not any(item.HasField("contents") for item in reply.outputs), "no field contents")


@clause("grpc.infer.id-echoed", "The id of a request is returned", Level.MUST, _INFER)
def check_id(target: Target) -> None:
    _check_id(target, "request-42")


@clause("grpc.infer.id-unicode", "An id may be any text", Level.MUST, _INFER)
def check_unicode_id(target: Target) -> None:
    _check_id(target, "a\u00e9\u65e5\U0001f6a2")


def _check_id(target: Target, text: str) -> None:
    answer = call_infer(target, make_infer(target.main, id=text))
    answer.expect(answer.read().id == text, f"id {text}")


@clause(
    "grpc.infer.id-not-invented",
    "A request without an id gets none",
    Level.SHOULD,
    _INFER,
    '"The id of the inference request if one was specified."',
)
def check_no_id(target: Target) -> None:
    answer = call_infer(target, make_infer(target.main))
    answer.expect(not answer.read().id, "no id")


@clause("grpc.infer.model-name", "The answer names the model", Level.MUST, _INFER)
def check_model_name(target: Target) -> None:
    answer = call_infer(target, make_infer(target.main))
    answer.expect(answer.read().model_name == target.main.name, f"model_name {target.main.name}")


@clause("grpc.infer.version", "A version that is named answers", Level.MUST, _INFER)
def check_version(target: Target) -> None:
    wire, version = target.grpc, target.need_version(target.main)
    answer = wire.call("ModelInfer", make_infer(target.main, model_version=version))
    answer.expect(answer.read().model_version in ("", version), f"model_version {version}")
    read_reply(answer, answer.message)


@clause("grpc.infer.outputs-subset", "Only the outputs that are asked for come", Level.MUST, _INFER)
def check_subset(target: Target) -> None:
    wire, model = target.grpc, need_outputs(target)
    for tensor in model.outputs:
        answer = wire.call("ModelInfer", make_infer(model, outputs=[{"name": tensor.name}]))
        found = list(read_reply(answer, answer.read()))
        answer.expect(found == [tensor.name], f"output {tensor.name} alone", f"outputs {', '.join(found)}")


@clause("grpc.infer.inputs-order", "Inputs may come in any order, their raw contents in the same", Level.MUST, _INFER)
def check_inputs_order(target: Target) -> None:
    wire, model = target.grpc, need_inputs(target)
    plain = wire.call("ModelInfer", make_infer(model))
    expect_reply(wire.call("ModelInfer", make_infer(model, order=-1)), read_reply(plain, plain.read()))


@clause(
    "grpc.infer.own-parameters",
    "Parameters that the server does not know are passed over",
    Level.SHOULD,
    "inference_grpc.md: Parameters",
    "The text says neither that they are ignored nor that they are refused.",
)
def check_parameters(target: Target) -> None:
    parameters = {
        "conformance_flag": make_message("InferParameter", bool_param=True),
        "conformance_number": make_message("InferParameter", int64_param=7),
        "conformance_text": make_message("InferParameter", string_param="a"),
    }
    answer = call_infer(target, make_infer(target.main, parameters=parameters))
    read_reply(answer, answer.read())


@clause("grpc.infer.parallel", "Requests at the same time get their own answers", Level.MUST, _INFER)
def check_parallel(target: Target) -> None:
    wire, model = target.grpc, target.need_model(name_same("FP32"))

    def ask(number: int) -> None:
        x = np.full((1 + number % 3, 4), number, np.float32)
        answer = wire.call("ModelInfer", make_infer(model, {"x": x}, id=f"id-{number}"))
        answer.expect(answer.read().id == f"id-{number}", f"id id-{number}")
        expect_reply(answer, {"y": x})

    with ThreadPoolExecutor(_NUM_PARALLEL) as threads:
        list(threads.map(ask, range(4 * _NUM_PARALLEL)))


def _make_check(datatype: str, is_typed: bool) -> Callable[[Target], None]:
    def check(target: Target) -> None:
        wire, model = target.grpc, target.need_input(datatype)
        if is_typed and any(tensor.datatype not in FIELDS for tensor in model.inputs):
            raise Skip("it needs a model without 16-bit floats")
        is_known = model.name == name_same(datatype)
        inputs = {"x": make_edges(datatype)} if is_known else model.make_inputs()
        answer = wire.call("ModelInfer", make_infer(model, inputs, is_typed=is_typed))
        if is_known:
            expect_reply(answer, {"y": inputs["x"]})
        else:
            read_reply(answer, answer.read())

    return check


for _datatype in DATATYPES:
    _where = "inference_grpc.md: Tensor Data Types"
    clause(
        f"grpc.datatype.raw-{_datatype.lower()}",
        f"{_datatype} in raw contents comes back as it was sent",
        Level.MUST,
        _where,
        "The table does not have BF16; two bytes are taken." if _datatype == "BF16" else "",
    )(_make_check(_datatype, False))
    if _datatype in FIELDS:
        clause(
            f"grpc.datatype.typed-{_datatype.lower()}",
            f"{_datatype} in {FIELDS[_datatype]} comes back as it was sent",
            Level.MUST,
            _CONTENTS,
        )(_make_check(_datatype, True))


@clause("grpc.datatype.not-finite", "NaN and infinity come back, in raw and typed contents", Level.MUST, _CONTENTS)
def check_not_finite(target: Target) -> None:
    wire = target.grpc
    for model in list_float_models(target):
        datatype = model.inputs[0].datatype
        inputs = {"x": make_not_finite(datatype)}
        for is_typed in (False, True) if datatype in FIELDS else (False,):
            expect_reply(wire.call("ModelInfer", make_infer(model, inputs, is_typed=is_typed)), {"y": inputs["x"]})


@clause("grpc.datatype.octets", "BYTES need not be text, in raw and typed contents", Level.MUST, _CONTENTS)
def check_octets(target: Target) -> None:
    wire, model = target.grpc, target.need_model(OCTETS)
    for is_typed in (False, True):
        request = make_infer(model, {"x": make_octets()}, is_typed=is_typed)
        expect_reply(wire.call("ModelInfer", request), {"y": make_octets()})


_OTHER_STREAM: Final = "MLServer has a method of this name with another kind of answer, which reads as an error here."


@clause("grpc.stream.answers", "Each request of a stream is answered, with its id", Level.MUST, _STREAM, _OTHER_STREAM)
def check_stream(target: Target) -> None:
    wire = target.grpc
    model, inputs, expected = _need_known(target)
    ids = ["one", "two", "three"]
    answer = wire.stream([make_infer(model, inputs, id=each) for each in ids])
    answer.expect(answer.code == "OK", "a stream that ends with OK")
    got: list[str] = []
    for message in answer.messages:
        answer.expect(not message.error_message, "no error_message", f"error_message {message.error_message!r}")
        found = read_reply(answer, message.infer_response)
        answer.expect(all(equal(found.get(name, array[:0]), array) for name, array in expected.items()), f"outputs {expected}")
        got.append(message.infer_response.id)
    answer.expect(sorted(got) == sorted(ids), f"answers to {', '.join(ids)}", f"answers to {', '.join(got)}")


@clause(
    "grpc.stream.error",
    "A wrong request is answered with error_message, and the stream goes on",
    Level.SHOULD,
    _STREAM,
    "The proto says that the message describes the error of one response; that the stream goes on is Triton's way.",
)
def check_stream_error(target: Target) -> None:
    wire = target.grpc
    wrong = make_infer(target.main, id="wrong")
    wrong.inputs[0].name = "conformance-no-such-input"
    answer = wire.stream([wrong, make_infer(target.main, id="right")])
    kinds = sorted("error" if message.error_message else message.infer_response.id for message in answer.messages)
    answer.expect(kinds == ["error", "right"] and answer.code == "OK", "an error_message, an answer, and an end with OK")


@clause("grpc.stream.empty", "A stream without requests ends with OK", Level.MUST, _STREAM)
def check_stream_empty(target: Target) -> None:
    answer = target.grpc.stream([])
    answer.expect(answer.code == "OK" and not answer.messages, "an end with OK, and no message")
