"""Unmodified public clients against one server: tritonclient (HTTP, gRPC, and asyncio of both), curl, and our own."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import inspect
import json
import queue
import subprocess
from collections.abc import Iterator
from importlib.metadata import version as find_version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import argosy
from argosy.server import Server
from tests.home import row
from tests.serve.v2.models import TYPES, serve_models

KINDS = ("http", "http.aio", "grpc", "grpc.aio")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_models(tmp_path_factory.mktemp("clients"), "scale", "pair", "types", "same-BYTES") as running:
        yield running


class Triton:
    """One of tritonclient's four clients, called as if it were not asynchronous."""

    def __init__(self, kind: str, server: Server) -> None:
        self.kind = kind
        self.is_http = kind.startswith("http")
        self.module = importlib.import_module(f"tritonclient.{kind}")
        self._runner = asyncio.Runner()
        url = server.url.removeprefix("http://") if self.is_http else server.grpc_address
        self._client = self._run(self._make, url)

    async def _make(self, url: str) -> Any:
        return self.module.InferenceServerClient(url)

    def _run(self, function: Any, *args: Any, **more: Any) -> Any:
        found = function(*args, **more)
        return self._runner.run(found) if inspect.isawaitable(found) else found

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        return lambda *args, **more: self._run(function, *args, **more)

    def close(self) -> None:
        self._run(self._client.close)
        self._runner.close()

    def make_input(self, name: str, array: np.ndarray, *, is_binary: bool = True, datatype: str = "") -> Any:
        from tritonclient.utils import np_to_triton_dtype

        tensor = self.module.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **({"binary_data": is_binary} if self.is_http else {}))
        return tensor

    def make_output(self, name: str, *, is_binary: bool = True) -> Any:
        return self.module.InferRequestedOutput(name, **({"binary_data": is_binary} if self.is_http else {}))

    def read_metadata(self, model: str, version: str = "") -> dict[str, Any]:
        if self.is_http:
            return self.get_model_metadata(model, version)
        found = self.get_model_metadata(model, version, as_json=True)
        for tensor in found["inputs"] + found["outputs"]:
            tensor["shape"] = [int(dim) for dim in tensor["shape"]]  # JSON of protobuf writes int64 as text
        return found

    def read_response(self, result: Any) -> dict[str, str]:
        response = result.get_response()
        fields = ("model_name", "model_version", "id")
        return {field: response.get(field, "") if self.is_http else getattr(response, field) for field in fields}


@pytest.fixture(scope="module", params=KINDS)
def triton(request: pytest.FixtureRequest, server: Server) -> Iterator[Triton]:
    made = Triton(request.param, server)
    yield made
    made.close()


# tritonclient


def test_triton_sees_health(triton: Triton) -> None:
    assert triton.is_server_live() is True
    assert triton.is_server_ready() is True
    assert triton.is_model_ready("scale") is True
    assert triton.is_model_ready("scale", "1") is True
    assert triton.is_model_ready("scale", "7") is False
    assert triton.is_model_ready("nothing") is False


