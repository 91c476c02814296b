"""Tensors over V2: what every datatype may hold, as JSON and binary, and what is refused, with which words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from argosy.datatypes import DATATYPES
from argosy.server import Server
from argosy.signature import pack_bytes, unpack_bytes
from tests.serve.v2.models import TYPES, serve_models

HEADER = "Inference-Header-Content-Length"
SINGLES = ("BOOL", "UINT8", "UINT64", "INT8", "INT64", "FP16", "FP32", "FP64", "BYTES")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = ("types", "pair", "turn", "scalar", "log", *(f"same-{datatype}" for datatype in SINGLES))
    with serve_models(tmp_path_factory.mktemp("tensors"), *names) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v2/models", timeout=20) as made:
        yield made


def tensor(name: str, datatype: str, shape: Any, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def infer(client: httpx.Client, model: str, *inputs: dict[str, Any], **fields: Any) -> httpx.Response:
    return client.post(f"/{model}/infer", content=json.dumps({"inputs": inputs, **fields}))


def infer_text(client: httpx.Client, datatype: str, data: str, shape: str = "[1,1]") -> httpx.Response:
    text = f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}'
    return client.post(f"/same-{datatype}/infer", content=text)


def to_raw(array: np.ndarray) -> bytes:
    return pack_bytes(array) if array.dtype.kind == "O" else array.tobytes()


def infer_binary(client: httpx.Client, model: str, arrays: dict[str, tuple[str, np.ndarray]], **fields: Any) -> httpx.Response:
    raws = [to_raw(array) for _, array in arrays.values()]
    inputs = [
        {"name": name, "shape": array.shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
        for (name, (datatype, array)), raw in zip(arrays.items(), raws, strict=True)
    ]
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return client.post(f"/{model}/infer", content=b"".join((head, *raws)), headers={HEADER: str(len(head))})


def read_outputs(answer: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer, by an independent reading of the protocol."""
    assert answer.status_code == 200, answer.text
    pos = int(answer.headers.get(HEADER, len(answer.content)))
    outputs: dict[str, np.ndarray] = {}
    for item in json.loads(answer.content[:pos])["outputs"]:
        dtype, count = DATATYPES[item["datatype"]], math.prod(item["shape"])
        if "data" in item:
            values = [value.encode() for value in item["data"]] if dtype.kind == "O" else item["data"]
            flat = np.array(values, dtype)
        else:
            raw = answer.content[pos : pos + item["parameters"]["binary_data_size"]]
            pos += len(raw)
            flat = unpack_bytes(raw, count) if dtype.kind == "O" else np.frombuffer(raw, dtype)
        outputs[item["name"]] = flat.reshape(item["shape"])
    assert pos == len(answer.content)
    return outputs


def make_limits() -> dict[str, np.ndarray]:
    """Two rows of the lowest and highest values of every datatype but BF16 (`test_datatypes.py`)."""
    arrays: dict[str, np.ndarray] = {}
    for name, dtype in TYPES.items():
        if dtype.kind == "O":
            values: list[Any] = ["", "a\0b\n\u00e4\u20ac\U0001f6a2".encode(), b"x" * 1000, b'"\\']
        elif dtype.kind == "b":
            values = [False, True, True, False]
        elif dtype.kind == "f":
            info = np.finfo(dtype)
            values = [info.min, info.max, info.smallest_subnormal, -0.0]
        else:
            info = np.iinfo(dtype)
            values = [info.min, info.max, 0, 1]
        arrays[name] = np.array([v.encode() if isinstance(v, str) else v for v in values], dtype).reshape(2, 2)
    return arrays


LIMITS = make_limits()


def to_json(array: np.ndarray, is_flat: bool) -> Any:
    values = (array.ravel() if is_flat else array).tolist()
    if array.dtype.kind != "O":
        return values
    return [item.decode() for item in values] if is_flat else [[item.decode() for item in row] for row in values]


# all datatypes


