"""What a request holds and a graph cannot compute with is its client's fault: 400, for it alone, and nothing counts as failed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper

from argosy.runtimes.base import BadInput, blame_input
from argosy.server import Server
from tests.home import Home
from tests.serve.v2.models import publish_graph

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
NEEDS_OPENVINO = pytest.mark.skipif(not HAS_OPENVINO, reason="the extra `openvino` is not installed")
EXAMPLE = {"x": np.array([[1, 2]])}


def publish_models(home: Home) -> None:
    """Models of which each takes what the signature allows, but for some values or lengths."""
    table = {"table": np.eye(4, dtype=np.float32)}
    publish_graph(
        home, "lookup", [helper.make_node("Gather", ["table", "x"], ["y"])], [("x", "INT64", ("N", 2))],
        [("y", "FP32", ("N", 2, 4))], weights=table, golden_inputs=EXAMPLE,
    )  # fmt: skip
    publish_graph(
        home, "divide", [helper.make_node("Div", ["x", "x"], ["y"])], [("x", "INT64", ("N", 2))], [("y", "INT64", ("N", 2))],
        golden_inputs=EXAMPLE,
    )  # fmt: skip
    publish_graph(
        home, "product", [helper.make_node("MatMul", ["x", "table"], ["y"])], [("x", "FP32", ("N", "K"))],
        [("y", "FP32", ("N", 4))], weights=table, golden_inputs={"x": np.ones((2, 4), np.float32)},
    )  # fmt: skip
    publish_graph(
        home, "number", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], [("x", "BYTES", ("N", 1))],
        [("y", "FP32", ("N", 1))], golden_inputs={"x": np.array([["1.5"]])},
    )  # fmt: skip
    publish_graph(
        home, "real", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], [("x", "INT64", ("N", 2))],
        [("y", "FP32", ("N", 2))], golden_inputs=EXAMPLE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("faults"))
    publish_models(home)
    with home.serve() as running:
        for name in ("lookup", "divide", "product", "number"):
            running.deploy(name)
        if HAS_OPENVINO:
            running.deploy("real", runtime="openvino")
        yield running


CASES: list[Any] = [
    pytest.param("lookup", "INT64", [1, 2], [3, 3], [0, 4], "idx=4", id="index"),
    pytest.param("divide", "INT64", [1, 2], [3, 3], [0, 4], "division by zero", id="zero"),
    pytest.param("product", "FP32", [1, 4], [1.0] * 4, [1.0] * 4, "", id="length"),
    pytest.param("number", "BYTES", [1, 1], ["2.5"], ["abc"], "", id="text"),
    pytest.param("real", "INT64", [1, 2], [3, 3], [1, 2**31], "beyond -2147483648", id="openvino", marks=NEEDS_OPENVINO),
]


def ask(server: Server, model: str, datatype: str, shape: list[int], data: list[Any]) -> httpx.Response:
    body = {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]}
    return httpx.post(f"{server.url}/v2/models/{model}/infer", json=body, timeout=20)


def count_failures(server: Server, model: str) -> float:
    """Requests whose failure is the server's or the version's."""
    lines = httpx.get(server.metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'model="{model}"' in line and 'status="5' in line)


@pytest.mark.parametrize(("model", "datatype", "shape", "good", "bad", "text"), CASES)
def test_value_that_cannot_be_computed_with_is_a_400(
    server: Server, model: str, datatype: str, shape: list[int], good: list[Any], bad: list[Any], text: str
) -> None:
    wrong = [1, 3] if model == "product" else shape
    reply = ask(server, model, datatype, wrong, bad[: wrong[1]])
    assert reply.status_code == 400
    assert "cannot take this request" in reply.json()["error"] and text in reply.json()["error"]
    assert ask(server, model, datatype, shape, good).status_code == 200
    assert count_failures(server, model) == 0


def test_it_is_an_invalid_argument_over_grpc(server: Server) -> None:
    client: Any = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    given: Any = tritonclient.grpc.InferInput("x", [1, 2], "INT64")
    given.set_data_from_numpy(np.array([[0, 9]]))
    with pytest.raises(Exception, match="idx=9") as caught:
        client.infer("lookup", [given])
    assert grpc.StatusCode.INVALID_ARGUMENT.name in str(caught.value)
    client.close()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=str,
)
def test_memory_that_is_missing_is_no_fault_of_a_client(error: Exception) -> None:
    assert blame_input(error) is error


def test_what_a_runtime_has_said_already_is_not_said_again() -> None:
    error = BadInput("beyond")
    assert blame_input(error) is error
    assert isinstance(blame_input(IndexError("index out of range")), BadInput)
