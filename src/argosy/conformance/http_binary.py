"""Clauses on the extension for binary tensors over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import NotOffered, Skip, show
from argosy.conformance.http_infer import expect_outputs, list_float_models, need_inputs, need_outputs
from argosy.conformance.http_wire import Answer
from argosy.conformance.model import OCTETS, Model, make_request, name_same
from argosy.conformance.target import Target, read_output_head, read_outputs
from argosy.conformance.tensors import DATATYPES, Array, from_json, from_raw, make_edges, make_not_finite, make_octets, to_raw

_SOURCE: Final = "extension_binary_data.md: Binary Tensor Data Extension"
_HEADER: Final = "Inference-Header-Content-Length"
_ALL: Final = {"binary_data_output": True}


class _Binary(NamedTuple):
    """A request of JSON and the tensors that follow it."""

    head: dict[str, Any]
    tail: bytes

    def encode(self) -> tuple[bytes, dict[str, str]]:
        """The body, and the headers that go with it."""
        text = json.dumps(self.head).encode()
        return text + self.tail, {_HEADER: str(len(text)), "Content-Type": "application/octet-stream"}


def make_binary(
    model: Model, inputs: Mapping[str, Array], json_names: tuple[str, ...] = (), order: int = 1, **fields: Any
) -> _Binary:
    """A request whose inputs are binary, but for those of `json_names`; `order` -1 turns the inputs around."""
    head: dict[str, Any] = {"inputs": [], **fields}
    tail = b""
    for tensor in model.inputs[::order]:
        array = inputs[tensor.name]
        item: dict[str, Any] = {"name": tensor.name, "shape": list(array.shape), "datatype": tensor.datatype}
        if tensor.name in json_names:
            item["data"] = array.ravel().tolist()
        else:
            raw = to_raw(array, tensor.datatype)
            item["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        head["inputs"].append(item)
    return _Binary(head, tail)


def send_binary(target: Target, model: Model, request: _Binary, headers: Mapping[str, str] = {}) -> Answer:
    """Send it, with other headers than its own where some are given."""
    body, own = request.encode()
    return target.infer(model, body, headers={**own, **headers})


def read_binary(answer: Answer, binary_names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The outputs of an answer, binary or JSON.

    Args:
        answer: of an inference request.
        binary_names: outputs that have to be binary, while all others are JSON; None for all.

    Raises:
        Failure: the answer is not as the extension has it.
    """
    answer.expect(answer.status == 200, "status 200")
    text = answer.headers.get(_HEADER.lower(), "")
    is_length = text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= len(answer.body)
    answer.expect(
        is_length, f"a header {_HEADER} within the body's {len(answer.body)} bytes", f"{_HEADER}: {show(text) or 'none'}"
    )
    tail = answer.body[int(text) :]
    head = answer.read_json(answer.body[: int(text)])
    if not isinstance(head, dict):
        raise answer.failure("a JSON object before the tensors")
    found: dict[str, Array] = {}
    for item in cast(list[dict[str, Any]], answer.field(cast(dict[str, Any], head), "outputs", list, "an array of outputs")):
        name, datatype, shape = read_output_head(answer, item)
        size: Any = cast(dict[str, Any], item.get("parameters") or {}).get("binary_data_size")
        is_binary = binary_names is None or name in binary_names
        answer.expect((size is not None) == is_binary, f"output {name} {'binary' if is_binary else 'as JSON'}")
        try:
            if size is None:
                found[name] = from_json(item.get("data"), datatype, shape)
                continue
            answer.expect(type(size) is int and 0 <= size <= len(tail), f"a binary_data_size up to {len(tail)}", str(size))
            found[name], tail = from_raw(tail[:size], datatype, shape), tail[size:]
        except ValueError as error:
            raise answer.failure(f"data of output {name} that fits {datatype} {list(shape)}", str(error)) from None
    answer.expect(not tail, "nothing after the last tensor", f"{len(tail)} bytes")
    return found


def _need(target: Target, model: Model | None = None) -> Model:
    target.need_extension("binary_tensor_data")
    return model or target.main


@clause("binary.input", "A binary input is answered as its JSON form is", Level.MUST, _SOURCE)
def check_input(target: Target) -> None:
    model = _need(target)
    inputs = model.make_inputs(seed=1)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    answer = send_binary(target, model, make_binary(model, inputs))
    expect_outputs(answer, read_outputs(answer), expected)


@clause("binary.default-json", "Outputs are JSON unless binary ones are asked for", Level.MUST, _SOURCE)
def check_default(target: Target) -> None:
    model = _need(target)
    answer = send_binary(target, model, make_binary(model, model.make_inputs()))
    read_outputs(answer)
    answer.expect(_HEADER.lower() not in answer.headers, f"no header {_HEADER}")


@clause("binary.output", "binary_data asks for an output in binary", Level.MUST, _SOURCE)
def check_output(target: Target) -> None:
    model = _need(target)
    inputs = model.make_inputs(seed=2)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    outputs = [{"name": tensor.name, "parameters": {"binary_data": True}} for tensor in model.outputs]
    answer = target.infer(model, make_request(model, inputs, outputs=outputs))
    expect_outputs(answer, read_binary(answer), expected)


