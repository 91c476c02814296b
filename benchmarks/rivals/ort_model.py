"""What the rivals share: their settings, read from the environment, and the model on one ONNX Runtime session.

MODEL       path of the ONNX file
PORT        of HTTP; GRPC_PORT of gRPC, METRICS_PORT for those that cannot do without
FOLDER      for files that a server wants to read or write
WORKERS, THREADS, MAX_BATCH, WAIT_MS    as rivals/catalogue.py says
PAD         1: rows of different lengths are padded with zeros to the longest of their batch
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

MODEL = os.environ["MODEL"]
PORT, GRPC_PORT, METRICS_PORT = (int(os.environ[name]) for name in ("PORT", "GRPC_PORT", "METRICS_PORT"))
FOLDER = os.environ["FOLDER"]
WORKERS, THREADS, MAX_BATCH = (int(os.environ[name]) for name in ("WORKERS", "THREADS", "MAX_BATCH"))
WAIT_MS = float(os.environ["WAIT_MS"])
PAD = os.environ["PAD"] == "1"


def _pad(values: list) -> np.ndarray:
    """Join one-dimensional rows, zeros behind the shorter ones."""
    joined = np.zeros((len(values), max(map(len, values))), np.int64)
    for row, value in zip(joined, values, strict=True):
        row[: len(value)] = value
    return joined


class OrtModel:
    """One session; the model has one output."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.inputs = {item.name: np.int64 if "int64" in item.type else np.float32 for item in self.session.get_inputs()}
        self.output = self.session.get_outputs()[0].name

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Answer a batch, the first axis of each input its rows."""
        return self.session.run(None, feed)[0]

    def run_rows(self, rows: list[dict]) -> np.ndarray:
        """Answer rows that came separately, each a list of numbers by the input's name."""
        if PAD:
            return self.run({name: _pad([row[name] for row in rows]) for name in self.inputs})
        return self.run({name: np.array([row[name] for row in rows], dtype) for name, dtype in self.inputs.items()})