@pytest.mark.parametrize("is_flat", [True, False], ids=["flat", "nested"])
@pytest.mark.parametrize("is_binary", [True, False], ids=["to-binary", "to-json"])
def test_json_of_every_datatype_keeps_every_bit(client: httpx.Client, is_flat: bool, is_binary: bool) -> None:
    inputs = [tensor(f"in-{name}", name, [2, 2], to_json(array, is_flat)) for name, array in LIMITS.items()]
    outputs = read_outputs(infer(client, "types", *inputs, parameters={"binary_data_output": is_binary}))
    assert {name: to_raw(array) for name, array in outputs.items()} == {f"out-{name}": to_raw(a) for name, a in LIMITS.items()}


@pytest.mark.parametrize("is_binary", [True, False], ids=["to-binary", "to-json"])
def test_binary_of_every_datatype_keeps_every_bit(client: httpx.Client, is_binary: bool) -> None:
    arrays = {f"in-{name}": (name, array) for name, array in LIMITS.items()}
    answer = infer_binary(client, "types", arrays, parameters={"binary_data_output": is_binary})
    assert (HEADER.lower() in answer.headers) == is_binary
    outputs = read_outputs(answer)
    assert {name: to_raw(array) for name, array in outputs.items()} == {f"out-{name}": to_raw(a) for name, a in LIMITS.items()}


def test_binary_and_json_stand_beside_each_other(client: httpx.Client) -> None:
    is_raw = {name: number % 2 == 0 for number, name in enumerate(LIMITS)}
    inputs, tail = [], b""
    for name, array in LIMITS.items():
        item = tensor(f"in-{name}", name, [2, 2], to_json(array, False))
        if is_raw[name]:
            del item["data"]
            item["parameters"] = {"binary_data_size": len(to_raw(array))}
            tail += to_raw(array)
        inputs.append(item)
    outputs = [{"name": f"out-{name}", "parameters": {"binary_data": not raw}} for name, raw in is_raw.items()]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    answer = client.post("/types/infer", content=head + tail, headers={HEADER: str(len(head))})
    found = read_outputs(answer)
    assert {name: to_raw(array) for name, array in found.items()} == {f"out-{name}": to_raw(a) for name, a in LIMITS.items()}
    described = json.loads(answer.content[: int(answer.headers[HEADER])])["outputs"]
    assert {item["name"].removeprefix("out-"): "data" in item for item in described} == is_raw


@pytest.mark.parametrize("datatype", SINGLES)
def test_rows_may_be_empty_but_there_must_be_some(client: httpx.Client, datatype: str) -> None:
    answer = infer(client, f"same-{datatype}", tensor("x", datatype, [3, 0], []))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == [{"name": "y", "datatype": datatype, "shape": [3, 0], "data": []}]
    for shape in ([0, 2], [0, 0]):
        refused = infer(client, f"same-{datatype}", tensor("x", datatype, shape, []))
        assert (refused.status_code, refused.json()) == (400, {"error": "The request has no rows"})


def test_floats_that_are_not_numbers_travel_as_binary(client: httpx.Client) -> None:
    bits = np.array([[0x7FC00001, 0xFFC12345], [0x7F800000, 0xFF800000]], np.uint32)
    answer = infer_binary(client, "same-FP32", {"x": ("FP32", bits.view(np.float32))}, parameters={"binary_data_output": True})
    np.testing.assert_array_equal(read_outputs(answer)["y"].view(np.uint32), bits)


