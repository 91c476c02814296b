"""mosec: two workers, batches of at most 32 rows, 1 ms of waiting (its best setting of those tried)."""

import os

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker


class Infer(Worker):
    def __init__(self) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> dict:
        return orjson.loads(data)

    def serialize(self, data: np.ndarray) -> bytes:
        return orjson.dumps({"y": data}, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: list[dict]) -> list[np.ndarray]:
        return list(self.session.run(None, {"x": np.array([item["x"] for item in data], np.float32)})[0])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Infer, num=2, max_batch_size=32, max_wait_time=1)
    server.run()
