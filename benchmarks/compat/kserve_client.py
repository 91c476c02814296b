"""Ask a server with the KServe SDK's REST and gRPC clients; run by `compat.py` with an environment that has it."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def make_request(model: str, rows: np.ndarray, binary: bool) -> InferRequest:
    tensor = InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model, [tensor], request_id="k-1")


async def ask_rest(url: str, model: str, rows: np.ndarray) -> list[np.ndarray]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    print("KServe REST: live", await client.is_server_live(url), "ready", await client.is_server_ready(url), end=" ")
    print("model ready", await client.is_model_ready(url, model))
    answers = [await client.infer(url, make_request(model, rows, binary), model_name=model) for binary in (False, True)]
    await client.close()
    return [answer.outputs[0].as_numpy().reshape(len(rows), -1) for answer in answers]


async def ask_grpc(address: str, model: str, rows: np.ndarray) -> list[np.ndarray]:
    client = InferenceGRPCClient(address)
    print("KServe gRPC: live", await client.is_server_live(), "ready", await client.is_server_ready(), end=" ")
    print("model ready", await client.is_model_ready(model))
    answers = [await client.infer(make_request(model, rows, binary)) for binary in (False, True)]
    await client.close()
    return [answer.outputs[0].as_numpy().reshape(len(rows), -1) for answer in answers]


async def main() -> None:
    url, address, model = sys.argv[1:]
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    answers = await ask_rest(url, model, rows) + await ask_grpc(address, model, rows)
    worst = max(float(np.abs(answer - answers[0]).max()) for answer in answers)
    print(f"KServe SDK {version('kserve')}: {len(answers)} answers of shape {answers[0].shape}, largest difference {worst:.2g}")


if __name__ == "__main__":
    asyncio.run(main())