# values


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("INT64", "[1.7]", "Expected `int`, got `float`"),
        ("INT64", '["1"]', "Expected `int`, got `str`"),
        ("INT64", "[true]", "Expected `int`, got `bool`"),
        ("INT64", "[null]", "Expected `int`, got `null`"),
        ("INT64", "[9223372036854775808]", "too large"),
        ("INT64", "[-9223372036854775809]", "too large"),
        ("UINT64", "[18446744073709551616]", "too large"),
        ("UINT64", "[-1]", "UINT64"),
        ("INT8", "[128]", "128 out of bounds"),
        ("INT8", "[-129]", "-129 out of bounds"),
        ("UINT8", "[256]", "256 out of bounds"),
        ("UINT8", "[-1]", "-1 out of bounds"),
        ("UINT8", "[18446744073709551616]", "UINT8"),
        ("FP32", "[1e39]", "overflow"),
        ("FP32", "[3.4028236e38]", "overflow"),
        ("FP16", "[65520]", "overflow"),
        ("FP64", "[1e309]", "out of range"),
        ("FP32", '["1"]', "Expected `float`, got `str`"),
        ("FP32", "[true]", "Expected `float`, got `bool`"),
        ("FP32", "[NaN]", "not valid"),
        ("BOOL", "[1]", "Expected `bool`, got `int`"),
        ("BOOL", '["true"]', "Expected `bool`, got `str`"),
        ("BYTES", "[1]", "one of its elements is a number, expected text"),
        ("BYTES", "[null]", "one of its elements is null, expected text"),
        ("BYTES", '[{"age": 3}]', "a line of CSV, or its JSON object as a string, json.dumps(row)"),
        ("BYTES", '{"age": 3}', "a line of CSV, or its JSON object as a string, json.dumps(row)"),
        ("BYTES", '["\\ud800"]', "not valid"),
    ],
)
def test_json_is_not_coerced(client: httpx.Client, datatype: str, data: str, text: str) -> None:
    for wrapped in (data, f"[{data}]"):
        answer = infer_text(client, datatype, wrapped)
        assert answer.status_code == 400, answer.text
        assert text in answer.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("INT64", "[-9223372036854775808]", -(1 << 63)),
        ("UINT64", "[18446744073709551615]", (1 << 64) - 1),
        ("INT64", "[-0]", 0),
        ("FP32", "[1]", 1.0),
        ("FP32", "[1E2]", 100.0),
        ("FP32", "[3.4028235e38]", 3.4028235e38),
        ("FP32", "[16777217]", 16777216.0),
        ("FP32", "[1e-50]", 0.0),
        ("FP64", "[0.1]", 0.1),
        ("FP64", "[123456789012345678901234567890]", 1.2345678901234568e29),
        ("FP16", "[65504]", 65504.0),
        ("BOOL", "[false]", False),
        ("BYTES", '[""]', ""),
        ("BYTES", '["\\u0000\\ud83d\\udea2"]', "\0\U0001f6a2"),
    ],
)
def test_json_holds_what_the_datatype_holds(client: httpx.Client, datatype: str, data: str, expected: Any) -> None:
    answer = infer_text(client, datatype, data)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [expected]


@pytest.mark.parametrize(
    ("datatype", "array", "raw", "text"),
    [
        ("BOOL", "[1,2]", b"\1\2", "neither 0 nor 1"),
        ("BYTES", "[1,1]", b"\5\0\0\0abcd", "elements"),
        ("BYTES", "[1,1]", b"\xff\xff\xff\xffabcd", "elements"),
        ("BYTES", "[1,2]", b"\1\0\0\0a", "elements"),
        ("BYTES", "[1,1]", b"\1\0\0\0ab", "bytes of data"),
        ("BYTES", "[1,1]", b"", "elements"),
        ("BYTES", "[1,2000000]", b"\0\0\0\0" * 2_000_000, "at most 1000000"),
        ("FP64", "[1,1]", bytes(7), "has 7 bytes of data, expected 8"),
        ("UINT8", "[1,1]", b"", "has 0 bytes of data, expected 1"),
    ],
)
def test_binary_that_does_not_fit_is_refused(client: httpx.Client, datatype: str, array: str, raw: bytes, text: str) -> None:
    head = f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{array},"parameters":{{"binary_data_size":{len(raw)}}}}}]}}'
    answer = client.post(f"/same-{datatype}/infer", content=head.encode() + raw, headers={HEADER: str(len(head))})
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]


# the tensor alone


def infer_raw_binary(client: httpx.Client, model: str, body: bytes) -> httpx.Response:
    return client.post(f"/{model}/infer", content=body, headers={HEADER: "0", "Content-Type": "application/octet-stream"})


