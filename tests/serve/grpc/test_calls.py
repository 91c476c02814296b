"""The gRPC front on a real socket, asked by unmodified public clients: grpcio, tritonclient.grpc and its aio."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import grpc
import hpack
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from argosy.datatypes import DATATYPES
from argosy.errors import ModelError
from argosy.serve.grpc.replies import encode_status
from tests.serve.grpc.echo import EchoServer
from tests.serve.grpc.requests import NEEDS_BFLOAT16, X, make_input, make_request

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def string(value):
    return service_pb2.InferParameter(string_param=value)


def integer(value):
    return service_pb2.InferParameter(int64_param=value)


def call_raw(channel, path, data, **options):
    return channel.unary_unary(path, request_serializer=None, response_deserializer=None)(data, **options)


# health and metadata


def test_health(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("any")
    assert client.is_model_ready("any", "1")


def check_health(channel, service=""):
    """What probes of Kubernetes and load balancers send, by hand: a field of text, and an enumeration back."""
    data = b"\x0a" + bytes((len(service),)) + service.encode() if service else b""
    return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}[
        call_raw(channel, "/grpc.health.v1.Health/Check", data, timeout=10)
    ]


def test_probes_of_grpc_health_are_answered(channel, server):
    services = ("", "inference.GRPCInferenceService", "any")
    assert {check_health(channel, service) for service in services} == {"SERVING"}
    server.router.not_ready.add("any")
    try:
        assert (check_health(channel), check_health(channel, "any")) == ("SERVING", "NOT_SERVING")
        server.router.is_server_ready = False
        assert check_health(channel) == "NOT_SERVING"
    finally:
        server.router.is_server_ready = True
        server.router.not_ready.clear()
    for path, data, code in (
        ("Check", b"\x0a\x04nope", grpc.StatusCode.NOT_FOUND),
        ("Check", b"\x0a\x04", grpc.StatusCode.INVALID_ARGUMENT),
        ("Watch", b"", grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call_raw(channel, f"/grpc.health.v1.Health/{path}", data, timeout=10)
        assert caught.value.code() == code


def test_unknown_models_are_not_ready(client):
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("any", "2")


def test_readiness_says_what_is_true(client, server):
    server.router.is_server_ready = False
    server.router.not_ready.add("any")
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("any")
    finally:
        server.router.is_server_ready = True
        server.router.not_ready.clear()


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("argosy", "0")


def test_model_metadata(client):
    metadata = client.get_model_metadata("pair", as_json=True)
    assert metadata == {
        "name": "pair",
        "versions": ["1"],
        "platform": "fake",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "b", "datatype": "INT64", "shape": ["-1", "3"]},
        ],
        "outputs": [
            {"name": "out_a", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "out_b", "datatype": "INT64", "shape": ["-1", "3"]},
        ],
    }


# inference


def test_infer_answers_with_name_version_and_id(client):
    result = client.infer("any", [make_input(X)], request_id="r-1 é")
    np.testing.assert_array_equal(result.as_numpy("y"), X * 2)
    reply = result.get_response()
    assert (reply.model_name, reply.model_version, reply.id) == ("any", "1", "r-1 é")
    assert len(reply.raw_output_contents) == 1


def test_infer_with_version(client):
    np.testing.assert_array_equal(client.infer("any", [make_input(X)], model_version="1").as_numpy("y"), X * 2)


def test_inputs_come_in_any_order_and_outputs_as_asked(client):
    a, b = np.ones((2, 2), np.float32), np.arange(6).reshape(2, 3)
    inputs = [make_input(b, "b"), make_input(a, "a")]
    result = client.infer("pair", inputs, outputs=[triton.InferRequestedOutput("out_b")])
    np.testing.assert_array_equal(result.as_numpy("out_b"), b * 2)
    assert result.as_numpy("out_a") is None
    outputs = [triton.InferRequestedOutput("out_b"), triton.InferRequestedOutput("out_a")]
    reply = client.infer("pair", inputs, outputs=outputs).get_response()
    assert [output.name for output in reply.outputs] == ["out_b", "out_a"]
    assert reply.raw_output_contents[1] == (a * 2).tobytes()


def test_model_without_a_batch_axis(client):
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(client.infer("whole", [make_input(x)]).as_numpy("y"), x * 2)


def make_values(datatype):
    if datatype == "BYTES":
        return np.array([[b"", b"a\0b", "é".encode()], [b"\xff" * 200, b"c", b"d"]], dtype=object)
    return np.array([[0, 1, 0], [1, 1, 0]]).astype(DATATYPES[datatype])


def double(array):
    return array if array.dtype.kind in "Ob" else array + array


@pytest.mark.parametrize("datatype", [pytest.param(one, marks=NEEDS_BFLOAT16 if one == "BF16" else ()) for one in DATATYPES])
def test_raw_contents_of_every_datatype(client, datatype):
    values = make_values(datatype)
    result = client.infer(f"one_{datatype}", [make_input(values)]).as_numpy("y")
    np.testing.assert_array_equal(result, double(values))
    assert result.dtype == values.dtype


FIELDS = {"I": "int_contents", "U": "uint_contents"}


def set_contents(tensor, values):
    datatype = np_to_triton_dtype(values.dtype)
    wide = {"INT64": "int64_contents", "UINT64": "uint64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}
    field = wide.get(datatype) or FIELDS.get(datatype[0]) or f"{datatype.lower()}_contents"
    getattr(tensor.contents, field).extend(values.ravel().tolist())


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("FP16", "BF16")])
def test_typed_contents_of_every_datatype(stub, datatype):
    values = make_values(datatype)
    request = service_pb2.ModelInferRequest(model_name=f"one_{datatype}")
    set_contents(request.inputs.add(name="x", datatype=datatype, shape=values.shape), values)
    reply = stub.ModelInfer(request)
    np.testing.assert_array_equal(triton.InferResult(reply).as_numpy("y"), double(values))
    assert not reply.outputs[0].HasField("contents")


def test_all_inputs_typed(stub):
    request = service_pb2.ModelInferRequest(model_name="pair")
    set_contents(request.inputs.add(name="a", datatype="FP32", shape=[1, 2]), np.ones((1, 2), np.float32))
    set_contents(request.inputs.add(name="b", datatype="INT64", shape=[1, 3]), np.ones((1, 3), np.int64))
    result = triton.InferResult(stub.ModelInfer(request))
    np.testing.assert_array_equal(result.as_numpy("out_b"), [[2, 2, 2]])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_unpacked(client, algorithm):
    result = client.infer("any", [make_input(np.ones((1, 5000), np.float32))], compression_algorithm=algorithm)
    assert result.as_numpy("y").sum() == 10_000


def test_headers_of_the_client_are_taken(client):
    headers = {"authorization": "Bearer x", "x-long": "v" * 5000, "x-bin-bin": b"\0\xff"}
    for index in range(30):
        result = client.infer("any", [make_input(X)], headers={**headers, "x-changing": str(index)})
        np.testing.assert_array_equal(result.as_numpy("y"), X * 2)


def test_20_megabytes_both_ways(server):
    with triton.InferenceServerClient(server.url) as client:
        x = np.random.default_rng(0).random((5, 1 << 20), np.float32)
        for _ in range(2):
            np.testing.assert_array_equal(client.infer("any", [make_input(x)]).as_numpy("y"), x * 2)


def test_many_large_requests_on_one_channel_take_turns(server):
    x = np.ones((1, 1 << 20), np.float32)

    async def ask():
        async with triton_aio.InferenceServerClient(server.url) as client:
            return await asyncio.gather(*[client.infer("any", [make_input(x)]) for _ in range(25)])

    for result in asyncio.run(ask()):
        assert result.as_numpy("y").sum() == 2 << 20


def test_many_streams_of_one_channel(server):
    async def ask(client, index):
        x = np.full((1, 8), index, np.float32)
        result = await client.infer("any", [make_input(x)], request_id=str(index))
        np.testing.assert_array_equal(result.as_numpy("y"), x * 2)
        assert result.get_response().id == str(index)

    async def main():
        async with triton_aio.InferenceServerClient(server.url) as client:
            await asyncio.gather(*[ask(client, index) for index in range(1000)])

    asyncio.run(main())


def test_many_threads_of_one_client(client):
    def ask(index):
        x = np.full((1, index % 50 + 1), index, np.float32)
        return np.array_equal(client.infer("any", [make_input(x)]).as_numpy("y"), x * 2)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_aio_client_sees_health_and_metadata(server):
    async def main():
        async with triton_aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_live()
            assert not await client.is_model_ready("nope")
            assert (await client.get_model_metadata("any")).platform == "fake"
            with pytest.raises(InferenceServerException, match="Unknown model 'nope'"):
                await client.infer("nope", [make_input(X)])

    asyncio.run(main())


# errors


def refuse(stub, request, code, *texts):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is code
    for text in texts:
        assert text in caught.value.details()
    return caught.value


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        pytest.param(make_request(X, "nope"), grpc.StatusCode.NOT_FOUND, "Unknown model 'nope'; deployed: any", id="model"),
        pytest.param(make_request(X, ""), grpc.StatusCode.NOT_FOUND, "Unknown model ''", id="no model"),
        pytest.param(make_request(X, model_version="7"), grpc.StatusCode.NOT_FOUND, "Version 7 of model 'any'", id="version"),
        pytest.param(make_request(X, name="z"), INVALID, "has no input 'z'; it has: x", id="input name"),
        pytest.param(make_request(X.astype("f8")), INVALID, "has datatype FP64, expected FP32", id="datatype"),
        pytest.param(make_request(X[0]), INVALID, "has shape (3,), expected (-1, -1)", id="rank"),
        pytest.param(make_request(X[:0]), INVALID, "The request has no rows", id="no rows"),
        pytest.param(make_request(np.ones((1, 2), "f4"), "pair", "a"), INVALID, "needs the input 'b'", id="missing"),
        pytest.param(service_pb2.ModelInferRequest(model_name="any"), INVALID, "needs the input 'x'", id="no inputs"),
        pytest.param(make_request(X, "fails"), grpc.StatusCode.INTERNAL, "100 % of it: a\nb é", id="model fails"),
    ],
)
def test_request_is_refused(stub, request_, code, text):
    refuse(stub, request_, code, text)


def change(function, model="any", array=X, name="x"):
    request = make_request(array, model, name)
    function(request)
    return request


def add_b_of_one_row(request):
    request.inputs.add(name="b", datatype="INT64", shape=[1, 3])
    request.raw_input_contents.append(bytes(24))


def change_typed(datatype, field, values, shape=(1, 1)):
    request = service_pb2.ModelInferRequest(model_name=f"one_{datatype}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        pytest.param(change(lambda r: r.inputs.append(r.inputs[0])), "1 raw_input_contents for 2 inputs", id="raw count"),
        pytest.param(
            change(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b""))), "'x' stands twice", id="twice"
        ),
        pytest.param(
            change(lambda r: r.inputs[0].contents.fp32_contents.extend([1] * 6)),
            "both contents and raw_input_contents",
            id="mixed",
        ),
        pytest.param(change(add_b_of_one_row, "pair", np.ones((2, 2), "f4"), "a"), "a 2, b 1", id="rows"),
        pytest.param(change(lambda r: r.outputs.add(name="z")), "has no output 'z'; it has: y", id="output name"),
        pytest.param(change(lambda r: (r.outputs.add(name="y"), r.outputs.add(name="y"))), "'y' stands twice", id="output twice"),
        pytest.param(change(lambda r: r.raw_input_contents.__setitem__(0, b"123")), "3 bytes of data, expected 24", id="bytes"),
        pytest.param(
            change(lambda r: r.inputs[0].shape.__setitem__(0, -2)), "has shape (-2, 3), expected (-1, -1)", id="negative"
        ),
        pytest.param(
            change(lambda r: r.inputs[0].shape.__setitem__(slice(None), [1 << 62, 1 << 62])), "expected 8507059173", id="overflow"
        ),
        pytest.param(change(lambda r: r.parameters["timeout"].MergeFrom(string("5"))), "`timeout` is '5'", id="timeout text"),
        pytest.param(change(lambda r: r.parameters["timeout"].MergeFrom(integer(-5))), "`timeout` is -5", id="timeout negative"),
        pytest.param(
            change(lambda r: r.parameters["timeout"].MergeFrom(integer(1 << 50))), "at most one hour", id="timeout long"
        ),
        pytest.param(change(lambda r: r.parameters["sequence_id"].MergeFrom(integer(3))), "sequences are not", id="sequence"),
        pytest.param(
            change(lambda r: r.inputs[0].parameters["shared_memory_region"].MergeFrom(string("r"))), "not offered", id="memory"
        ),
        pytest.param(
            change(lambda r: r.outputs.add(name="y").parameters["classification"].MergeFrom(integer(3))),
            "not offered",
            id="top-k",
        ),
        pytest.param(change_typed("UINT8", "uint_contents", [300]), "UINT8 cannot: 300", id="300 is no UINT8"),
        pytest.param(change_typed("INT8", "int_contents", [-129]), "INT8 cannot: -129", id="-129 is no INT8"),
        pytest.param(change_typed("INT16", "int_contents", [40000]), "INT16 cannot: 40000", id="40000 is no INT16"),
        pytest.param(change_typed("UINT16", "uint_contents", [65536]), "UINT16 cannot: 65536", id="65536 is no UINT16"),
        pytest.param(change_typed("FP16", "fp32_contents", [1]), "no typed contents hold", id="FP16"),
        pytest.param(change_typed("FP32", "fp64_contents", [1]), "in fp64_contents, expected fp32_contents", id="other field"),
        pytest.param(change_typed("FP32", "fp32_contents", [1, 2]), "2 elements of data, expected 1", id="too many values"),
        pytest.param(change_typed("FP32", "fp32_contents", []), "0 elements of data, expected 1", id="no values"),
        pytest.param(
            change_typed("BYTES", "bytes_contents", [b"a"], (1 << 40, 1 << 40)), "1 elements of data", id="shape beyond memory"
        ),
        pytest.param(make_request(np.array([[2]], np.uint8).view(bool), "one_BOOL"), "neither 0 nor 1", id="BOOL of 2"),
    ],
)
def test_invalid_request_is_refused(stub, request_, text):
    refuse(stub, request_, INVALID, text)


def test_hint_goes_with_the_message(stub):
    refuse(stub, make_request(X, "nope"), grpc.StatusCode.NOT_FOUND, "\nhint: argosy deploy NAME@VERSION makes one")


def test_retry_after_goes_as_pushback(stub, server):
    server.router.not_ready.add("any")
    try:
        error = refuse(stub, make_request(X), grpc.StatusCode.UNAVAILABLE, "no replica that is ready")
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    finally:
        server.router.not_ready.clear()


def test_long_names_make_short_messages(stub):
    error = refuse(stub, make_request(X, name="z" * 30_000), INVALID, "has no input")
    assert len(error.details()) < 2100


def test_fault_of_ours_is_internal_and_reported(server, stub):
    refuse(stub, make_request(X, "raises"), grpc.StatusCode.INTERNAL, "Internal error: RuntimeError")
    assert [str(context["exception"]) for context in server.errors] == ["a fault of the engine"]
    server.errors.clear()


def test_message_over_the_limit(server):
    small = EchoServer(max_body_bytes=100_000)
    try:
        with triton.InferenceServerClient(small.url) as client:
            with pytest.raises(InferenceServerException, match="more than 100000 bytes") as caught:
                client.infer("any", [make_input(np.ones((1, 1 << 20), np.float32))])
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert client.infer("any", [make_input(X)]).as_numpy("y")[0, 1] == 2
            with pytest.raises(InferenceServerException, match="more than 100000 bytes"):
                client.infer("any", [make_input(np.zeros((1, 1 << 20), np.float32))], compression_algorithm="gzip")
    finally:
        small.stop()


def test_answer_that_cannot_be_encoded_is_internal_and_reported(server, stub):
    refuse(stub, make_request(X, "wrong"), grpc.StatusCode.INTERNAL, "Internal error: TypeError")
    assert [str(context["exception"]) for context in server.errors] == ["output y is float64"]
    server.errors.clear()


@pytest.mark.parametrize(
    "text", ["\U0001f6a2" * 3000, "x" * 3999 + "%", "é%" * 3000, "\n" * 5000], ids=["emoji", "long", "mixed", "lines"]
)
def test_status_block_fits_in_a_frame_whatever_the_text(text):
    block = encode_status(ModelError("model_failed", model="m", version="1", detail=text))
    fields = dict(hpack.Decoder().decode(block, raw=True))
    assert len(block) < 4200
    message = unquote(fields[b"grpc-message"].decode("ascii"), errors="strict" if text[0] in "x\n" else "replace")
    assert message.startswith("Model 'm' version 1 failed on this request: " + text[:20])


# gRPC itself


def test_unknown_methods_are_unimplemented(channel):
    for path in ("/inference.GRPCInferenceService/Nope", "/other.Service/Do"):
        with pytest.raises(grpc.RpcError) as caught:
            call_raw(channel, path, b"x")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert path in caught.value.details()


def test_unknown_streaming_method_is_refused_without_waiting_for_its_end(channel):
    ended = threading.Event()

    def requests():
        yield b"x"
        ended.wait(20)

    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        next(channel.stream_stream("/inference.GRPCInferenceService/Nope")(requests()))
    ended.set()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert time.monotonic() - started < 5


def test_garbage_is_invalid(channel):
    for data in (b"\xff" * 10, b"\x0a\xff", b"\x0a\x01\xff"):
        with pytest.raises(grpc.RpcError) as caught:
            call_raw(channel, INFER, data)
        assert caught.value.code() is INVALID
        assert "not valid gRPC" in caught.value.details()


# deadlines and cancellation


def test_deadline_of_the_client_reaches_the_engine(server, stub):
    server.admit.calls.clear()
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(make_request(X, "slow"), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (call,) = server.admit.calls
    assert 0.05 < call.deadline_s - call.started_s < 0.12


def test_timeout_parameter_is_a_deadline_that_the_server_keeps(server, client):
    server.admit.calls.clear()
    with pytest.raises(InferenceServerException, match=r"deadline of 0\.100 s passed") as caught:
        client.infer("slow", [make_input(X)], timeout=100_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert server.admit.calls[0].deadline_s - server.admit.calls[0].started_s == pytest.approx(0.1)


def test_calls_without_a_deadline_get_the_models(server, client):
    server.admit.calls.clear()
    client.infer("slow", [make_input(X)])
    client.infer("slow", [make_input(X)], timeout=5_000_000, client_timeout=60)
    client.infer("slow", [make_input(X)], timeout=5_000_000, client_timeout=3)
    spans = [call.deadline_s - call.started_s for call in server.admit.calls]
    assert spans == pytest.approx([10.0, 5.0, 3.0], abs=0.1)


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_cancelled_call_is_done(server, stub):
    server.admit.calls.clear()
    future = stub.ModelInfer.future(make_request(X, "slow"))
    wait_for(lambda: server.admit.calls)
    assert not server.admit.calls[0].is_done
    future.cancel()
    wait_for(lambda: server.admit.calls[0].is_done, 0.25)


def test_lost_connection_makes_its_calls_done(server):
    server.admit.calls.clear()
    with grpc.insecure_channel(server.url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        futures = [stub.ModelInfer.future(make_request(X, "slow")) for _ in range(20)]
        wait_for(lambda: len(server.admit.calls) == 20)
    wait_for(lambda: all(call.is_done for call in server.admit.calls), 0.25)
    assert all(future.code() is grpc.StatusCode.CANCELLED for future in futures)


def test_size_of_a_call_is_known(server, stub):
    server.admit.calls.clear()
    request = make_request(X, "slow")
    stub.ModelInfer(request)
    assert server.admit.calls[0].size_bytes == request.ByteSize()
    assert server.admit.calls[0].num_rows == 2


# draining


def test_drain_answers_what_came_and_then_closes():
    running = EchoServer()
    try:
        with grpc.insecure_channel(running.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            futures = [stub.ModelInfer.future(make_request(X, "slow")) for _ in range(10)]
            wait_for(lambda: len(running.admit.calls) == 10)
            running.run(running.server.drain)
            for future in futures:
                assert future.result(5).raw_output_contents[0] == (X * 2).tobytes()
            wait_for(lambda: not running.server.connections)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(make_request(X), timeout=1)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    finally:
        running.stop()
    assert running.errors == []


def test_drain_loses_no_call_of_busy_clients():
    old = EchoServer()
    new = None
    failed, answered = [], []
    stop = threading.Event()

    def ask():
        with grpc.insecure_channel(old.url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not stop.is_set():
                try:
                    stub.ModelInfer(make_request(X), timeout=5)
                    answered.append(1)
                except grpc.RpcError as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(answered) > 50)
        new = EchoServer(port=old.address[1])
        old.run(old.listener.close)
        old.run(old.server.drain)
        wait_for(lambda: not old.server.connections)
        before = len(answered)
        wait_for(lambda: len(answered) > before + 50)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        old.stop()
        if new is not None:
            new.stop()
    assert failed == []
    assert old.errors == new.errors == []


def test_importing_the_front_needs_no_grpcio():
    code = "import sys; sys.modules['grpc'] = None; import argosy.serve.grpc.connection; assert 'tritonclient' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