@clause("binary.output-all", "binary_data_output asks for all outputs in binary", Level.MUST, _SOURCE)
def check_output_all(target: Target) -> None:
    model = _need(target)
    inputs = model.make_inputs(seed=3)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    answer = target.infer(model, make_request(model, inputs, parameters=_ALL))
    expect_outputs(answer, read_binary(answer), expected)


@clause("binary.output-override", "binary_data of an output overrides binary_data_output", Level.MUST, _SOURCE)
def check_override(target: Target) -> None:
    model = _need(target)
    outputs = [{"name": tensor.name, "parameters": {"binary_data": False}} for tensor in model.outputs]
    answer = target.infer(model, make_request(model, parameters=_ALL, outputs=outputs))
    answer.expect(_HEADER.lower() not in answer.headers, f"no header {_HEADER}")
    read_outputs(answer)


@clause("binary.mixed-inputs", "Binary and JSON inputs may be mixed", Level.MUST, _SOURCE)
def check_mixed_inputs(target: Target) -> None:
    model = _need(target, need_inputs(target))
    inputs = model.make_inputs(seed=4)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    for tensor in model.inputs:
        answer = send_binary(target, model, make_binary(model, inputs, (tensor.name,)))
        expect_outputs(answer, read_outputs(answer), expected)


@clause("binary.input-order", "Binary inputs follow in the order of the JSON", Level.MUST, _SOURCE)
def check_input_order(target: Target) -> None:
    model = _need(target, need_inputs(target))
    inputs = model.make_inputs(seed=5)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    answer = send_binary(target, model, make_binary(model, inputs, order=-1))
    expect_outputs(answer, read_outputs(answer), expected)


@clause("binary.mixed-outputs", "Binary and JSON outputs may be mixed, and follow in the order of the JSON", Level.MUST, _SOURCE)
def check_mixed_outputs(target: Target) -> None:
    model = _need(target, need_outputs(target))
    inputs = model.make_inputs(seed=6)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    for chosen in model.outputs:
        outputs = [{"name": tensor.name, "parameters": {"binary_data": tensor != chosen}} for tensor in model.outputs]
        answer = target.infer(model, make_request(model, inputs, outputs=outputs))
        binary = tuple(tensor.name for tensor in model.outputs if tensor != chosen)
        expect_outputs(answer, read_binary(answer, binary), expected)


@clause("binary.id-echoed", "The id is in the JSON of a binary answer", Level.MUST, _SOURCE)
def check_id(target: Target) -> None:
    model = _need(target)
    answer = target.infer(model, make_request(model, id="binary-1", parameters=_ALL))
    read_binary(answer)
    head = answer.read_json(answer.body[: int(answer.headers[_HEADER.lower()])])
    answer.expect(isinstance(head, dict) and cast(dict[str, Any], head).get("id") == "binary-1", "id binary-1")


@clause("binary.content-type", "A binary answer is application/octet-stream", Level.SHOULD, "extension_binary_data.md: Examples")
def check_content_type(target: Target) -> None:
    model = _need(target)
    answer = target.infer(model, make_request(model, parameters=_ALL))
    found = answer.headers.get("content-type", "none")
    answer.expect(found == "application/octet-stream", "Content-Type: application/octet-stream", found)


@clause(
    "binary.content-length",
    "Content-Length counts JSON and tensors",
    Level.SHOULD,
    _SOURCE,
    'The text says "as HTTP requires"; HTTP allows an answer in chunks, which has none.',
)
def check_content_length(target: Target) -> None:
    model = _need(target)
    answer = target.infer(model, make_request(model, parameters=_ALL))
    found = answer.headers.get("content-length", "none")
    answer.expect(found == str(len(answer.body)), f"Content-Length: {len(answer.body)}", found)


@clause(
    "binary.raw-request",
    "A body that is the one input's tensor alone, with a JSON length of 0",
    Level.MAY,
    "extension_binary_data.md: Raw Binary Request",
    "A later addition to the text: one input, at most one free dimension, rows are one.",
)
def check_raw(target: Target) -> None:
    _need(target)
    model = target.need_input("FP32")
    first = model.inputs[0]
    if len(model.inputs) > 1 or first.shape.count(-1) > 1:
        raise Skip("it needs a model with one FP32 input and one free dimension")
    inputs = model.make_inputs(num_rows=1)
    expected = read_outputs(target.infer(model, make_request(model, inputs)))
    raw = to_raw(inputs[first.name], "FP32")
    answer = target.infer(model, raw, headers={_HEADER: "0", "Content-Type": "application/octet-stream"})
    if answer.is_refusal:
        raise NotOffered("a request without JSON is refused")
    expect_outputs(answer, read_binary(answer), expected)


def _header(value: str) -> Callable[[Target, Model], Answer]:
    return lambda target, model: send_binary(target, model, make_binary(model, model.make_inputs()), {_HEADER: value})


def _tail(change: Callable[[bytes], bytes]) -> Callable[[Target, Model], Answer]:
    def send(target: Target, model: Model) -> Answer:
        request = make_binary(model, model.make_inputs())
        return send_binary(target, model, _Binary(request.head, change(request.tail)))

    return send