@pytest.mark.parametrize("datatype", SINGLES)
def test_body_may_be_the_only_input(client: httpx.Client, datatype: str) -> None:
    row = LIMITS[datatype][:1, 1:] if datatype == "BYTES" else LIMITS[datatype][:1]
    answer = infer_raw_binary(client, f"same-{datatype}", row[0, 0] if datatype == "BYTES" else row.tobytes())
    assert answer.headers["Content-Type"] == "application/octet-stream"
    y = read_outputs(answer)["y"]
    assert (y.shape, to_raw(y)) == (row.shape, to_raw(row))


def test_body_of_a_model_without_rows_has_the_shape_of_its_input(client: httpx.Client) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert read_outputs(infer_raw_binary(client, "turn", x.tobytes()))["y"].tolist() == x.T.tolist()
    assert read_outputs(infer_raw_binary(client, "scalar", b"\0\0\x80?"))["y"].shape == ()


@pytest.mark.parametrize(
    ("model", "size_bytes", "text"),
    [
        ("pair", 32, "model 'pair' version 1 has 2 inputs"),
        ("turn", 20, "has 20 bytes of data, expected 24"),
        ("turn", 0, "has 0 bytes of data, expected 24"),
        ("same-FP64", 12, "has 12 bytes of data, expected 8"),
    ],
)
def test_body_that_does_not_say_what_it_is_is_refused(client: httpx.Client, model: str, size_bytes: int, text: str) -> None:
    answer = infer_raw_binary(client, model, bytes(size_bytes))
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]


@pytest.mark.parametrize("place", ["number", "nested", "key", "name"])
def test_body_that_is_no_utf8_is_refused(client: httpx.Client, place: str) -> None:
    data = {"number": b'[1,"\xbf"]', "nested": b'[[1,"\xbf"]]', "key": b'[1,{"\xff":1}]', "name": b"[1,2]"}[place]
    name = b"\xbf" if place == "name" else b"x"
    body = b'{"inputs":[{"name":"%s","shape":[1,2],"datatype":"FP64","data":%s}]}' % (name, data)
    answer = client.post("/same-FP64/infer", content=body)
    assert answer.status_code == 400, answer.text


def test_text_that_is_no_utf8_fails_alone_in_its_batch(client: httpx.Client) -> None:
    # ONNX Runtime's strings are text: it refuses the batch, and each row is tried by itself.
    def ask(item: bytes) -> tuple[int, bytes]:
        answer = infer_binary(
            client, "same-BYTES", {"x": ("BYTES", np.array([[item]], object))}, parameters={"binary_data_output": True}
        )
        return answer.status_code, read_outputs(answer)["y"][0, 0] if answer.status_code == 200 else answer.content

    items = [b"\xff\xfe" if number == 5 else b"n%d" % number for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, items))
    status, text = answers.pop(5)
    assert status == 400
    assert b"not UTF-8" in text
    assert answers == [(200, item) for item in items if item != b"\xff\xfe"]


# several inputs and outputs


A = tensor("a", "FP32", [2, 2], [0.5, -1, 0, 2])
B = tensor("b", "INT64", [2, 3], [[1, 2, 3], [4, 5, 6]])
JOINED = {"name": "joined", "datatype": "FP64", "shape": [2, 5], "data": [0.5, -1.0, 1.0, 2.0, 3.0, 0.0, 2.0, 4.0, 5.0, 6.0]}
TOTAL = {"name": "total", "datatype": "INT64", "shape": [2], "data": [6, 15]}
POSITIVE = {"name": "positive", "datatype": "BOOL", "shape": [2, 2], "data": [True, False, False, True]}


@pytest.mark.parametrize("inputs", [(A, B), (B, A)], ids=["in-order", "other-order"])
def test_inputs_are_known_by_name(client: httpx.Client, inputs: tuple[dict[str, Any], ...]) -> None:
    answer = infer(client, "pair", *inputs)
    assert answer.status_code == 200
    assert answer.json() == {"model_name": "pair", "model_version": "1", "outputs": [JOINED, TOTAL, POSITIVE]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["total"], [TOTAL]),
        (["positive", "joined"], [POSITIVE, JOINED]),
        (["joined", "total", "positive"], [JOINED, TOTAL, POSITIVE]),
        ([], [JOINED, TOTAL, POSITIVE]),
    ],
    ids=["one", "two-in-other-order", "all", "empty-list-is-all"],
)
def test_outputs_are_those_asked_for(client: httpx.Client, names: list[str], expected: list[dict[str, Any]]) -> None:
    answer = infer(client, "pair", A, B, outputs=[{"name": name} for name in names])
    assert answer.status_code == 200
    assert answer.json()["outputs"] == expected


