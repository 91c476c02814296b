"""Every datatype, bfloat16 among them, over JSON, binary HTTP, gRPC and a gRPC stream at once: each client gets its own rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import grpc
import httpx
import ml_dtypes
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

import argosy
from argosy.datatypes import DATATYPES
from argosy.errors import InputError
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.server import Server
from argosy.signature import Signature, TensorSpec, pack_bytes
from argosy.store.golden import Golden
from tests.home import Home
from tests.serve.grpc.requests import NEEDS_BFLOAT16
from tests.serve.v2.models import publish_graph, publish_same

BF16 = np.dtype(ml_dtypes.bfloat16)
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
WAYS = ("json", "binary", "grpc", "stream")
MAX_ROWS, MAX_WIDTH, MAX_CLIENTS = 5, 3, 12
SPECS = [TensorSpec(f"in-{name}", name, (-1, -1)) for name in DATATYPES]
SIGNATURE = Signature(tuple(SPECS), tuple(TensorSpec(f"out-{name}", name, (-1, -1)) for name in DATATYPES))
COPY = """
class Model:
    def load(self, folder):
        pass

    def infer(self, inputs):
        return {"out-" + name[3:]: array for name, array in inputs.items()}
"""


def make_values(generator: np.random.Generator, name: str, shape: tuple[int, int], *, is_text: bool) -> np.ndarray:
    """Any values of a datatype; as JSON there are no floats but numbers, and BYTES are text."""
    dtype = DATATYPES[name]
    if name == "BYTES":
        # A lone byte above 127 is no text.
        pieces = [b"", b"a", "\u00e4".encode(), b"\0\n" if is_text else b"\xff\0"]
        array = np.empty(shape, object)
        array.ravel()[:] = [pieces[pick] * int(generator.integers(3)) for pick in generator.integers(4, size=array.size)]
        return array
    if name == "BOOL":
        return generator.integers(0, 2, shape).astype(bool)
    # Any bits: NaN with a payload, infinities, subnormal numbers.
    array = np.frombuffer(generator.bytes(shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
    if is_text and (dtype.kind == "f" or dtype == BF16):
        with np.errstate(invalid="ignore"):  # what bfloat16 says of a signalling NaN
            array = np.where(np.isfinite(array), array, np.zeros((), dtype))
    return array


class Question(NamedTuple):
    """One client's request."""

    way: str
    id: str
    arrays: dict[str, np.ndarray]


def make_question(way: str, number: int, seed: int, num_rows: int, width: int) -> Question:
    generator = np.random.default_rng(seed)
    arrays = {name: make_values(generator, name, (num_rows, width), is_text=way == "json") for name in DATATYPES}
    return Question(way, f"q{number}", arrays)


def to_raw(array: np.ndarray) -> bytes:
    return pack_bytes(array) if array.dtype.kind == "O" else array.tobytes()


def to_json(array: np.ndarray) -> Any:
    if array.dtype.kind == "O":
        return [item.decode() for item in array.ravel()]
    return (array.astype(np.float32) if array.dtype == BF16 else array).ravel().tolist()


async def ask_http(client: httpx.AsyncClient, question: Question) -> dict[str, bytes]:
    is_binary = question.way == "binary"
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name, array in question.arrays.items():
        item: dict[str, Any] = {"name": f"in-{name}", "datatype": name, "shape": array.shape}
        if is_binary:
            raw = to_raw(array)
            tail += raw
            inputs.append(item | {"parameters": {"binary_data_size": len(raw)}})
        else:
            inputs.append(item | {"data": to_json(array)})
    head = json.dumps({"id": question.id, "inputs": inputs, "parameters": {"binary_data_output": is_binary}}).encode()
    answer = await client.post(
        "/v2/models/copy/infer",
        content=head + tail,
        headers={"Inference-Header-Content-Length": str(len(head))} if is_binary else {},
    )
    assert answer.status_code == 200, answer.text
    pos = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    found = json.loads(answer.content[:pos])
    assert found["id"] == question.id
    outputs: dict[str, bytes] = {}
    for item in found["outputs"]:
        name = item["datatype"]
        assert (item["name"], item["shape"]) == (f"out-{name}", list(question.arrays[name].shape))
        if is_binary:
            size = item["parameters"]["binary_data_size"]
            outputs[name] = answer.content[pos : pos + size]
            pos += size
        else:
            values = [value.encode() for value in item["data"]] if name == "BYTES" else item["data"]
            outputs[name] = to_raw(np.array(values, DATATYPES[name]))
    assert pos == len(answer.content)
    return outputs