def test_triton_reads_metadata(triton: Triton) -> None:
    found = triton.get_server_metadata() if triton.is_http else triton.get_server_metadata(as_json=True)
    assert (found["name"], found["version"]) == ("argosy", find_version("argosy"))
    assert {"binary_tensor_data", "model_configuration", "model_repository", "statistics"} <= set(found["extensions"])
    for version in ("", "1"):
        assert triton.read_metadata("pair", version) == {
            "name": "pair",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
                {"name": "b", "datatype": "INT64", "shape": [-1, 3]},
            ],
            "outputs": [
                {"name": "joined", "datatype": "FP64", "shape": [-1, 5]},
                {"name": "total", "datatype": "INT64", "shape": [-1]},
                {"name": "positive", "datatype": "BOOL", "shape": [-1, 2]},
            ],
        }


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("version", ["", "1"], ids=["default", "version"])
def test_triton_infers(triton: Triton, is_binary: bool, version: str) -> None:
    inputs = [triton.make_input("x", row(3, rows=2), is_binary=is_binary)]
    result = triton.infer("scale", inputs, model_version=version, request_id="r-7")
    np.testing.assert_array_equal(result.as_numpy("y"), row(6, rows=2))
    assert triton.read_response(result) == {"model_name": "scale", "model_version": "1", "id": "r-7"}


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_triton_takes_the_outputs_it_asked_for(triton: Triton, is_binary: bool) -> None:
    a, b = np.array([[1, -2]], np.float32), np.array([[1, 2, 3]], np.int64)
    inputs = [triton.make_input("b", b, is_binary=is_binary), triton.make_input("a", a)]
    outputs = [triton.make_output("positive", is_binary=is_binary), triton.make_output("joined", is_binary=not is_binary)]
    result = triton.infer("pair", inputs, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("joined"), [[1.0, -2.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(result.as_numpy("positive"), [[True, False]])
    assert result.as_numpy("joined").dtype == np.float64
    assert result.as_numpy("total") is None


def test_triton_sends_every_datatype(triton: Triton) -> None:
    arrays = {
        name: np.array([[b"a\0b", b""]], object) if name == "BYTES" else np.array([[1, 0]], dtype)
        for name, dtype in TYPES.items()
    }
    inputs = [triton.make_input(f"in-{name}", array, datatype=name) for name, array in arrays.items()]
    result = triton.infer("types", inputs)
    for name, array in arrays.items():
        got = result.as_numpy(f"out-{name}")
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_triton_sends_text_as_json(triton: Triton) -> None:
    words = np.array([["w\u00f6rter", "\U0001f6a2"]], object)
    result = triton.infer("same-BYTES", [triton.make_input("x", words, is_binary=False, datatype="BYTES")])
    assert [item.decode() for item in result.as_numpy("y").ravel()] == ["w\u00f6rter", "\U0001f6a2"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_packs_its_requests(triton: Triton, algorithm: str) -> None:
    option = "request_compression_algorithm" if triton.is_http else "compression_algorithm"
    result = triton.infer("scale", [triton.make_input("x", row(1, rows=100))], **{option: algorithm})
    np.testing.assert_array_equal(result.as_numpy("y"), row(2, rows=100))


@pytest.mark.parametrize(
    ("model", "name", "array", "more", "statuses", "text"),
    [
        ("nothing", "x", row(1), {}, ("404", "StatusCode.NOT_FOUND"), "Unknown model 'nothing'; deployed: pair, "),
        (
            "scale",
            "x",
            row(1),
            {"model_version": "7"},
            ("404", "StatusCode.NOT_FOUND"),
            "Version 7 of model 'scale' is not served",
        ),
        ("scale", "z", row(1), {}, ("400", "StatusCode.INVALID_ARGUMENT"), "Model 'scale' version 1 has no input 'z'; it has: x"),
        ("scale", "x", np.zeros((1, 5), "f4"), {}, ("400", "StatusCode.INVALID_ARGUMENT"), "has shape (1, 5), expected (-1, 4)"),
        ("scale", "x", np.zeros((1, 4), "f8"), {}, ("400", "StatusCode.INVALID_ARGUMENT"), "has datatype FP64, expected FP32"),
        ("scale", "x", np.zeros((0, 4), "f4"), {}, ("400", "StatusCode.INVALID_ARGUMENT"), "The request has no rows"),
        ("scale", "x", row(1), {"timeout": 1}, ("504", "StatusCode.DEADLINE_EXCEEDED"), "The deadline of 0.000 s passed"),
    ],
    ids=["model", "version", "input", "shape", "datatype", "rows", "timeout"],
)
def test_triton_raises_what_the_server_says(
    triton: Triton, model: str, name: str, array: np.ndarray, more: dict[str, Any], statuses: tuple[str, str], text: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(model, [triton.make_input(name, array)], **more)
    assert text in caught.value.message()
    assert caught.value.status() == statuses[0 if triton.is_http else 1]
    # The connection is as good as before.
    np.testing.assert_array_equal(triton.infer("scale", [triton.make_input("x", row(1))]).as_numpy("y"), row(2))


def test_triton_raises_for_an_output_that_is_not_there(triton: Triton) -> None:
    with pytest.raises(InferenceServerException, match="Model 'scale' version 1 has no output 'z'; it has: y"):
        triton.infer("scale", [triton.make_input("x", row(1))], outputs=[triton.make_output("z")])


def test_triton_raises_for_metadata_of_an_unknown_model(triton: Triton) -> None:
    with pytest.raises(InferenceServerException, match="Unknown model 'nothing'"):
        triton.get_model_metadata("nothing")


def test_triton_http_asks_ahead(server: Server) -> None:
    triton = Triton("http", server)
    asked = [triton.async_infer("scale", [triton.make_input("x", row(value))]) for value in range(20)]
    for value, each in enumerate(asked):
        np.testing.assert_array_equal(each.get_result().as_numpy("y"), row(2 * value))
    triton.close()


def test_triton_grpc_asks_ahead(server: Server) -> None:
    triton = Triton("grpc", server)
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for value in range(20):
        inputs = [triton.make_input("x", row(value))]
        triton.async_infer("scale", inputs, callback=lambda result, error, value=value: answers.put((value, result, error)))
    for value, result, error in sorted((answers.get(timeout=20) for _ in range(20)), key=lambda answer: answer[0]):
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), row(2 * value))
    triton.close()


@pytest.mark.parametrize("kind", ["http.aio", "grpc.aio"])
def test_triton_gathers(kind: str, server: Server) -> None:
    triton = Triton(kind, server)

    async def run() -> list[Any]:
        asks = [triton._client.infer("scale", [triton.make_input("x", row(value))]) for value in range(50)]
        return await asyncio.gather(*asks)

    results = triton._runner.run(run())
    triton.close()
    for value, result in enumerate(results):
        np.testing.assert_array_equal(result.as_numpy("y"), row(2 * value))


# curl

BODY = {"id": "c", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
ANSWER = {
    "model_name": "scale",
    "model_version": "1",
    "id": "c",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 4.0, 6.0, 8.0]}],
}


def curl(*options: str, data: bytes = b"") -> tuple[int, bytes]:
    """Run curl; the status of the answer and its body."""
    command = ["curl", "-sS", "--max-time", "20", "-w", "%{stderr}%{http_code}", *options]
    done = subprocess.run(command, input=data, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return int(done.stderr), done.stdout


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/scale", "/v2/models/scale/ready"])
@pytest.mark.parametrize("option", ["--http1.1", "--http1.0", "--http2"])
def test_curl_gets(server: Server, path: str, option: str) -> None:
    expected = httpx.get(server.url + path)
    assert expected.status_code == 200
    assert curl(option, server.url + path) == (200, expected.content)
    # Two of them one after the other, on one connection where that stays open: each gets one answer.
    assert curl(option, server.url + path, server.url + path) == (200200, expected.content * 2)


@pytest.mark.parametrize(("path", "status"), [("/v2", 200), ("/v2/models/scale", 200), ("/nothing", 404), ("/v2/models/no", 404)])
def test_curl_asks_for_heads_alone(server: Server, path: str, status: int) -> None:
    found, text = curl("-I", server.url + path, server.url + path)
    assert found == status * 1001
    heads = text.split(b"\r\n\r\n")
    assert [head[:12] for head in heads] == [b"HTTP/1.1 %d" % status] * 2 + [b""]


@pytest.mark.parametrize(
    "options",
    [
        ("-d", json.dumps(BODY)),
        ("--json", json.dumps(BODY)),
        ("--http1.0", "-d", json.dumps(BODY)),
        ("--http2", "-d", json.dumps(BODY)),
        ("-H", "Connection: close", "-d", json.dumps(BODY)),
        ("-H", "Expect: 100-continue", "-d", json.dumps(BODY)),
        ("-H", "Transfer-Encoding: chunked", "-d", json.dumps(BODY)),
        ("--compressed", "-d", json.dumps(BODY)),
    ],
    ids=["form", "json", "http1.0", "offers-http2", "close", "expect", "chunked", "compressed"],
)
def test_curl_infers(server: Server, options: tuple[str, ...]) -> None:
    status, text = curl(*options, f"{server.url}/v2/models/scale/infer")
    assert (status, json.loads(text)) == (200, ANSWER)


def test_curl_sends_a_packed_body_from_a_pipe(server: Server) -> None:
    url = f"{server.url}/v2/models/scale/infer"
    data = gzip.compress(json.dumps(BODY).encode())
    status, text = curl("-H", "Content-Encoding: gzip", "--data-binary", "@-", url, data=data)
    assert (status, json.loads(text)) == (200, ANSWER)


def test_curl_uploads_what_is_larger_than_a_socket_buffer(server: Server, tmp_path: Path) -> None:
    # From a megabyte on curl waits to be told to go on.
    x = np.arange(1_000_000, dtype=np.float32).reshape(-1, 4)[:4000]
    text = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.tolist()}]})
    (tmp_path / "body").write_text(text + " " * (3 << 20))
    status, answer = curl("--data-binary", f"@{tmp_path}/body", f"{server.url}/v2/models/scale/infer")
    assert status == 200
    np.testing.assert_array_equal(json.loads(answer)["outputs"][0]["data"], (2 * x).ravel())


