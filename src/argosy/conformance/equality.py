"""Clauses that hold the forms of the protocol against each other: the same inputs, the same outputs, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Skip
from argosy.conformance.grpc_infer import FIELDS, expect_reply, make_infer, read_reply
from argosy.conformance.http_binary import make_binary, read_binary, send_binary
from argosy.conformance.http_infer import expect_outputs
from argosy.conformance.model import INVERSE, Model, make_request
from argosy.conformance.target import Target, read_outputs
from argosy.conformance.tensors import Array

_SOURCE: Final = "inference_rest.md: Inference"
_NOTE: Final = "Every model is asked, with random inputs. A model that answers otherwise each time fails."


def _list_cases(target: Target, *, has_json: bool) -> Iterator[tuple[Model, dict[str, Array]]]:
    """Models with inputs, without those that a form cannot hold."""
    for model in target.models.values():
        datatypes = {tensor.datatype for tensor in model.inputs + model.outputs}
        if model.name != INVERSE and model.inputs and not (has_json and datatypes & {"FP16", "BF16"}):
            yield model, model.make_inputs(seed=23)


def _need_cases(target: Target, *, has_json: bool) -> list[tuple[Model, dict[str, Array]]]:
    cases = list(_list_cases(target, has_json=has_json))
    if not cases:
        raise Skip("it needs a model without 16-bit floats")
    return cases


@clause("equal.repeated", "The same request gets the same answer", Level.SHOULD, _SOURCE, _NOTE)
def check_repeated(target: Target) -> None:
    for model, inputs in _need_cases(target, has_json=True):
        expected = read_outputs(target.infer(model, make_request(model, inputs)))
        answer = target.infer(model, make_request(model, inputs))
        expect_outputs(answer, read_outputs(answer), expected)


@clause("equal.json-binary", "JSON and binary get the same answers", Level.MUST, _SOURCE, _NOTE)
def check_json_binary(target: Target) -> None:
    target.need_extension("binary_tensor_data")
    for model, inputs in _need_cases(target, has_json=True):
        expected = read_outputs(target.infer(model, make_request(model, inputs)))
        answer = send_binary(target, model, make_binary(model, inputs, parameters={"binary_data_output": True}))
        expect_outputs(answer, read_binary(answer), expected)


@clause("equal.json-grpc", "JSON and gRPC get the same answers", Level.MUST, _SOURCE, _NOTE)
def check_json_grpc(target: Target) -> None:
    wire = target.grpc
    for model, inputs in _need_cases(target, has_json=True):
        expected = read_outputs(target.infer(model, make_request(model, inputs)))
        expect_reply(wire.call("ModelInfer", make_infer(model, inputs)), expected)


@clause("equal.raw-typed", "Raw and typed contents of gRPC get the same answers", Level.MUST, _SOURCE, _NOTE)
def check_raw_typed(target: Target) -> None:
    wire = target.grpc
    for model, inputs in _need_cases(target, has_json=False):
        if all(tensor.datatype in FIELDS for tensor in model.inputs):
            raw = wire.call("ModelInfer", make_infer(model, inputs))
            expected = read_reply(raw, raw.read())
            expect_reply(wire.call("ModelInfer", make_infer(model, inputs, is_typed=True)), expected)
