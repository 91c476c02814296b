"""Requests that differ from earlier ones in their numbers alone: answered, and refused, as the first of their kind is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from argosy.server import Server
from tests.serve.v2.models import serve_models

TYPES = ("FP16", "FP32", "FP64", "INT8", "UINT8", "INT64", "UINT64", "BOOL", "BYTES")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_models(tmp_path_factory.mktemp("repeats"), *(f"same-{datatype}" for datatype in TYPES)) as running:
        yield running


def make_body(datatype: str, data: str, *, shape: str = "[1,1]", before: str = "", after: str = "") -> bytes:
    return f'{{{before}"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]{after}}}'.encode()


def ask(client: httpx.Client, datatype: str, body: bytes) -> tuple[int, dict[str, Any]]:
    reply = client.post(f"/v2/models/same-{datatype}/infer", content=body)
    found = reply.json()
    found.pop("id", None)
    if reply.is_error:
        # Where in the body: the id moves that.
        found["error"] = re.sub(r"\(byte \d+\)|line \d+ column \d+.*", "", found["error"])
    return reply.status_code, found


# Each with a good one of its type before it, so that all but the numbers is known.
UNUSUAL = [
    ("FP32", "[true]"), ("FP32", "[false]"), ("FP32", "[null]"), ("FP32", '["1"]'), ("FP32", "[1e39]"), ("FP32", "[1e400]"),
    ("FP32", "[]"), ("FP32", "[1,2]"), ("FP32", "[[1]]"), ("FP32", "[1"), ("FP32", "1"), ("FP32", '"1"'), ("FP32", "{}"),
    ("FP32", '{"1":1}'), ("FP32", "[01]"), ("FP32", "[NaN]"), ("FP32", "[1,]"), ("FP32", " [ 1 ] "), ("FP32", "[1] ]"),
    ("FP32", "[18446744073709551616]"), ("FP32", "[-0.0]"), ("FP32", "[1e-46]"), ("FP32", "[3.4028235677973366e38]"),
    ("FP32", "[0.1]"), ("FP16", "[65520]"), ("FP16", "[65519]"), ("FP16", "[0.1]"), ("FP64", "[1e308]"), ("FP64", "[1e309]"),
    ("INT8", "[128]"), ("INT8", "[-128]"), ("INT8", "[1.0]"), ("INT8", "[1.5]"), ("INT8", "[true]"), ("UINT8", "[-1]"),
    ("UINT8", "[256]"), ("INT64", "[9223372036854775807]"), ("INT64", "[9223372036854775808]"), ("INT64", "[1e2]"),
    ("UINT64", "[18446744073709551615]"), ("UINT64", "[18446744073709551616]"), ("BOOL", "[1]"), ("BOOL", "[false]"),
    ("BYTES", '["a]b"]'), ("BYTES", "[1]"),
]  # fmt: skip
FIRST = {"BOOL": "[true]", "BYTES": '["a"]'}


@pytest.mark.parametrize(("datatype", "data"), UNUSUAL)
def test_repeated_request_is_answered_as_the_first_of_its_kind(server: Server, datatype: str, data: str) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        # An id makes what stands around the numbers new each time.
        alone = ask(client, datatype, make_body(datatype, data, before=f'"id":"{data.encode().hex()}",'))
        for _ in range(2):
            assert ask(client, datatype, make_body(datatype, FIRST.get(datatype, "[7]")))[0] == 200
        assert ask(client, datatype, make_body(datatype, data)) == alone


def test_what_stands_around_the_numbers_counts(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for _ in range(2):
            assert ask(client, "FP32", make_body("FP32", "[7]", shape="[1,1]"))[0] == 200
        assert ask(client, "FP32", make_body("FP64", "[7]"))[0] == 400
        assert ask(client, "FP32", make_body("FP32", "[7]", shape="[2,1]"))[0] == 400
        assert ask(client, "FP32", make_body("FP32", "[7]") + b"x")[0] == 400
        wanted = make_body("FP32", "[7]", after=',"outputs":[{"name":"nothing"}]')
        assert ask(client, "FP32", wanted)[0] == 400
        # The tensor's data is the last one of its name, as it is for the whole decoder.
        twice = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[%d],"data":[2]}]}'
        for number in (5, 6, 7):
            status, found = ask(client, "FP32", twice % number)
            assert status == 200 and found["outputs"][0]["data"] == [2.0]


# %d stands where the cache looks for the numbers of an input whose own are [2].
FOREIGN = {
    "of an unknown key": b'{"data":[%d],"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data" :[2]}]}',
    "written twice": b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[%d],"data" :[2]}]}',
    "before an escaped key": b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[%d],"d\\u0061ta":[2]}]}',
    "of a key that ends so": b'{"x\\"data":[%d],"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data" :[2]}]}',
    "of an unknown object": b'{"meta":{"data":[%d]},"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data" :[2]}]}',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_numbers_of_another_key_are_never_an_input(server: Server, body: bytes) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for number in (9, 9, 8, 7):
            status, found = ask(client, "FP32", body % number)
            assert status == 200 and found["outputs"][0]["data"] == [2.0]


def test_many_kinds_of_requests_are_each_answered_with_their_own_numbers(server: Server) -> None:
    random = np.random.default_rng(0)
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for turn in range(3):
            for kind in range(300):
                values = random.standard_normal(1 + kind % 7).astype(np.float32)
                body = make_body("FP32", json.dumps(values.tolist()), shape=f"[{len(values)},1]", before=f'"note{kind}":{turn},')
                status, found = ask(client, "FP32", body)
                assert status == 200
                np.testing.assert_array_equal(np.array(found["outputs"][0]["data"], np.float32), values)
