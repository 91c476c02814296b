"""Inference bodies that a V2 server has to refuse, and go on serving the same connection.

    python attacks/http_bodies.py HOST:PORT MODEL [NAME ...]

MODEL has one FP32 input whose first axis is rows and whose second has a fixed length, such as the model that
tests/home.py publishes as `scale`. Its metadata is asked for. Each case prints the status that it was answered
with; a line with a `!` was answered otherwise than the case expects, or left the connection out of step. Needs the
standard library only. tests/serve/http/test_http.py runs all of them.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from typing import Any, NamedTuple

from http_requests import Peer, observe, parse_address, report, request

BAD = ("400",)
DEPTH = 100_000
NUM_BRACKETS = b"[" * DEPTH + b"]" * DEPTH


class Model(NamedTuple):
    """What the cases need to know: the input's name and the length of its second axis."""

    name: str
    tensor: str
    width: int


class Case(NamedTuple):
    name: str
    body: bytes
    expected: tuple[str, ...] = BAD
    headers: tuple[str, ...] = ()


def describe_model(address: tuple[str, int], name: str) -> Model:
    with Peer(address) as peer:
        peer.send(request("GET", f"/v2/models/{name}"))
        answer = peer.read()
    if answer is None or answer.status != 200:
        sys.exit(f"no model {name}")
    spec = json.loads(answer.body)["inputs"][0]
    return Model(name, spec["name"], spec["shape"][1])


def run_case(address: tuple[str, int], model: Model, case: Case) -> str:
    with Peer(address) as peer:
        path = f"/v2/models/{model.name}/infer"
        if "Transfer-Encoding: chunked" in case.headers:
            peer.send(request("POST", path, *case.headers, body=case.body))
        else:
            peer.send(request("POST", path, f"Content-Length: {len(case.body)}", *case.headers, body=case.body))
        return observe(peer)


def build_cases(model: Model) -> list[Case]:
    good: dict[str, Any] = {"name": model.tensor, "shape": [1, model.width], "datatype": "FP32", "data": [1.0] * model.width}
    return [
        *_build_texts(model, good),
        *_build_shapes(model, good),
        *_build_values(model, good),
        *_build_fields(good),
        *_build_binaries(model, good),
        *_build_packed(good),
    ]