def make_message(question: Question) -> Any:
    request = service_pb2.ModelInferRequest(model_name="copy", id=question.id)
    for name, array in question.arrays.items():
        request.inputs.add(name=f"in-{name}", datatype=name, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    return request


def read_message(question: Question, reply: Any) -> dict[str, bytes]:
    assert reply.id == question.id
    outputs = {item.datatype: raw for item, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    for item in reply.outputs:
        assert tuple(item.shape) == question.arrays[item.datatype].shape
    return outputs


async def ask_stream(stub: Any, questions: list[Question]) -> list[dict[str, bytes]]:
    """Send all that go by stream on one, and sort the answers by their ids."""

    async def requests() -> AsyncIterator[Any]:
        for question in questions:
            yield make_message(question)

    answers: dict[str, Any] = {}
    async for response in stub.ModelStreamInfer(requests()):
        assert not response.error_message
        answers[response.infer_response.id] = response.infer_response
    return [read_message(question, answers[question.id]) for question in questions]


class Asker:
    """One connection of each protocol, in a loop of its own."""

    def __init__(self, server: Server) -> None:
        self.runner = asyncio.Runner()
        self.client = httpx.AsyncClient(base_url=server.url, timeout=30)
        self.channel = self.runner.run(self._open(server.grpc_address))
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def _open(self, address: str) -> Any:
        return grpc.aio.insecure_channel(address)

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.run(self.channel.close())
        self.runner.close()

    def ask(self, questions: list[Question]) -> None:
        """Ask everything at once, and hold each answer against what was sent, to the bit."""
        self.runner.run(self._ask(questions))

    async def _ask_one(self, question: Question) -> dict[str, bytes]:
        if question.way == "grpc":
            return read_message(question, await self.stub.ModelInfer(make_message(question)))
        return await ask_http(self.client, question)

    async def _ask(self, questions: list[Question]) -> None:
        streamed = [question for question in questions if question.way == "stream"]
        others = [question for question in questions if question.way != "stream"]
        from_stream, *answers = await asyncio.gather(ask_stream(self.stub, streamed), *map(self._ask_one, others))
        for question, outputs in zip([*streamed, *others], [*from_stream, *answers], strict=True):
            assert outputs == {name: to_raw(array) for name, array in question.arrays.items()}, question


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("datatypes"))
    path = home.files / "copy.py"
    path.write_text(COPY)
    arrays = make_question("json", 0, 7, 4, 2).arrays
    golden = Golden(
        {f"in-{name}": array for name, array in arrays.items()}, {f"out-{name}": array for name, array in arrays.items()}
    )
    publish_python(home.store, path, "copy", signature=SIGNATURE, golden=golden, repeatable=True)
    publish_same(home, "BF16")
    publish_half(home)
    with home.serve("same-BF16", "half") as running:
        running.deploy("copy", allow_code=True)
        yield running


@pytest.fixture(scope="module")
def asker(server: Server) -> Iterator[Asker]:
    made = Asker(server)
    yield made
    made.close()


def publish_half(home: Home) -> argosy.Version:
    """Publish y = x / 2 in bfloat16, with the sum of the rows as float32 beside it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "half"], ["halved"]),
        helper.make_node("Cast", ["halved"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("ReduceSum", ["halved", "axis"], ["total"], keepdims=0),
    ]
    weights = {"half": np.float32(0.5), "axis": np.array([1])}
    outputs = [("y", "BF16", ("N", 4)), ("total", "FP32", ("N",))]
    return publish_graph(home, "half", nodes, [("x", "BF16", ("N", 4))], outputs, weights=weights)


# every datatype


@SETTINGS
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(WAYS), st.integers(0, 1 << 32), st.integers(1, MAX_ROWS), st.integers(0, MAX_WIDTH)),
        min_size=1,
        max_size=MAX_CLIENTS,
    )
)
def test_every_datatype_comes_back_to_who_sent_it(asker: Asker, asked: list[tuple[str, int, int, int]]) -> None:
    asker.ask([make_question(way, number, *more) for number, (way, *more) in enumerate(asked)])


def test_rows_of_every_protocol_are_joined_and_stay_apart(server: Server, asker: Asker) -> None:
    def count_joined() -> float:
        lines = httpx.get(server.metrics_url).text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith('argosy_joined_requests_total{model="copy"')
        )

    before = count_joined()
    for turn in range(10):
        questions = [make_question(WAYS[n % 4], n, 1000 * turn + n, 1 + n % MAX_ROWS, 2) for n in range(32)]
        asker.ask(questions)
    # Were no rows joined, nothing would have been tried.
    assert count_joined() - before > 50


# bfloat16

X = np.array([[1.5, -2.0, 3.140625, 0.0], [256.0, -0.5, 1e30, 7.0]], BF16)


def test_bfloat16_model_is_described(server: Server) -> None:
    assert httpx.get(f"{server.url}/v2/models/half").json()["inputs"] == [{"name": "x", "datatype": "BF16", "shape": [-1, 4]}]
    assert httpx.get(f"{server.url}/v2/models/half/config").json()["input"][0]["data_type"] == "TYPE_BF16"
    with server.admin() as admin:
        lanes = [lane for dep in admin.status()["deployments"] if dep["spec"]["name"] == "half" for lane in dep["lanes"]]
    assert (lanes[0]["join_refusal"], lanes[0]["num_golden"]) == ("", 8)


def test_our_client_sends_and_gets_bfloat16(server: Server) -> None:
    with server.client() as client:
        for given in (X, X.astype(np.float32), X.astype(np.float64), X.astype(np.float32).tolist()):
            answer = client.predict("half", {"x": given})
            assert answer["y"].dtype == BF16
            np.testing.assert_array_equal(answer["y"], X * BF16.type(0.5))
        np.testing.assert_array_equal(
            client.predict("half", {"x": np.array([[1, -256, 3, 0]])})["y"][0], np.array([0.5, -128, 1.5, 0], BF16)
        )
        for wrong, text in ((np.full((1, 4), 3.4e38), "is too large"), (np.full((1, 4), 257), "it holds -256 to 256")):
            with pytest.raises(InputError, match=text):
                client.predict("half", {"x": wrong})
        with pytest.raises(InputError, match="has datatype bfloat16, expected INT8"):
            client.predict("copy", {spec.name: X if spec.datatype == "INT8" else np.zeros((2, 4), spec.dtype) for spec in SPECS})


@NEEDS_BFLOAT16
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient_sends_and_gets_bfloat16(server: Server, kind: str) -> None:
    module = {"http": triton_http, "grpc": triton_grpc}[kind]
    url = server.url.removeprefix("http://") if kind == "http" else server.grpc_address
    tensor = module.InferInput("x", [2, 4], "BF16")
    tensor.set_data_from_numpy(X)
    with module.InferenceServerClient(url) as client:
        answer = client.infer("half", [tensor])
    # It gives bfloat16 as the float32 of the same value.
    np.testing.assert_array_equal(answer.as_numpy("y").astype(np.float32), (X * BF16.type(0.5)).astype(np.float32))
    np.testing.assert_array_equal(answer.as_numpy("total"), X.astype(np.float32).sum(axis=1) / 2)


def ask_json(server: Server, *values: Any) -> httpx.Response:
    body = {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, len(values)], "data": list(values)}]}
    return httpx.post(f"{server.url}/v2/models/same-BF16/infer", content=json.dumps(body))


def test_bfloat16_in_json_is_rounded_to_the_nearest(server: Server) -> None:
    answer = ask_json(server, 1, -1.5, 0.1, 3.3895e38, 1e-45)
    assert answer.json()["outputs"][0]["datatype"] == "BF16"
    got = np.array(answer.json()["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(got, np.array([1, -1.5, 0.10009765625, 3.3895313892515355e38, 0], np.float32))


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.4e38, "overflow"), (1e39, "overflow"), (-1e300, "overflow"), ("1", "Expected `float`"), (True, "Expected `float`")],
)
def test_bfloat16_in_json_is_not_coerced(server: Server, value: Any, text: str) -> None:
    answer = ask_json(server, value)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("Input 'x' holds a value that BF16 cannot") and text in answer.json()["error"]


def test_bfloat16_that_is_not_finite_is_exact_in_binary_and_an_error_in_json(server: Server) -> None:
    raw = np.array([[np.inf, np.nan, -np.inf]], BF16).tobytes()
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 3], "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    url, headers = f"{server.url}/v2/models/same-BF16/infer", {"Inference-Header-Content-Length": str(len(head))}
    answer = httpx.post(url, content=head + raw, headers=headers)
    assert (answer.status_code, "NaN or infinity" in answer.json()["error"]) == (500, True)
    head = head.replace(b'{"inputs"', b'{"parameters":{"binary_data_output":true},"inputs"')
    answer = httpx.post(url, content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.content.endswith(raw)


def test_bfloat16_has_no_typed_contents(server: Server) -> None:
    request = service_pb2.ModelInferRequest(model_name="same-BF16")
    request.inputs.add(name="x", datatype="BF16", shape=[1, 1]).contents.fp32_contents.append(1.0)
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "use raw_input_contents" in caught.value.details()


def test_golden_examples_hold_bfloat16(home: Home) -> None:
    version = publish_half(home)
    golden = home.store.load_golden(version)
    assert (golden.inputs["x"].dtype, golden.outputs["y"].dtype, golden.outputs["total"].dtype) == (BF16, BF16, np.float32)
    np.testing.assert_array_equal(golden.outputs["y"], golden.inputs["x"] * BF16.type(0.5))
    assert not version.manifest.lineage.get("golden_error")


@NEEDS_BFLOAT16
def test_large_bfloat16_tensors_go_through(server: Server) -> None:
    x = np.random.default_rng(5).standard_normal((300, 4000)).astype(np.float32).astype(BF16)
    with server.client() as client:
        np.testing.assert_array_equal(client.predict("same-BF16", {"x": x})["y"], x)
    tensor = triton_grpc.InferInput("x", list(x.shape), "BF16")
    tensor.set_data_from_numpy(x)
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        np.testing.assert_array_equal(client.infer("same-BF16", [tensor]).as_numpy("y"), x.astype(np.float32))


def test_text_and_bfloat16_outputs_in_one_onnx_file_are_refused(home: Home) -> None:
    nodes = [helper.make_node("Identity", ["t"], ["u"]), helper.make_node("Identity", ["x"], ["y"])]
    tensors = [("t", TensorProto.STRING, "u"), ("x", TensorProto.BFLOAT16, "y")]
    inputs = [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind, _ in tensors]
    outputs = [helper.make_tensor_value_info(name, kind, ["N", 1]) for _, kind, name in tensors]
    graph = helper.make_graph(nodes, "mixed", inputs, outputs)
    path = home.files / "mixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(InputError, match="gives no bfloat16 output to a model that has inputs of text"):
        import_onnx(home.store, path, "mixed")