def test_curl_is_told_what_was_wrong(server: Server) -> None:
    status, text = curl("-d", "{}", f"{server.url}/v2/models/scale/infer")
    assert status == 400
    assert json.loads(text)["error"].startswith("The body is not valid: Object missing required field `inputs`")
    status, text = curl("-X", "DELETE", f"{server.url}/v2/models/scale")
    assert status == 405
    assert json.loads(text)["error"].startswith("Method DELETE is not allowed for /v2/models/scale")


# ours


def test_client_and_async_client_answer_the_same(server: Server) -> None:
    with server.client() as client:
        assert client.is_live()
        assert client.is_ready("scale")
        one = [client.predict("scale", {"x": row(value)}, request_id=str(value)) for value in range(20)]

    async def run() -> list[argosy.Prediction]:
        async with server.async_client() as other:
            assert await other.is_ready()
            asks = [other.predict("scale", {"x": row(value)}, request_id=str(value)) for value in range(20)]
            return await asyncio.gather(*asks)

    for value, (mine, theirs) in enumerate(zip(one, asyncio.run(run()), strict=True)):
        np.testing.assert_array_equal(mine["y"], row(2 * value))
        np.testing.assert_array_equal(theirs["y"], row(2 * value))
        assert mine.id == theirs.id == str(value)


def test_clients_of_both_protocols_get_the_same_bits(server: Server) -> None:
    x = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    answers: list[np.ndarray] = []
    for kind in KINDS:
        triton = Triton(kind, server)
        answers.append(triton.infer("scale", [triton.make_input("x", x)]).as_numpy("y"))
        triton.close()
    with server.client() as client:
        answers.append(client.predict("scale", {"x": x})["y"])
    assert {answer.tobytes() for answer in answers} == {(2 * x).tobytes()}