def test_outputs_are_binary_as_asked_for_each(client: httpx.Client) -> None:
    outputs = [{"name": "total", "parameters": {"binary_data": False}}, {"name": "joined"}]
    answer = infer(client, "pair", A, B, outputs=outputs, parameters={"binary_data_output": True})
    assert answer.headers["content-type"] == "application/octet-stream"
    head = json.loads(answer.content[: int(answer.headers[HEADER])])
    described = {"name": "joined", "datatype": "FP64", "shape": [2, 5], "parameters": {"binary_data_size": 80}}
    assert head["outputs"] == [TOTAL, described]
    np.testing.assert_array_equal(read_outputs(answer)["joined"].ravel(), JOINED["data"])


@pytest.mark.parametrize(
    ("inputs", "fields", "text"),
    [
        ((A,), {}, "Model 'pair' version 1 needs the input 'b', which is not in the request; got: a"),
        ((), {}, "Model 'pair' version 1 needs the input 'a', which is not in the request; got: none"),
        ((A, B, {**A, "name": "c"}), {}, "Model 'pair' version 1 has no input 'c'; it has: a, b"),
        ((A, A, B), {}, "Tensor 'a' stands twice in the request"),
        ((A, {**B, "shape": [1, 3], "data": [1, 2, 3]}), {}, "different numbers of rows: a 2, b 1"),
        (({**A, "shape": [2, 3]}, B), {}, "Input 'a' of model 'pair' version 1 has shape (2, 3), expected (-1, 2)"),
        (({**A, "shape": [4]}, B), {}, "Input 'a' of model 'pair' version 1 has shape (4,), expected (-1, 2)"),
        (({**A, "datatype": "FP64"}, B), {}, "Input 'a' of model 'pair' version 1 has datatype FP64, expected FP32"),
        (({**A, "data": [1, 2, 3]}, B), {}, "Input 'a' has 3 elements of data, expected 4 for shape (2, 2)"),
        ((A, {**B, "data": [[1, 2], [3], [4, 5, 6]]}), {}, "expected 2 for shape (2, 3)"),
        ((A, {**B, "data": [[1, 2], [4, 5, 6, 7]]}), {}, "nesting of input `b` does not follow its shape (2, 3)"),
        ((A, B), {"outputs": [{"name": "y"}]}, "Model 'pair' version 1 has no output 'y'; it has: joined, positive, total"),
        ((A, B), {"outputs": [{"name": "total"}, {"name": "total"}]}, "Tensor 'total' stands twice in the request"),
        ((A, B), {"parameters": {"timeout": -1}}, "Parameter `timeout` is -1, expected microseconds"),
        ((A, B), {"parameters": {"priority": -1}}, "Parameter `priority` is -1, expected 1 (first) to 65536, or 0"),
        ((A, B), {"parameters": {"sequence_id": 7}}, "Parameter `sequence_id` is 7, expected none: sequences are not offered"),
        ((A, B), {"parameters": {"sequence_start": True}}, "Parameter `sequence_start` is True, expected none"),
        (({**A, "parameters": {"shared_memory_region": "r"}}, B), {}, "Parameter `shared_memory_region` is 'r', expected none"),
        ((A, B), {"outputs": [{"name": "total", "parameters": {"classification": 3}}]}, "Parameter `classification` is 3"),
    ],
)
def test_refusals_name_what_was_wrong(
    client: httpx.Client, inputs: tuple[dict[str, Any], ...], fields: dict[str, Any], text: str
) -> None:
    answer = infer(client, "pair", *inputs, **fields)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


# models without an axis of rows


