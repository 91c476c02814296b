"""BentoML: JSON of nested lists (the inputs of a row stacked into one), batches of its own dispatcher."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from ort_model import MAX_BATCH, PORT, WORKERS, OrtModel

# With the default of max_latency_ms it sheds requests that wait in a queue of 64.
LATENCY_MS = 10_000


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": 60, "max_concurrency": 1000},
    metrics={"enabled": False},
    tracing={"sample_rate": 0.0},
    logging={"access": {"enabled": False}},
)
class Service:
    def __init__(self) -> None:
        self.model = OrtModel()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=LATENCY_MS)
    def infer(self, x: np.ndarray) -> np.ndarray:
        names = list(self.model.inputs)
        columns = [x] if len(names) == 1 else [x[:, index] for index in range(len(names))]
        feed = {name: np.ascontiguousarray(column, self.model.inputs[name]) for name, column in zip(names, columns, strict=True)}
        return self.model.run(feed)


if __name__ == "__main__":
    program = str(Path(sys.executable).parent / "bentoml")
    options = ["--host", "127.0.0.1", "--port", str(PORT), "--working-dir", str(Path(__file__).resolve().parent), "-q"]
    os.execv(program, [program, "serve", "bentoml_server:Service", *options])
