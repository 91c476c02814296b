"""Sentences as tokens, and how near a compressed MiniLM stays to the original on them; for rivals' environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Row = dict[str, np.ndarray]


def load_rows(path: Path | str) -> list[Row]:
    """Read what `compress_minilm.write_batches` wrote."""
    loaded = np.load(path)
    count = len({name.split(":")[0] for name in loaded.files})
    return [{name.split(":")[1]: loaded[name] for name in loaded.files if name.startswith(f"{index}:")} for index in range(count)]


def embed(model: Any, rows: list[Row]) -> np.ndarray:
    """Answers of a model, a path or its bytes, one row at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, row)[0] for row in rows])


def measure_cosine(found: np.ndarray, right: np.ndarray) -> float:
    """The mean cosine of answers to the original's."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean((found * right).sum(1) / np.maximum(lengths, 1e-12)))
