"""Clauses on good inference requests over HTTP, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Failure, NotOffered, Skip
from argosy.conformance.http_wire import Answer
from argosy.conformance.model import FREE, INVERSE, Model, make_request, name_same
from argosy.conformance.target import Target, read_output_head, read_outputs
from argosy.conformance.tensors import DATATYPES, FLOATS, Array, equal, make_edges, make_sample

_REST: Final = "inference_rest.md: "
_RESPONSE: Final = _REST + "Inference Response JSON Object"
_REQUEST: Final = _REST + "Inference Request JSON Object"
_NUM_PARALLEL: Final = 16
_LARGE: Final = (64, 1024)


def expect_outputs(answer: Answer, found: dict[str, Array], expected: dict[str, Array]) -> None:
    """Go on if the outputs are those that are known.

    Raises:
        Failure: one is missing, too many, or has other values.
    """
    answer.expect(found.keys() == expected.keys(), f"outputs {', '.join(expected)}", f"outputs {', '.join(found)}")
    for name, array in expected.items():
        answer.expect(equal(found[name], array), f"output {name} = {array.tolist()}", f"{name} = {found[name].tolist()}")


def need_outputs(target: Target) -> Model:
    """A model with more than one output.

    Raises:
        Skip: there is none.
    """
    for model in target.models.values():
        if len(model.outputs) > 1:
            return model
    raise Skip("it needs a model with two outputs, such as conformance-two")


def need_inputs(target: Target) -> Model:
    """A model with more than one input.

    Raises:
        Skip: there is none.
    """
    for model in target.models.values():
        if len(model.inputs) > 1:
            return model
    raise Skip("it needs a model with two inputs, such as conformance-two")


def list_float_models(target: Target) -> list[Model]:
    """The models of the suite that answer floats as they are.

    Raises:
        Skip: there is none.
    """
    models = [target.models[name] for name in map(name_same, FLOATS) if name in target.models]
    if not models:
        raise Skip(f"it needs one of the models {', '.join(map(name_same, FLOATS))}")
    return models


@clause("http.infer.plain", "A good request is answered 200, with tensors as the protocol has them", Level.MUST, _RESPONSE)
def check_plain(target: Target) -> None:
    answer = target.infer(target.main)
    answer.expect(bool(read_outputs(answer)), "outputs")


@clause("http.infer.values", "The outputs are what the model computes", Level.MUST, _RESPONSE)
def check_values(target: Target) -> None:
    num_checked = 0
    for model in target.models.values():
        if any(tensor.datatype in ("FP16", "BF16") for tensor in model.inputs):
            continue  # without a sure form in JSON; the clauses on datatypes send them
        inputs = model.make_inputs(seed=7)
        expected = model.answer(inputs)
        if expected is not None:
            answer = target.infer(model, make_request(model, inputs))
            expect_outputs(answer, read_outputs(answer), expected)
            num_checked += 1
    if not num_checked:
        raise Skip("it needs a model of the suite, whose answers are known")


@clause(
    "http.infer.outputs-as-metadata", "All outputs of the metadata come, with their datatypes and shapes", Level.MUST, _REQUEST
)
def check_outputs_fit(target: Target) -> None:
    answer = target.infer(target.main)
    read_outputs(answer)
    heads = {head[0]: head for head in (read_output_head(answer, item) for item in answer.read_object()["outputs"])}
    expected = [tensor.name for tensor in target.main.outputs]
    answer.expect(sorted(heads) == sorted(expected), f"outputs {', '.join(expected)}", f"outputs {', '.join(heads)}")
    for tensor in target.main.outputs:
        _, datatype, shape = heads[tensor.name]
        answer.expect(datatype == tensor.datatype, f"output {tensor.name} of datatype {tensor.datatype}", datatype)
        fits = len(shape) == len(tensor.shape) and all(want in (-1, got) for want, got in zip(tensor.shape, shape, strict=True))
        answer.expect(fits, f"output {tensor.name} of shape {list(tensor.shape)}", f"shape {list(shape)}")


@clause("http.infer.model-name", "The answer names the model", Level.MUST, _RESPONSE)
def check_model_name(target: Target) -> None:
    answer = target.infer(target.main)
    found = answer.field(answer.read_object(), "model_name", str, "a string")
    answer.expect(found == target.main.name, f"model_name {target.main.name}")


@clause("http.infer.model-version", "The answer names the version, as a string", Level.MUST, _RESPONSE)
def check_model_version(target: Target) -> None:
    answer = target.infer(target.main)
    value = answer.read_object()
    if value.get("model_version") is None:
        raise NotOffered("answers name no version")
    answer.field(value, "model_version", str, "a string")


@clause("http.infer.version-path", "A version that is named answers", Level.MUST, _REST + "Inference")
def check_version_path(target: Target) -> None:
    version = target.need_version(target.main)
    answer = target.infer(target.main, version=version)
    found = answer.read_object().get("model_version")
    answer.expect(found in (None, version), f"model_version {version}")
    read_outputs(answer)


def _check_id(target: Target, text: str) -> None:
    answer = target.infer(target.main, make_request(target.main, id=text))
    answer.expect(answer.read_object().get("id") == text, f"id {text!r}")


@clause("http.infer.id-echoed", "The id of a request is returned", Level.MUST, _RESPONSE)
def check_id(target: Target) -> None:
    _check_id(target, "request-42")


@clause("http.infer.id-unicode", "An id may be any text", Level.MUST, _RESPONSE)
def check_unicode_id(target: Target) -> None:
    _check_id(target, 'a\u00e9\u65e5\U0001f6a2 "quoted" \\ back\n\u0000 end')


@clause("http.infer.id-long", "An id may be long", Level.SHOULD, _RESPONSE, "The text has no bound; 1000 characters are sent.")
def check_long_id(target: Target) -> None:
    _check_id(target, "0123456789" * 100)


@clause(
    "http.infer.id-not-invented",
    "A request without an id gets none",
    Level.SHOULD,
    _RESPONSE,
    'The answer\'s id is "the identifier given in the request, if any"; an empty one is taken.',
)
def check_no_id(target: Target) -> None:
    answer = target.infer(target.main)
    answer.expect(not answer.read_object().get("id"), "no id")


@clause("http.infer.nested-data", "Nested and flat data are the same tensor", Level.MUST, _REST + "Tensor Data")
def check_nested(target: Target) -> None:
    inputs = target.main.make_inputs(seed=3)
    request = make_request(target.main, inputs)
    flat = target.infer(target.main, request)
    expected = read_outputs(flat)
    for tensor, item in zip(target.main.inputs, request["inputs"], strict=True):
        item["data"] = _nest(item["data"], inputs[tensor.name].shape)
    answer = target.infer(target.main, request)
    expect_outputs(answer, read_outputs(answer), expected)


def _nest(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for dim in shape[:0:-1]:
        flat = [flat[pos : pos + dim] for pos in range(0, len(flat), dim)]
    return flat


@clause("http.infer.outputs-subset", "Only the outputs that are asked for come", Level.MUST, _REQUEST)
def check_subset(target: Target) -> None:
    model = need_outputs(target)
    for tensor in model.outputs:
        answer = target.infer(model, make_request(model, outputs=[{"name": tensor.name}]))
        found = read_outputs(answer)
        answer.expect(list(found) == [tensor.name], f"output {tensor.name} alone", f"outputs {', '.join(found)}")


@clause(
    "http.infer.outputs-order",
    "Outputs come in the order in which they are asked for",
    Level.SHOULD,
    _REQUEST,
    "The text does not say so; clients find outputs by their names.",
)
def check_order(target: Target) -> None:
    model = need_outputs(target)
    names = [tensor.name for tensor in reversed(model.outputs)]
    answer = target.infer(model, make_request(model, outputs=[{"name": name} for name in names]))
    found = list(read_outputs(answer))
    answer.expect(found == names, f"outputs {', '.join(names)}", f"outputs {', '.join(found)}")


@clause(
    "http.infer.outputs-empty",
    "An empty list of outputs asks for all",
    Level.MAY,
    _REQUEST,
    "The text has all outputs where the field is not given, and does not speak of an empty list.",
)
def check_outputs_empty(target: Target) -> None:
    answer = target.infer(target.main, make_request(target.main, outputs=[]))
    found = read_outputs(answer)
    answer.expect(len(found) == len(target.main.outputs), "all outputs", f"outputs {', '.join(found)}")


@clause("http.infer.inputs-order", "Inputs may come in any order", Level.MUST, _REST + "Request Input")
def check_inputs_order(target: Target) -> None:
    model = need_inputs(target)
    request = make_request(model)
    expected = read_outputs(target.infer(model, request))
    answer = target.infer(model, {"inputs": request["inputs"][::-1]})
    expect_outputs(answer, read_outputs(answer), expected)


@clause("http.infer.rows", "A batch answers as its rows do", Level.MUST, _REST + "Request Input")
def check_rows(target: Target) -> None:
    model = target.need_model(name_same("FP32"))
    for num_rows in (1, 3, 5):
        inputs = model.make_inputs(seed=num_rows, num_rows=num_rows)
        answer = target.infer(model, make_request(model, inputs))
        expect_outputs(answer, read_outputs(answer), {"y": inputs["x"]})


@clause("http.infer.large", "A tensor of 64 thousand elements is taken", Level.SHOULD, _REST + "Tensor Data")
def check_large(target: Target) -> None:
    model = target.need_model(FREE)
    x = make_sample("FP32", _LARGE, 5)
    answer = target.infer(model, make_request(model, {"x": x}))
    found = read_outputs(answer)
    answer.expect(equal(found.get("y", x[:0]), x), "the values that were sent")


@clause("http.infer.parallel", "Requests at the same time get their own answers", Level.MUST, _RESPONSE)
def check_parallel(target: Target) -> None:
    model = target.need_model(name_same("FP32"))

    def ask(number: int) -> None:
        x = np.full((1 + number % 3, 4), number, np.float32)
        answer = target.infer(model, make_request(model, {"x": x}, id=f"id-{number}"))
        answer.expect(answer.read_object().get("id") == f"id-{number}", f"id id-{number}")
        expect_outputs(answer, read_outputs(answer), {"y": x})

    with ThreadPoolExecutor(_NUM_PARALLEL) as threads:
        list(threads.map(ask, range(4 * _NUM_PARALLEL)))


@clause(
    "http.infer.empty-parameters", "Empty parameters are taken, on request, input and output", Level.MUST, _REST + "Parameters"
)
def check_empty_parameters(target: Target) -> None:
    _check_parameters(target, {})


@clause(
    "http.infer.own-parameters",
    "Parameters that the server does not know are passed over",
    Level.SHOULD,
    _REST + "Parameters",
    "The text says neither that they are ignored nor that they are refused.",
)
def check_own_parameters(target: Target) -> None:
    _check_parameters(target, {"conformance_text": "a", "conformance_number": 1.5, "conformance_flag": True})


def _check_parameters(target: Target, parameters: dict[str, Any]) -> None:
    outputs = [{"name": tensor.name, "parameters": parameters} for tensor in target.main.outputs]
    request = make_request(target.main, parameters=parameters, outputs=outputs)
    request["inputs"] = [{**item, "parameters": parameters} for item in request["inputs"]]
    read_outputs(target.infer(target.main, request))


@clause(
    "http.infer.unknown-fields",
    "Fields that the protocol does not have are passed over",
    Level.SHOULD,
    "extension_binary_data.md: Examples",
    "The request of that example has a field model_name, which requests do not have.",
)
def check_unknown_fields(target: Target) -> None:
    request = make_request(target.main, model_name=target.main.name, conformance_field=[1])
    request["inputs"] = [{**item, "conformance_field": None} for item in request["inputs"]]
    read_outputs(target.infer(target.main, request))


@clause(
    "http.infer.not-finite",
    "A result that is not finite is an error, or JSON still",
    Level.MUST,
    "RFC 8259: 6",
    "NaN and Infinity are no JSON, and a parser need not take them; the V2 text does not speak of it.",
)
def check_not_finite(target: Target) -> None:
    model = target.need_model(INVERSE)
    answer = target.infer(model, make_request(model, {"x": np.array([[1, 0, 2, 4]], np.float32)}))
    answer.read_json(answer.body)


def _make_check(datatype: str) -> Callable[[Target], None]:
    def check(target: Target) -> None:
        model = target.need_input(datatype)
        is_known = model.name == name_same(datatype)
        inputs = {"x": make_edges(datatype)} if is_known else model.make_inputs()
        try:
            answer = target.infer(model, make_request(model, inputs))
            found = read_outputs(answer)
        except Failure:
            if datatype in ("FP16", "BF16") and target.infer(model, make_request(model, inputs)).is_refusal:
                raise NotOffered(f"{datatype} in JSON is refused") from None
            raise
        if is_known:
            expect_outputs(answer, found, {"y": inputs["x"]})

    return check


for _datatype in DATATYPES:
    _is_half = _datatype in ("FP16", "BF16")
    clause(
        f"http.datatype.{_datatype.lower()}",
        f"{_datatype} in JSON comes back as it was sent",
        Level.MAY if _is_half else Level.MUST,
        _REST + "Tensor Data",
        "The text has no JSON form for 16-bit floats; numbers are sent." if _is_half else "",
    )(_make_check(_datatype))
