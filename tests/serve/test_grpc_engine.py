"""gRPC through the whole server: supervisor, front, batcher, link and worker."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.conftest import Home, row


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
        assert (metadata.platform, list(metadata.inputs[0].shape)) == ("onnx", [-1, 4])
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