def test_model_without_rows_takes_its_whole_shape(client: httpx.Client) -> None:
    answer = infer(client, "turn", tensor("x", "FP32", [2, 3], [[1, 2, 3], [4, 5, 6]]))
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [3, 2], "data": [1, 4, 2, 5, 3, 6]}]
    refused = infer(client, "turn", tensor("x", "FP32", [1, 2, 3], [1, 2, 3, 4, 5, 6]))
    assert refused.status_code == 400
    assert "has shape (1, 2, 3), expected (2, 3)" in refused.json()["error"]


def test_number_without_axes_is_a_list_of_one(client: httpx.Client) -> None:
    answer = infer(client, "scalar", tensor("x", "FP32", [], [7]))
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [], "data": [-7.0]}]
    for data in (7, [], [7, 8], [[7]]):
        refused = infer(client, "scalar", tensor("x", "FP32", [], data))
        assert refused.status_code == 400, data
        assert "x" in refused.json()["error"]


# many rows, and outputs that are no numbers


@pytest.mark.parametrize("num_rows", [1, 64, 65, 1000])
def test_request_may_have_more_rows_than_a_batch(client: httpx.Client, num_rows: int) -> None:
    x = np.arange(num_rows * 3, dtype=np.float32).reshape(num_rows, 3)
    answer = infer_binary(client, "same-FP32", {"x": ("FP32", x)}, parameters={"binary_data_output": True})
    np.testing.assert_array_equal(read_outputs(answer)["y"], x)


def test_large_tensor_goes_both_ways(client: httpx.Client) -> None:
    # 12 MB: more than the first arena and than one read of a socket.
    x = np.random.default_rng(0).standard_normal((3, 1_000_000)).astype(np.float32)
    answer = infer_binary(client, "same-FP32", {"x": ("FP32", x)}, parameters={"binary_data_output": True})
    np.testing.assert_array_equal(read_outputs(answer)["y"], x)


def test_output_that_is_no_number_is_an_error_in_json_and_exact_in_binary(client: httpx.Client) -> None:
    x = tensor("x", "FP32", [1, 2], [-1, 0])
    answer = infer(client, "log", x)
    assert answer.status_code == 500
    expected = "Output 'y' of model 'log' version 1 holds a value that JSON cannot (NaN or infinity)"
    assert answer.json() == {"error": f"{expected}\nhint: ask for binary outputs, which are exact"}
    binary = infer(client, "log", x, outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    assert math.isnan(read_outputs(binary)["y"][0, 0])
    assert read_outputs(binary)["y"][0, 1] == -math.inf


def test_neighbours_of_an_output_that_is_no_number_are_answered(client: httpx.Client) -> None:
    def ask(value: float) -> tuple[int, Any]:
        answer = infer(client, "log", tensor("x", "FP32", [1, 2], [value, value]))
        return answer.status_code, answer.json().get("outputs", [{}])[0].get("data")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [-1.0 if number % 4 == 0 else 1.0 for number in range(40)]))
    assert answers == [(500, None) if number % 4 == 0 else (200, [0.0, 0.0]) for number in range(40)]


def test_optional_field_that_is_null_is_as_if_it_were_left_out(client: httpx.Client) -> None:
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": None}
    plain = infer(client, "same-FP32", {**x, "data": [1, 2]})
    for _ in range(3):
        nulls = infer(client, "same-FP32", {**x, "data": [1, 2]}, id=None, parameters=None, outputs=None)
        assert (nulls.status_code, nulls.json()) == (200, plain.json())
    head = json.dumps({"id": None, "inputs": [{**x, "data": None, "parameters": {"binary_data_size": 8}}]}).encode()
    body = head + np.array([1, 2], "<f4").tobytes()
    answer = client.post("/same-FP32/infer", content=body, headers={HEADER: str(len(head))})
    assert (answer.status_code, answer.json()) == (200, plain.json())
    assert infer(client, "same-FP32", {**x, "data": None}).status_code == 400
    assert infer(client, "same-FP32", {**x, "data": [1, 2]}, id=5).status_code == 400
