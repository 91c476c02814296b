from __future__ import annotations

import asyncio
import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest

from argosy.client import AsyncClient, Client, Prediction
from argosy.client.wire import accept, decode_answer
from argosy.errors import (
    ArgosyError,
    AuthError,
    ConflictError,
    DeadlineError,
    FaultError,
    InputError,
    NotAllowedError,
    NotFoundError,
    OverloadedError,
    PoisonError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from argosy.importers.python import publish_python
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from tests.home import Home, make_scale_model, row

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])

TYPES = Signature(
    (
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("number", "INT32", (-1,)),
        TensorSpec("flag", "BOOL", (-1,)),
        TensorSpec("half", "FP16", (-1,)),
    ),
    (TensorSpec("text", "BYTES", (-1,)), TensorSpec("number", "INT32", (-1,)), TensorSpec("half", "FP16", (-1,))),
)
TYPES_BODY = (
    "text = np.array([t[::-1] for t in inputs['text']], dtype=object)\n"
    "return {'text': text, 'number': inputs['number'] * 2, 'half': inputs['half']}"
)
SLOW_BODY = "time.sleep(0.6)\nreturn {'y': x}"


METADATA = b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "outputs": []}'


def answer_with(**output: object) -> bytes:
    return json.dumps({"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], **output}]}).encode()


@contextmanager
def serve_answers(metadata: bytes, answer: bytes) -> Iterator[tuple[str, list[str]]]:
    """Answer whatever is asked with these bodies; gives the URL, and the paths that were asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _send(self, body: bytes) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._send(metadata)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{fake.server_port}", paths
        finally:
            fake.shutdown()
            thread.join()


def ask(kind: str, url: str, method: str, *args: Any, client_timeout_s: float = 30.0, **more: Any) -> Any:
    """Call a method of a new client, waiting for it if it is asynchronous."""
    if kind == "sync":
        with Client(url, timeout_s=client_timeout_s) as client:
            return getattr(client, method)(*args, **more)

    async def run() -> Any:
        async with AsyncClient(url, timeout_s=client_timeout_s) as client:
            return await getattr(client, method)(*args, **more)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("client"))
    home.publish_scale("scale", 2.0)
    # Its body needs `inputs`, not `x`: any tensor named so would do.
    home.publish_code(TYPES_BODY, "types", signature=Signature((*TYPES.inputs, TensorSpec("x", "FP32", (-1,))), TYPES.outputs))
    home.publish_code(SLOW_BODY, "slow")
    return home


@pytest.fixture(scope="module")
def server(filled: Home) -> Iterator[Server]:
    with filled.serve("scale", max_body_bytes=1 << 20) as server:
        server.deploy("types", allow_code=True)
        server.deploy("slow", allow_code=True)
        yield server


def free_url() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


# predictions


@KINDS
@pytest.mark.parametrize(
    "inputs",
    [
        {"x": row(3.0, 2)},
        row(3.0, 2),
        row(3.0, 2).tolist(),
        {"x": row(3.0, 2).astype(np.float64)},
        np.asfortranarray(row(3.0, 2)),
    ],
    ids=["dict", "array", "list", "float64", "fortran"],
)
def test_predict_answers_as_onnxruntime_does(kind: str, inputs: Any, server: Server, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(str(make_scale_model(tmp_path / "scale.onnx", 2.0)))
    (expected,) = session.run(None, {"x": row(3.0, 2)})
    prediction = ask(kind, server.url, "predict", "scale", inputs)
    assert isinstance(prediction, Prediction)
    assert list(prediction) == ["y"] and len(prediction) == 1
    np.testing.assert_array_equal(prediction["y"], expected)
    assert prediction["y"].dtype == np.float32 and prediction["y"].flags.writeable
    assert (prediction.model, prediction.version, prediction.id) == ("scale", "1", "")


@KINDS
def test_predict_sends_id_version_and_wanted_outputs(kind: str, server: Server) -> None:
    inputs = {"text": [b"ab"], "number": [1], "flag": [True], "half": [0.5], "x": [0.0]}
    prediction = ask(kind, server.url, "predict", "types", inputs, version=1, outputs=["number"], request_id="r-1")
    assert dict(prediction) == {"number": np.array([2], np.int32)}
    assert prediction.id == "r-1"
    assert "number" in repr(prediction) and "r-1" in repr(prediction)


@KINDS
def test_bytes_tensors_are_object_arrays_of_bytes(kind: str, server: Server) -> None:
    texts = [b"\xff\x00", "grün".encode(), b"", b"tail\x00"]
    inputs = {"text": np.array(texts, object), "number": [1] * 4, "flag": [True] * 4, "half": [0.5] * 4, "x": [0.0] * 4}
    prediction = ask(kind, server.url, "predict", "types", inputs)
    assert prediction["text"].dtype == object
    assert prediction["text"].tolist() == [text[::-1] for text in texts]


def test_text_is_sent_as_bytes(server: Server) -> None:
    inputs = {"text": ["grün", "tail\0"], "number": [1, 2], "flag": [True, False], "half": [0.5, 1], "x": [0, 1]}
    with server.client() as client:
        assert client.predict("types", inputs)["text"].tolist() == ["grün".encode()[::-1], b"\0liat"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", np.array([7], np.int64)),
        ("number", np.array([7], np.uint8)),
        ("number", np.array([7], ">i4")),
        ("number", np.array([True])),
        ("half", np.array([0.25], np.float64)),
        ("half", np.array([2048])),
        ("half", np.array([np.inf])),
        ("x", np.array([1 << 24])),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else value,
)
def test_predict_casts_what_keeps_its_value(name: str, value: np.ndarray, server: Server) -> None:
    inputs = {"text": [b"a"], "number": [1], "flag": [True], "half": [0.5], "x": [0.0], name: value}
    with server.client() as client:
        answer = client.predict("types", inputs)
    if name in answer:
        factor = 2 if name == "number" else 1
        assert float(answer[name][0]) == float(value[0]) * factor


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("number", [1.0], "datatype_mismatch"),
        ("number", [1 << 31], "bad_value"),
        ("number", np.array([1 << 63], np.uint64), "bad_value"),
        ("number", ["1"], "datatype_mismatch"),
        ("flag", [1], "datatype_mismatch"),
        ("half", [1e6], "bad_value"),
        ("half", [2049], "bad_value"),
        ("half", [1j], "datatype_mismatch"),
        ("x", [(1 << 24) + 1], "bad_value"),
        ("text", [1], "needs_text"),
        ("text", [{"age": 3}], "needs_text"),
        ("text", {"age": 3}, "needs_text"),
        ("text", np.array([None], object), "needs_text"),
        ("number", [[1], [1, 2]], "bad_value"),
    ],
)
def test_predict_refuses_what_would_change_before_it_is_sent(name: str, value: Any, key: str, server: Server) -> None:
    inputs = {"text": [b"a"], "number": [1], "flag": [True], "half": [0.5], "x": [0.0], name: value}
    with server.client() as client, pytest.raises(InputError, match=f"{name!r}") as caught:
        client.predict("types", inputs)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("model", "inputs", "key", "text"),
    [
        ("types", [1.0], "needs_names", "flag, half, number, text, x"),
        ("scale", {"z": row(1.0)}, "unknown_input", "it has: x"),
        ("scale", {}, "missing_input", "got: none"),
    ],
    ids=["one array for many", "unknown", "missing"],
)
def test_predict_checks_the_names_of_inputs(model: str, inputs: Any, key: str, text: str, server: Server) -> None:
    with server.client() as client, pytest.raises(InputError, match=text) as caught:
        client.predict(model, inputs)
    assert caught.value.key == key


def test_predict_refuses_a_deadline_that_no_server_takes(server: Server) -> None:
    with server.client() as client, pytest.raises(InputError, match="timeout_s"):
        client.predict("scale", row(1.0), timeout_s=0.0)


def test_predict_refuses_a_priority_that_no_server_takes(server: Server) -> None:
    with server.client() as client, pytest.raises(InputError, match="priority"):
        client.predict("scale", row(1.0), priority=-1)


def test_metadata_is_asked_for_once() -> None:
    with serve_answers(METADATA, answer_with(data=[1])) as (url, paths), Client(url) as client:
        for value in (1.0, 2.0):
            client.predict("m", {"x": [value]})
    assert paths == ["/v2/models/m", "/v2/models/m/infer", "/v2/models/m/infer"]


@KINDS
def test_metadata_names_inputs_and_outputs(kind: str, server: Server) -> None:
    metadata = ask(kind, server.url, "metadata", "scale", 1)
    assert (metadata.name, metadata.versions, metadata.platform) == ("scale", ("1",), "onnxruntime_onnx")
    assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert metadata.outputs == (TensorSpec("y", "FP32", (-1, 4)),)


def test_predict_follows_a_rollout_that_changes_the_inputs(filled: Home, server: Server) -> None:
    source = filled.files / "changing.py"
    for name in ("a", "b"):
        source.write_text(
            "class Model:\n    def load(self, folder):\n        pass\n\n"
            f"    def infer(self, inputs):\n        return {{'y': inputs[{name!r}]}}\n"
        )
        signature = Signature((TensorSpec(name, "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
        publish_python(filled.store, source, "changing", signature=signature)
    server.deploy("changing@1", allow_code=True)
    with server.client() as client:
        assert client.predict("changing", {"a": [1.0]})["y"].tolist() == [1.0]
        server.deploy("changing@2", allow_signature_change=True)
        assert client.predict("changing", {"b": [2.0]})["y"].tolist() == [2.0]
        with pytest.raises(InputError, match="no input 'a'"):
            client.predict("changing", {"a": [1.0]})


# health


@KINDS
def test_health_says_what_is_true(kind: str, server: Server) -> None:
    assert ask(kind, server.url, "is_live") is True
    assert ask(kind, server.url, "is_ready") is True
    assert ask(kind, server.url, "is_ready", "scale") is True
    assert ask(kind, server.url, "is_ready", "nothing") is False
    assert ask(kind, free_url(), "is_live") is False
    assert ask(kind, free_url(), "is_ready") is False


# failures


@KINDS
def test_no_connection_names_the_url_and_the_remedy(kind: str) -> None:
    url = free_url()
    with pytest.raises(UnavailableError, match=url) as caught:
        ask(kind, url, "predict", "scale", row(1.0))
    assert caught.value.key == "no_connection"
    assert "argosy serve" in caught.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_client_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError, match="http://HOST:PORT"):
        Client(url)


@KINDS
def test_unknown_model_is_not_found(kind: str, server: Server) -> None:
    with pytest.raises(NotFoundError, match=r"Unknown model 'nothing'; deployed: .*scale") as caught:
        ask(kind, server.url, "predict", "nothing", row(1.0))
    assert caught.value.hint == "argosy deploy NAME@VERSION makes one"
    with pytest.raises(NotFoundError, match="Version 9"):
        ask(kind, server.url, "predict", "scale", row(1.0), version=9)
    with pytest.raises(NotFoundError):
        ask(kind, server.url, "metadata", "a/b?c")


def test_server_refusal_keeps_its_text(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(InputError, match=r"has shape \(1, 3\), expected \(-1, 4\)"):
            client.predict("scale", np.zeros((1, 3), np.float32))
        with pytest.raises(TooLargeError, match="more than 1048576 bytes"):
            client.predict("scale", np.zeros((100_000, 4), np.float32))


@KINDS
def test_deadline_of_a_request_ends_it(kind: str, server: Server) -> None:
    with pytest.raises(DeadlineError, match=r"0\.100 s"):
        ask(kind, server.url, "predict", "slow", row(1.0), timeout_s=0.1)


@KINDS
def test_clients_own_timeout_is_a_deadline_error(kind: str, server: Server) -> None:
    with pytest.raises(DeadlineError, match=r"0\.200 s") as caught:
        ask(kind, server.url, "predict", "slow", row(1.0), client_timeout_s=0.2)
    assert caught.value.key == "deadline_passed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError),
        (401, AuthError),
        (403, NotAllowedError),
        (404, NotFoundError),
        (405, RequestError),
        (409, ConflictError),
        (413, TooLargeError),
        (422, PoisonError),
        (429, OverloadedError),
        (500, FaultError),
        (502, FaultError),
        (503, UnavailableError),
        (504, DeadlineError),
    ],
)
def test_every_status_is_an_error_of_its_own(status: int, kind: type[ArgosyError]) -> None:
    body = json.dumps({"error": "what {was} wrong\nhint: what to do"})
    with pytest.raises(kind) as caught:
        accept(httpx.Response(status, content=body, headers={"Retry-After": "3"}), "http://host", 1.0)
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.hint, error.retry_after_s, error.key) == ("what {was} wrong", "what to do", 3.0, "server_said")


def test_error_page_of_a_proxy_is_shown() -> None:
    with pytest.raises(FaultError, match="HTTP status 502: <h1>Bad Gateway"):
        accept(httpx.Response(502, content="<h1>Bad Gateway</h1>"), "http://host", 1.0)


def test_answer_without_binary_tensors_is_read() -> None:
    tensors = [
        {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [[1.5, 2.5], [3.5, 4.5]]},
        {"name": "b", "datatype": "BYTES", "shape": [2], "data": ["x", "grün"]},
        {"name": "c", "datatype": "INT64", "shape": [0], "data": []},
    ]
    prediction = decode_answer(httpx.Response(200, json={"model_name": "m", "outputs": tensors}))
    assert prediction["a"].tolist() == [[1.5, 2.5], [3.5, 4.5]] and prediction["a"].dtype == np.float32
    assert prediction["b"].tolist() == [b"x", "grün".encode()]
    assert prediction["c"].shape == (0,)
    assert prediction.version == ""


@pytest.mark.parametrize(
    ("metadata", "answer"),
    [
        (b"hello", b""),
        (METADATA.replace(b"FP32", b"FP12"), b""),
        (METADATA, b"{}"),
        (METADATA, answer_with(shape=[3], data=[1])),
        (METADATA, answer_with(datatype="?", data=[1])),
        (METADATA, answer_with(parameters={"binary_data_size": 4})),
        (METADATA, answer_with(parameters={"binary_data_size": "4"})),
    ],
    ids=["no JSON", "unknown datatype", "no outputs", "wrong size", "unknown output type", "bytes missing", "size as text"],
)
def test_what_is_no_v2_answer_is_a_fault_that_names_the_url(metadata: bytes, answer: bytes) -> None:
    with serve_answers(metadata, answer) as (url, _), Client(url) as client, pytest.raises(FaultError, match=url) as caught:
        client.predict("m", {"x": [1.0]})
    assert caught.value.key == "bad_answer"


def test_importing_the_client_imports_neither_httpx_nor_grpc() -> None:
    program = "import sys, argosy.client; print(sorted({'httpx', 'grpc', 'onnx', 'sqlite3', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
