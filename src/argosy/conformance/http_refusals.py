"""Clauses on wrong inference requests over HTTP: each is refused with an error status and the error object of V2.

The text asks for an error status, "typically 400"; that a client's fault is not told as the server's (500 and above) is a
clause of its own, over all of these requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Skip
from argosy.conformance.http_wire import Answer, model_path
from argosy.conformance.model import Model, make_request
from argosy.conformance.target import Target
from argosy.conformance.tensors import DATATYPES, FLOATS, INTEGERS

_DEPTH: Final = 100_000
_REST: Final = "inference_rest.md: "
_ERROR: Final = _REST + "Inference Response JSON Error Object"
_SILENT: Final = "The text does not say that such a request has to be refused; nothing else is right."

_Wrong = tuple[Model, dict[str, Any] | bytes]


class _Case(NamedTuple):
    """A request that has to be refused."""

    name: str
    title: str
    make: Callable[[Target], _Wrong]
    level: Level = Level.MUST
    note: str = ""


def _body(text: bytes) -> Callable[[Target], _Wrong]:
    return lambda target: (target.main, text)


def _fields(**fields: Any) -> Callable[[Target], _Wrong]:
    """A good request, with fields set; None takes one away."""

    def make(target: Target) -> _Wrong:
        request = {**make_request(target.main), **fields}
        return target.main, {key: value for key, value in request.items() if value is not None}

    return make


def _input(**fields: Any) -> Callable[[Target], _Wrong]:
    """A good request, with fields of its first input set; None takes one away."""

    def make(target: Target) -> _Wrong:
        return _change_first(target.main, fields)

    return make


def _change_first(model: Model, fields: dict[str, Any]) -> _Wrong:
    request = make_request(model)
    first = {key: value for key, value in {**request["inputs"][0], **fields}.items() if value is not None}
    return model, {"inputs": [first, *request["inputs"][1:]]}


def _first_value(value: Any, *datatypes: str) -> Callable[[Target], _Wrong]:
    """A good request to a model of one of the datatypes, with the first element of the data replaced."""

    def make(target: Target) -> _Wrong:
        model = target.need_input(*datatypes)
        data = make_request(model)["inputs"][0]["data"]
        return _change_first(model, {"data": [value, *data[1:]]})

    return make


def _make_short(target: Target) -> _Wrong:
    return _change_first(target.main, {"data": make_request(target.main)["inputs"][0]["data"][:-1]})


def _make_long(target: Target) -> _Wrong:
    data = make_request(target.main)["inputs"][0]["data"]
    return _change_first(target.main, {"data": [*data, data[0]]})


def _make_ragged(target: Target) -> _Wrong:
    model = target.need_input("FP32")
    shape = make_request(model)["inputs"][0]["shape"]
    if len(shape) != 2 or shape[1] < 2:
        raise Skip("it needs an FP32 input of two dimensions")
    rows = [[0.5] * shape[1] for _ in range(shape[0])]
    return _change_first(model, {"data": [[*rows[0], 0.5], rows[1][1:], *rows[2:]]})


def _make_rank(target: Target) -> _Wrong:
    return _change_first(target.main, {"shape": [*make_request(target.main)["inputs"][0]["shape"], 1, 1]})


def _make_dim(target: Target) -> _Wrong:
    for model in target.models.values():
        fixed = [axis for axis, dim in enumerate(model.inputs[0].shape) if dim > 0] if model.inputs else []
        if fixed and model.inputs[0].datatype in ("FP32", "FP64", *INTEGERS):
            shape = list(model.fill(model.inputs[0].shape))
            shape[fixed[0]] += 1
            count = 1
            for dim in shape:
                count *= dim
            return _change_first(model, {"shape": shape, "data": [1] * count})
    raise Skip("it needs an input of numbers with an axis of fixed length")


def _make_truncated(target: Target) -> _Wrong:
    return target.main, json.dumps(make_request(target.main)).encode()[:-3]


def _make_bad_utf8(target: Target) -> _Wrong:
    return target.main, json.dumps(make_request(target.main, id="@")).encode().replace(b'"@"', b'"\xff\xfe"')


def _make_nan(target: Target) -> _Wrong:
    model = target.need_input("FP32", "FP64")
    return model, json.dumps(_first_value(float("nan"), "FP32", "FP64")(target)[1]).encode()


def _make_unknown_input(target: Target) -> _Wrong:
    request = make_request(target.main)
    extra = {**request["inputs"][0], "name": "conformance-no-such-input"}
    return target.main, {"inputs": [*request["inputs"], extra]}


def _make_duplicate(target: Target) -> _Wrong:
    request = make_request(target.main)
    return target.main, {"inputs": [*request["inputs"], request["inputs"][0]]}


def _make_wrong_datatype(target: Target) -> _Wrong:
    model = target.need_input("FP32")
    return _change_first(model, {"datatype": "INT64", "data": [1] * len(make_request(model)["inputs"][0]["data"])})


def _make_unknown_output(target: Target) -> _Wrong:
    return target.main, make_request(target.main, outputs=[{"name": "conformance-no-such-output"}])


_NUMBERS: Final = tuple(name for name in DATATYPES if name in FLOATS or name in INTEGERS)
_CASES: Final = (
    _Case("not-json", "A body that is no JSON", _body(b"not json")),
    _Case("empty-body", "An empty body", _body(b"")),
    _Case("array-body", "A body that is JSON, but no object", _body(b"[1, 2]")),
    _Case("truncated", "JSON that ends too soon", _make_truncated),
    _Case("bad-utf8", "JSON that is not UTF-8", _make_bad_utf8, Level.SHOULD, "RFC 8259 8.1 demands UTF-8 of senders."),
    _Case("deep", f"JSON that is nested {_DEPTH} deep", _body(b'{"inputs":' + b"[" * _DEPTH + b"]" * _DEPTH + b"}")),
    _Case("inputs-absent", "A request without inputs", _fields(inputs=None)),
    _Case("inputs-empty", "A request with an empty list of inputs", _fields(inputs=[])),
    _Case("inputs-no-list", "Inputs that are no array", _fields(inputs={"name": "x"})),
    _Case("input-unknown", "An input that the model does not have", _make_unknown_input, Level.SHOULD, _SILENT),
    _Case("input-misnamed", "An input by another name than the model's", _input(name="conformance-no-such-input")),
    _Case("input-twice", "An input that stands twice", _make_duplicate, Level.SHOULD, _SILENT),
    _Case("name-absent", "An input without a name", _input(name=None)),
    _Case("datatype-absent", "An input without a datatype", _input(datatype=None)),
    _Case("datatype-unknown", "A datatype that does not exist", _input(datatype="FP33")),
    _Case("datatype-wrong", "Another datatype than the model's", _make_wrong_datatype, Level.SHOULD, _SILENT),
    _Case("shape-absent", "An input without a shape", _input(shape=None)),
    _Case("shape-rank", "A shape with too many dimensions", _make_rank, Level.SHOULD, _SILENT),
    _Case("shape-dim", "A shape that is not the model's", _make_dim),
    _Case("shape-negative", "A shape with a negative length", _input(shape=[-1, 4])),
    _Case("shape-fraction", "A shape with a fraction", _input(shape=[1.5, 4])),
    _Case("shape-huge", "A shape of far more elements than there are", _input(shape=[2**31, 2**31])),
    _Case("data-absent", "An input without data", _input(data=None)),
    _Case("data-no-list", "Data that are no array", _input(data=1.5)),
    _Case("data-short", "Fewer elements of data than the shape says", _make_short),
    _Case("data-long", "More elements of data than the shape says", _make_long),
    _Case("data-ragged", "Nested data that do not follow the shape", _make_ragged, Level.SHOULD, _SILENT),
    _Case("data-null", "null among numbers", _first_value(None, *_NUMBERS)),
    _Case("data-text", "Text among numbers", _first_value("1", *_NUMBERS), Level.SHOULD, _SILENT),
    _Case("data-number-for-text", "A number among BYTES", _first_value(1, "BYTES"), Level.SHOULD, _SILENT),
    _Case("data-fraction", "A fraction for an integer", _first_value(1.5, *INTEGERS), Level.SHOULD, _SILENT),
    _Case("data-too-large", "300 for an INT8 or UINT8", _first_value(300, "INT8", "UINT8"), Level.SHOULD, _SILENT),
    _Case("data-negative", "-1 for an unsigned integer", _first_value(-1, "UINT8", "UINT32", "UINT64"), Level.SHOULD, _SILENT),
    _Case("data-float-range", "1e39 for FP32", _first_value(1e39, "FP32"), Level.SHOULD, _SILENT),
    _Case("data-nan", "NaN, which is no JSON", _make_nan, Level.SHOULD, "RFC 8259 9 lets a parser take more than JSON."),
    _Case("output-unknown", "An output that the model does not have", _make_unknown_output),
    _Case("outputs-no-list", "Outputs that are no array", _fields(outputs="y")),
    _Case("id-no-text", "An id that is no text", _fields(id=42), Level.SHOULD, _SILENT),
    _Case("parameters-no-object", "Parameters that are no object", _fields(parameters=[1]), Level.SHOULD, _SILENT),
)


def _send(target: Target, case: _Case) -> Answer:
    model, request = case.make(target)
    return target.infer(model, request)


def _make_check(case: _Case) -> Callable[[Target], None]:
    return lambda target: _send(target, case).expect_refusal()


for _case in _CASES:
    clause(f"http.refuse.{_case.name}", f"{_case.title}: refused", _case.level, _ERROR, _case.note)(_make_check(_case))


@clause("http.refuse.unknown-model", "A request to an unknown model is refused", Level.MUST, _ERROR)
def check_unknown_model(target: Target) -> None:
    _ask_elsewhere(target, "conformance-no-such-model", "").expect_refusal()


@clause("http.refuse.unknown-version", "A request to an unknown version is refused", Level.MUST, _ERROR)
def check_unknown_version(target: Target) -> None:
    target.need_version(target.main)
    _ask_elsewhere(target, target.main.name, "987654321").expect_refusal()


def _ask_elsewhere(target: Target, name: str, version: str) -> Answer:
    body = json.dumps(make_request(target.main)).encode()
    return target.http.send("POST", model_path(name, version, "infer"), body)


@clause(
    "http.errors.client-fault",
    "A wrong request is told as the client's fault: a status from 400 to 499",
    Level.SHOULD,
    _ERROR,
    'The text has "an HTTP error status (typically 400)"; RFC 9110 15.5 and 15.6 tell the faults apart.',
)
def check_client_fault(target: Target) -> None:
    for case in _CASES:
        try:
            answer = _send(target, case)
        except Skip:
            continue
        answer.expect(answer.status < 500, f"a status from 400 to 499 for: {case.title}")
    answer = _ask_elsewhere(target, "conformance-no-such-model", "")
    answer.expect(answer.status < 500, "a status from 400 to 499 for: an unknown model")


@clause("http.errors.survives", "After all wrong requests the server still answers", Level.MUST, _REST + "Server Live")
def check_survives(target: Target) -> None:
    answer = target.get("/v2/health/live")
    answer.expect(answer.status == 200, "status 200")
    answer = target.infer(target.main)
    answer.expect(answer.status == 200, "status 200")
