"""Signatures and rows for the tests of batches."""

from __future__ import annotations

import numpy as np

from argosy.signature import Preprocess, Ragged, RaggedInput, Signature, TensorSpec

RAGGED = Signature(
    (TensorSpec("x", "FP32", (-1, -1)),),
    (TensorSpec("y", "FP32", (-1, -1)),),
    ragged=Ragged({"x": RaggedInput(1, pad=-7.0)}, {"y": 1}),
)
# A batch costs 16 ms, and each place of a row 1 ms: joining may cost 4 places of padding.
SERVICE = tuple((rows, length, 0.016 + 0.001 * rows * length) for rows, length in ((1, 8), (2, 8), (4, 8), (1, 16), (1, 4)))
TEXT = Signature(
    (TensorSpec("x", "FP32", (-1, -1)),),
    (TensorSpec("y", "FP32", (-1, 4)),),
    ragged=Ragged({"x": RaggedInput(1)}),
    preprocess=(Preprocess("text", "text", ("x",), {"tokenizer": "tokenizer.json"}),),
)


def make_rows(value: float, rows: int = 1, length: int = 4) -> np.ndarray:
    return np.full((rows, length), value, np.float32)


def make_text(*items: bytes) -> np.ndarray:
    return np.array(items, dtype=object)
