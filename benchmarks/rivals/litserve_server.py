"""LitServe: plain JSON, its own batching, several API servers where API_SERVERS says so."""

import os

import litserve
import numpy as np
from ort_model import MAX_BATCH, PORT, WAIT_MS, WORKERS, OrtModel


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = OrtModel()

    def decode_request(self, request: dict) -> dict:
        return request

    def batch(self, inputs: list[dict]) -> list[dict]:
        return inputs

    def predict(self, rows: list[dict]) -> np.ndarray:
        return self.model.run_rows(rows)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        return {"y": output.ravel().tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=int(os.environ.get("API_SERVERS", "1")),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