def _size(change: Callable[[int], Any], tail: Callable[[bytes], bytes] = bytes) -> Callable[[Target, Model], Answer]:
    """A request whose first input tells another size; `tail` changes what follows."""

    def send(target: Target, model: Model) -> Answer:
        request = make_binary(model, model.make_inputs())
        parameters = request.head["inputs"][0]["parameters"]
        parameters["binary_data_size"] = change(parameters["binary_data_size"])
        return send_binary(target, model, _Binary(request.head, tail(request.tail)))

    return send


def _send_without_header(target: Target, model: Model) -> Answer:
    body, _ = make_binary(model, model.make_inputs()).encode()
    return target.infer(model, body)


def _send_both(target: Target, model: Model) -> Answer:
    inputs = model.make_inputs()
    request = make_binary(model, inputs)
    request.head["inputs"][0]["data"] = make_request(model, inputs)["inputs"][0]["data"]
    return send_binary(target, model, request)


def _send_long_element(target: Target, _: Model) -> Answer:
    model = target.need_input("BYTES")
    request = make_binary(model, model.make_inputs())
    return send_binary(target, model, _Binary(request.head, b"\xff\xff\xff\x7f" + request.tail[4:]))


def _send_bad_flag(target: Target, model: Model) -> Answer:
    return target.infer(model, make_request(model, parameters={"binary_data_output": "yes"}))


_WRONG: Final[tuple[tuple[str, str, Callable[[Target, Model], Answer], Level], ...]] = (
    ("header-long", "A JSON length beyond the body", _header("99999999"), Level.MUST),
    ("header-text", "A JSON length that is no number", _header("abc"), Level.MUST),
    ("header-negative", "A negative JSON length", _header("-1"), Level.MUST),
    ("header-absent", "Binary data without a JSON length", _send_without_header, Level.MUST),
    ("tail-short", "Fewer bytes than the sizes say", _tail(lambda tail: tail[:-1]), Level.MUST),
    ("tail-absent", "Sizes without any bytes", _tail(lambda _: b""), Level.MUST),
    ("tail-long", "More bytes than the sizes say", _tail(lambda tail: tail + b"\0\0\0\0"), Level.SHOULD),
    ("size-short", "A size below what the shape needs", _size(lambda size: size - 1, lambda tail: tail[:-1]), Level.MUST),
    ("size-long", "A size above what the shape needs", _size(lambda size: size + 4, lambda tail: tail + b"\0" * 4), Level.MUST),
    ("size-negative", "A negative size", _size(lambda size: -size), Level.MUST),
    ("size-huge", "A size of 2 to the 62", _size(lambda _: 2**62), Level.MUST),
    ("size-text", "A size that is no number", _size(lambda _: "many"), Level.MUST),
    ("data-twice", "An input with binary and JSON data", _send_both, Level.SHOULD),
    ("element-long", "A BYTES element that is longer than the data", _send_long_element, Level.MUST),
    ("flag-text", "binary_data_output that is no bool", _send_bad_flag, Level.SHOULD),
)


def _make_refusal(send: Callable[[Target, Model], Answer]) -> Callable[[Target], None]:
    return lambda target: send(target, _need(target)).expect_refusal()


for _name, _title, _send, _level in _WRONG:
    clause(f"binary.refuse.{_name}", f"{_title}: refused", _level, _SOURCE)(_make_refusal(_send))


def _make_check(datatype: str) -> Callable[[Target], None]:
    def check(target: Target) -> None:
        model = _need(target, target.need_input(datatype))
        is_known = model.name == name_same(datatype)
        inputs = {"x": make_edges(datatype)} if is_known else model.make_inputs()
        answer = send_binary(target, model, make_binary(model, inputs, parameters=_ALL))
        found = read_binary(answer)
        if is_known:
            expect_outputs(answer, found, {"y": inputs["x"]})

    return check


for _datatype in DATATYPES:
    clause(
        f"binary.datatype.{_datatype.lower()}",
        f"{_datatype} in binary comes back as it was sent",
        Level.MUST,
        _SOURCE,
        "The text names BF16 and has no size for it; two bytes are taken." if _datatype == "BF16" else "",
    )(_make_check(_datatype))


@clause("binary.datatype.not-finite", "NaN and infinity come back", Level.MUST, _SOURCE)
def check_not_finite(target: Target) -> None:
    target.need_extension("binary_tensor_data")
    for model in list_float_models(target):
        inputs = {"x": make_not_finite(model.inputs[0].datatype)}
        answer = send_binary(target, model, make_binary(model, inputs, parameters=_ALL))
        expect_outputs(answer, read_binary(answer), {"y": inputs["x"]})


@clause("binary.datatype.octets", "BYTES need not be text", Level.MUST, _SOURCE)
def check_octets(target: Target) -> None:
    model = _need(target, target.need_model(OCTETS))
    x = make_octets()
    answer = send_binary(target, model, make_binary(model, {"x": x}, parameters=_ALL))
    expect_outputs(answer, read_binary(answer), {"y": x})
