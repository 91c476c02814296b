"""mosec: a Rust front, Python workers; plain JSON, or float32 bytes in and out where KIND is raw."""

import os
import sys

import numpy as np
import orjson
from mosec import Server, Worker
from ort_model import MAX_BATCH, PORT, WAIT_MS, WORKERS, OrtModel


class Json(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = OrtModel()

    def deserialize(self, data: bytes) -> dict:
        return orjson.loads(data)

    def serialize(self, data: np.ndarray) -> bytes:
        return orjson.dumps({"y": data}, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: list[dict] | dict) -> list[np.ndarray] | np.ndarray:
        return list(self.model.run_rows(data)) if MAX_BATCH > 1 else self.model.run_rows([data])[0]


class Raw(Json):
    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32).reshape(3, 224, 224)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        # A row that came alone is not copied.
        rows = np.stack(data) if len(data) > 1 else data[0][None]
        return list(self.model.run({next(iter(self.model.inputs)): rows}))


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning", "--timeout", "30000"]
    server = Server()
    worker = Raw if os.environ["KIND"] == "raw" else Json
    server.append_worker(worker, num=WORKERS, max_batch_size=MAX_BATCH, max_wait_time=max(1, int(WAIT_MS)))
    server.run()
