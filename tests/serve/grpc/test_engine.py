"""gRPC through the whole server: supervisor, front, batcher, link and worker."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from argosy.server import Server
from tests.home import Home, row
from tests.processes import wait_until


def make_input(array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("x", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def test_grpc_answers_what_the_model_does(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server, triton.InferenceServerClient(server.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("scale", "1")
        metadata = client.get_model_metadata("scale")
        assert (metadata.platform, list(metadata.inputs[0].shape)) == ("onnxruntime_onnx", [-1, 4])
        result = client.infer("scale", [make_input(row(3.0, rows=2))], request_id="a")
        np.testing.assert_array_equal(result.as_numpy("y"), row(6.0, rows=2))
        assert (result.get_response().id, result.get_response().model_version) == ("a", "1")
        with pytest.raises(InferenceServerException, match="Unknown model 'nope'; deployed: scale"):
            client.infer("nope", [make_input(row(1.0))])


def test_every_caller_of_a_joined_batch_gets_its_own_rows(home: Home) -> None:
    home.publish_scale()

    async def ask(client: triton_aio.InferenceServerClient, index: int) -> None:
        x = row(float(index), rows=index % 5 + 1)
        result = await client.infer("scale", [make_input(x)], request_id=str(index))
        np.testing.assert_array_equal(result.as_numpy("y"), x * 2)
        assert result.get_response().id == str(index)

    async def main(address: str) -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            for _ in range(3):
                await asyncio.gather(*[ask(client, index) for index in range(300)])

    with home.serve("scale") as server:
        asyncio.run(main(server.grpc_address))


def test_deadlines_and_cancelled_calls_leave_the_model_free_for_others(home: Home) -> None:
    home.publish_code("if (x == 7).any(): time.sleep(0.5)\nreturn {'y': x * 2}")
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        with triton.InferenceServerClient(server.grpc_address) as client:
            with pytest.raises(InferenceServerException) as caught:
                client.infer("code", [make_input(row(7.0))], client_timeout=0.1)
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            with pytest.raises(InferenceServerException, match=r"deadline of 0\.100 s passed") as caught:
                client.infer("code", [make_input(row(7.0))], timeout=100_000)
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            result = client.infer("code", [make_input(row(1.0))])
            np.testing.assert_array_equal(result.as_numpy("y"), row(2.0))


@pytest.mark.parametrize("kind", ["ours", "http", "grpc", "stream"])
def test_request_of_higher_priority_is_taken_first(home: Home, kind: str, tmp_path: Path) -> None:
    gate, order = tmp_path / "gate", tmp_path / "order"
    order.touch()
    # The first request holds the model until the gate is there; each writes down when it was run.
    wait = f"while x[0, 0] == 0 and not os.path.exists({str(gate)!r}): time.sleep(0.005)"
    note = f"open({str(order)!r}, 'a').write('%d ' % x[0, 0])"
    home.publish_code(f"{note}\n{wait}\nreturn {{'y': x}}")
    with home.serve() as server, ExitStack() as stack:
        server.deploy("code", allow_code=True)
        ask = make_asker(kind, server, stack)
        pool = stack.enter_context(ThreadPoolExecutor(8))
        stack.callback(gate.touch)

        def count_waiting() -> int:
            with server.admin() as admin:
                lanes = [lane for front in admin.stats()["fronts"].values() for lane in front]
            return sum(lane["open_requests"] for lane in lanes)

        asked = []
        # One runs, and one stands ready beside it; what comes then waits in the front.
        for number, (value, priority) in enumerate(((0, 0), (1, 0), (2, 0), (3, 9), (4, 1))):
            asked.append(pool.submit(ask, value, priority))
            wait_until(lambda number=number: count_waiting() == number + 1)
        gate.touch()
        for value, each in enumerate(asked):
            np.testing.assert_array_equal(each.result(20), row(float(value)))
    # The first is the made-up one of the load.
    assert order.read_text().split()[1:] in (["0", "1", "4", "3", "2"], ["0", "1", "4", "2", "3"])


def make_asker(kind: str, server: Server, stack: ExitStack) -> Callable[[int, int], np.ndarray]:
    """A function that asks the model `code` for a row of one value, with a priority; threads may share it."""
    if kind == "ours":
        client = stack.enter_context(server.client())
        return lambda value, priority: client.predict("code", {"x": row(value)}, priority=priority)["y"]
    if kind == "http":
        made = stack.enter_context(triton_http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8))

        def ask_http(value: int, priority: int) -> np.ndarray:
            tensor = triton_http.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(row(value))
            return made.async_infer("code", [tensor], priority=priority).get_result().as_numpy("y")

        return ask_http
    client_grpc = stack.enter_context(triton.InferenceServerClient(server.grpc_address))
    if kind == "grpc":
        return lambda value, priority: client_grpc.infer("code", [make_input(row(value))], priority=priority).as_numpy("y")
    answers: dict[str, queue.Queue[np.ndarray]] = {str(value): queue.Queue() for value in range(8)}
    client_grpc.start_stream(lambda result, error: answers[result.get_response().id].put(result.as_numpy("y")))

    def ask_stream(value: int, priority: int) -> np.ndarray:
        client_grpc.async_stream_infer("code", [make_input(row(value))], request_id=str(value), priority=priority)
        return answers[str(value)].get(timeout=20)

    return ask_stream
