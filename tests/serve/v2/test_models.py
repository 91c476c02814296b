"""A server describes each model as it was built."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from argosy.server import Server
from tests.serve.v2.models import TYPES, serve_models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = ("types", "pair", "turn", "scalar", "same-BYTES")
    with serve_models(tmp_path_factory.mktemp("models"), *names) as running:
        yield running


EXPECTED = {
    "pair": (
        [("a", "FP32", [-1, 2]), ("b", "INT64", [-1, 3])],
        [("joined", "FP64", [-1, 5]), ("total", "INT64", [-1]), ("positive", "BOOL", [-1, 2])],
    ),
    "turn": ([("x", "FP32", [2, 3])], [("y", "FP32", [3, 2])]),
    "scalar": ([("x", "FP32", [])], [("y", "FP32", [])]),
    "same-BYTES": ([("x", "BYTES", [-1, -1])], [("y", "BYTES", [-1, -1])]),
    "types": (
        [(f"in-{datatype}", datatype, [-1, -1]) for datatype in TYPES],
        [(f"out-{datatype}", datatype, [-1, -1]) for datatype in TYPES],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("suffix", ["", "/versions/1"], ids=["without-version", "with-version"])
def test_metadata_is_the_graphs(server: Server, name: str, suffix: str) -> None:
    inputs, outputs = EXPECTED[name]
    answer = httpx.get(f"{server.url}/v2/models/{name}{suffix}")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": each, "datatype": datatype, "shape": shape} for each, datatype, shape in inputs],
        "outputs": [{"name": each, "datatype": datatype, "shape": shape} for each, datatype, shape in outputs],
    }


def test_rows_are_joined_only_where_there_is_an_axis_of_rows(server: Server) -> None:
    with server.admin() as admin:
        refusals = {
            deployment["spec"]["name"]: lane["join_refusal"]
            for deployment in admin.status()["deployments"]
            for lane in deployment["lanes"]
        }
    assert refusals["turn"] == refusals["scalar"] == "the signature has no axis of rows"
    assert refusals["types"] == refusals["pair"] == refusals["same-BYTES"] == ""