def dump(*inputs: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def _build_texts(model: Model, good: dict[str, Any]) -> list[Case]:
    text = dump(good)
    start = b'{"inputs":[{"name":"%b","shape":[1,%d],"datatype":"FP32","data":' % (model.tensor.encode(), model.width)
    return [
        Case("empty", b""),
        Case("space", b" " * 1000),
        Case("null", b"null"),
        Case("number", b"7"),
        Case("list", b"[]"),
        Case("object", b"{}"),
        Case("garbage", bytes(range(256))),
        Case("cut", text[:-1]),
        Case("cut_in_a_string", text[:14]),
        Case("cut_in_an_escape", b'{"id":"\\u12'),
        Case("two_documents", text + text),
        Case("garbage_after", text + b"x"),
        Case("byte_order_mark", b"\xef\xbb\xbf" + text),
        Case("utf_16", text.decode().encode("utf-16")),
        Case("utf_8_broken_in_name", text.replace(f'"{model.tensor}"'.encode(), b'"\xff\xfe"')),
        Case("utf_8_broken_in_id", b'{"id":"\xc3",' + text[1:]),
        # Nobody reads the name of a field that is not known.
        Case("utf_8_broken_in_unknown_key", b'{"\xc3":1,' + text[1:], ("200", "400")),
        Case("utf_8_overlong_in_id", b'{"id":"\xc0\xaf",' + text[1:]),
        Case("surrogate_alone_in_id", b'{"id":"\\ud800",' + text[1:]),
        Case("surrogate_bytes_in_id", b'{"id":"\xed\xa0\x80",' + text[1:]),
        Case("zero_in_a_string_unescaped", b'{"id":"\0",' + text[1:]),
        Case("single_quotes", text.replace(b'"', b"'")),
        Case("trailing_comma", text.replace(b"]", b",]")),
        Case("comment", b"/**/" + text),
        Case("deep_document", NUM_BRACKETS),
        Case("deep_objects", b'{"a":' * DEPTH + b"1" + b"}" * DEPTH),
        Case("deep_data", start + NUM_BRACKETS + b"}]}"),
        Case("deep_data_open", start + b"[" * DEPTH),
        Case("deep_unknown_field", b'{"x":' + NUM_BRACKETS + b"," + text[1:]),
        Case("deep_unknown_field_open", b'{"x":' + b"[" * DEPTH),
        Case("deep_shape", text.replace(b"[1, ", b"[" + NUM_BRACKETS + b",", 1)),
        Case("deep_parameters", b'{"parameters":{"x":' + NUM_BRACKETS + b"}," + text[1:]),
    ]


def _build_shapes(model: Model, good: dict[str, Any]) -> list[Case]:
    width, data = model.width, good["data"]
    shapes: dict[str, Any] = {
        "text": f"[1,{width}]",
        "number": width,
        "null": None,
        "object": {},
        "of_text": ["1", str(width)],
        "of_floats": [1.0, float(width)],
        "of_halves": [0.5, width * 2],
        "of_booleans": [True, width],
        "of_nulls": [None, width],
        "empty": [],
        "of_rank_1": [width],
        "of_rank_3": [1, 1, width],
        "of_rank_17": [1] * 16 + [width],
        "of_rank_100000": [1] * DEPTH,
        "negative": [-1, width],
        "negative_twice": [-1, -width],
        "lowest_integer": [-(1 << 63), width],
        "of_no_rows": [0, width],
        "of_other_width": [1, width + 1],
        "swapped": [width, 1],
        "of_two_rows": [2, width],
        "of_31_bits": [1 << 31, width],
        "of_63_bits": [(1 << 63) - 1, width],
        "of_64_bits": [1 << 64, width],
        "of_1000_digits": [10**1000, width],
        # The product is `width`, modulo 2 to the 64.
        "wraps_around": [(1 << 62) + 1, width] if width == 4 else [(1 << 64) // width + 1, width],
        "wraps_around_to_0": [1 << 62, width],
    }
    cases = [Case(f"shape_{name}", dump({**good, "shape": shape})) for name, shape in shapes.items()]
    return [
        *cases,
        Case("shape_of_no_rows_without_data", dump({**good, "shape": [0, width], "data": []})),
        Case("shape_wraps_around_without_data", dump({**good, "shape": [1 << 62, width], "data": []})),
        Case("too_many_rows", dump({**good, "shape": [5000, width], "data": data * 5000})),
    ]


def _build_values(model: Model, good: dict[str, Any]) -> list[Case]:
    data = good["data"]
    text = dump(good)
    numbers = json.dumps(data).encode()
    odd = ("1e39", "-1e39", "1e400", "9" * 400, "9" * 5000, "NaN", "Infinity", "-Infinity", "null", "true", '"1"', "{}", "[]")
    wrong = ("01", "+1", ".5", "1.", "0x1", "1e", "--1", "1_0", "")
    return [
        *(Case(f"value_{value[:12]}", text.replace(b"1.0", value.encode(), 1)) for value in (*odd, *wrong)),
        Case("data_text", dump({**good, "data": "1234"})),
        Case("data_number", dump({**good, "data": 1})),
        Case("data_null", dump({**good, "data": None})),
        Case("data_object", dump({**good, "data": {"0": 1}})),
        Case("data_empty", dump({**good, "data": []})),
        Case("data_too_few", dump({**good, "data": data[1:]})),
        Case("data_too_many", dump({**good, "data": [*data, 1.0]})),
        Case("data_nested_too_little", dump({**good, "data": [[*data], [*data]]})),
        Case("data_nested_too_deep", dump({**good, "data": [[[value] for value in data]]})),
        Case("data_nested_the_other_way", dump({**good, "data": [[value] for value in data]})),
        Case("data_half_nested", dump({**good, "data": [data[:1], *data[1:]]})),
        Case("data_half_nested_later", dump({**good, "data": [*data[:-1], data[-1:]]})),
        Case("data_ragged", dump({**good, "shape": [2, model.width], "data": [data[1:], [*data, 1.0]]})),
        Case("data_nested_in_objects", dump({**good, "data": [{"0": data}]})),
        Case("data_in_empty_lists", text.replace(numbers, b"[" + b"[]," * 9999 + b"[]]")),
    ]


def _build_fields(good: dict[str, Any]) -> list[Case]:
    def without(field: str) -> dict[str, Any]:
        return {name: value for name, value in good.items() if name != field}

    name = good["name"]
    timeouts: tuple[Any, ...] = (-1, 1.5, "1", True, 1e30, 1 << 70, [])
    return [
        *(Case(f"without_{field}", dump(without(field))) for field in good),
        Case("inputs_empty", dump()),
        Case("inputs_object", b'{"inputs":{}}'),
        Case("inputs_of_numbers", b'{"inputs":[1,2]}'),
        Case("inputs_300", dump(*({**good, "name": f"{name}{number}"} for number in range(300)))),
        Case("input_twice", dump(good, good)),
        Case("input_unknown", dump({**good, "name": "nothing"})),
        Case("input_unknown_besides", dump(good, {**good, "name": "nothing"})),
        Case("input_of_long_name", dump({**good, "name": "n" * 100_000})),
        Case("input_name_number", dump({**good, "name": 7})),
        Case("input_name_other_case", dump({**good, "name": name.swapcase()})),
        Case("datatype_other", dump({**good, "datatype": "FP64"})),
        Case("datatype_unknown", dump({**good, "datatype": "FP33"})),
        Case("datatype_lower_case", dump({**good, "datatype": "fp32"})),
        Case("datatype_empty", dump({**good, "datatype": ""})),
        Case("datatype_number", dump({**good, "datatype": 32})),
        Case("datatype_long", dump({**good, "datatype": "F" * 100_000})),
        Case("id_number", dump(good, id=7)),
        Case("id_object", dump(good, id={})),
        Case("outputs_object", dump(good, outputs={})),
        Case("outputs_of_text", dump(good, outputs=["y"])),
        Case("outputs_without_name", dump(good, outputs=[{}])),
        Case("output_unknown", dump(good, outputs=[{"name": "nothing"}])),
        Case("parameters_list", dump(good, parameters=[])),
        Case("parameter_object", dump(good, parameters={"timeout": {}})),
        Case("binary_data_output_text", dump(good, parameters={"binary_data_output": "true"})),
        Case("binary_data_output_number", dump(good, parameters={"binary_data_output": 1})),
        *(Case(f"timeout_{timeout}", dump(good, parameters={"timeout": timeout})) for timeout in timeouts),
        *(Case(f"priority_{priority}", dump(good, parameters={"priority": priority})) for priority in timeouts),
    ]


def _build_binaries(model: Model, good: dict[str, Any]) -> list[Case]:
    num_bytes = 4 * model.width
    raw = bytes(num_bytes)

    def build(name: str, size: Any, tail: bytes = raw, length: Any = None, **fields: Any) -> Case:
        tensor = {key: value for key, value in good.items() if key != "data"}
        head = dump({**tensor, "parameters": {"binary_data_size": size}, **fields})
        announced = f"Inference-Header-Content-Length: {len(head) if length is None else length}"
        return Case(f"binary_{name}", head + tail, headers=(announced,))

    return [
        build("too_short", num_bytes, raw[1:]),
        build("too_long", num_bytes, raw + b"\0"),
        build("size_too_small", num_bytes - 1, raw[1:]),
        build("size_too_large", num_bytes + 1, raw + b"\0"),
        build("size_0", 0, b""),
        build("size_negative", -1),
        build("size_of_63_bits", (1 << 63) - 1),
        build("size_of_64_bits", 1 << 64),
        build("size_float", float(num_bytes)),
        build("size_text", str(num_bytes)),
        build("size_boolean", True),
        build("size_null", None),
        build("with_data_besides", num_bytes, data=good["data"]),
        build("shape_of_31_bits", num_bytes, shape=[1 << 31, model.width]),
        build("shape_wraps_around_to_0", 0, b"", shape=[1 << 62, model.width]),
        build("shape_negative", num_bytes, shape=[-1, model.width]),
        build("header_0", num_bytes, length=0),
        build("header_negative", num_bytes, length=-1),
        build("header_after_the_body", num_bytes, length=100_000),
        build("header_in_the_text", num_bytes, length=10),
        build("header_garbage", num_bytes, length="many"),
        build("header_of_1000_digits", num_bytes, length="9" * 1000),
        build("header_superscript", num_bytes, length="\xb2"),
        build("header_empty", num_bytes, length=""),
        Case("binary_without_header", dump({**good, "parameters": {"binary_data_size": num_bytes}}) + raw),
        # Which of the two tells where the tensors begin would differ between readers.
        Case(
            "binary_with_two_headers",
            (head := dump(good)),
            headers=("Inference-Header-Content-Length: 1", f"Inference-Header-Content-Length: {len(head)}"),
            expected=("400", "400 closed"),
        ),
    ]


def _build_packed(good: dict[str, Any]) -> list[Case]:
    text = dump(good)
    packed = gzip.compress(text)
    bomb = zlib.compressobj(9, wbits=31)
    spaces = b" " * (1 << 20)
    bomb_bytes = b"".join([bomb.compress(spaces) for _ in range(100)]) + bomb.flush()
    nested = gzip.compress(bomb_bytes)

    def build(name: str, body: bytes, *more: str, encoding: str = "gzip", expected: tuple[str, ...] = BAD) -> Case:
        return Case(f"packed_{name}", body, expected, (f"Content-Encoding: {encoding}", *more))

    chunks = b"%x\r\n%b\r\n0\r\n" % (len(text), text)
    return [
        build("cut", packed[:-9]),
        build("without_checksum", packed[:-8]),
        build("with_wrong_checksum", packed[:-8] + bytes(4) + packed[-4:]),
        build("garbage", b"garbage"),
        build("empty", b""),
        build("not", text),
        build("as_deflate", packed, encoding="deflate"),
        build("as_nonsense", packed, encoding="nonsense", expected=("400", "415")),
        build("twice", gzip.compress(packed), encoding="gzip, gzip", expected=("400", "415")),
        # What stands behind the first member was not looked at: it may not be left out in silence.
        build("with_garbage_after", packed + b"garbage"),
        build("bomb", bomb_bytes, expected=("413",)),
        build("bomb_deflate", zlib.compress(spaces * 100, 9), encoding="deflate", expected=("413",)),
        build("bomb_in_a_member_after", gzip.compress(b" ") + bomb_bytes, expected=("400", "413")),
        build("bomb_in_a_bomb", nested),
        # RFC 9110, 6.5.1: what comes in trailers does not change how the body is read.
        Case(
            "trailers_are_not_headers",
            chunks + b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 3\r\n\r\n",
            ("200", "400 closed"),
            ("Transfer-Encoding: chunked",),
        ),
    ]


def main() -> None:
    address = parse_address(sys.argv[1])
    model = describe_model(address, sys.argv[2])
    cases = build_cases(model)
    outcomes = [(case.name, lambda case=case: run_case(address, model, case), case.expected) for case in cases]
    report(address, outcomes, sys.argv[3:])


if __name__ == "__main__":
    main()
