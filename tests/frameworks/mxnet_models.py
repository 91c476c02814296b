"""What the scripts that run in MXNet's own environment share: models, data, and how cases are run.

A case is a function without arguments that gives JSON data. A script runs all of its cases and prints one JSON object:
name -> what the case gives, or {"failed": traceback}; `mxnet_run.py` starts it, and the tests assert on what it printed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from argosy.errors import ArgosyError
from argosy.frameworks.base import Batch, FitOptions, get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.frameworks.mxnet.library import mx

nn = mx.gluon.nn
FRAMEWORK = get_framework("mxnet")
FOLDER = Path(sys.argv[1])
"""Where files are left for other processes."""

CASES: dict[str, Callable[[], Any]] = {}

PERCEPTRON = (Dense(8), Relu(), Dense(3))
CONVOLUTIONAL = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(7), Relu(), Dense(3))
ROW = (2, 6, 4)


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def build(layers: Any = PERCEPTRON, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Any:
    weights = {name: weight.astype(dtype) for name, weight in draw_weights(layers, shape, 3).items()}
    return FRAMEWORK.build_network(layers, shape, weights)


def make_rows(num_rows: int = 12, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((num_rows, *shape)).astype(dtype), rng.integers(0, 3, num_rows)


def fit(model: Any, loss: Any, optimizer: Any, num_steps: int = 5, **options: Any) -> list[float]:
    step = FRAMEWORK.build_step(model, loss, optimizer, FitOptions(**options))
    x, y = make_rows()
    return [step(Batch(x, y), number)[0] for number in range(1, num_steps + 1)]


def get_values(model: Any) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in FRAMEWORK.get_weights(model).values()])


def measure_distance(model: Any, other: Any) -> float:
    return float(np.max(np.abs(get_values(model) - get_values(other))))


def digest(arrays: dict[str, Any]) -> str:
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        content.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()


def refuse(function: Callable[[], Any]) -> list[str]:
    """Give the key and the message of the error that a call ends with."""
    try:
        function()
    except ArgosyError as error:
        return [error.key, error.message]
    return ["", "it was not refused"]


class Embedding(mx.gluon.HybridBlock):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, sparse_grad=sparse)
        self.head = nn.Dense(3)

    def hybrid_forward(self, ops: Any, x: Any) -> Any:
        return self.head(ops.mean(self.embed(x), axis=1))


class Recurrent(mx.gluon.HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = mx.gluon.rnn.LSTM(8, layout="NTC")
        self.head = nn.Dense(3)

    def hybrid_forward(self, ops: Any, x: Any) -> Any:
        return self.head(ops.mean(self.lstm(x), axis=1))


class Eager(mx.gluon.Block):
    """Its forward is Python, and looks at numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dense(8, in_units=4), nn.Dense(3, in_units=8)

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        return self.second(hidden if float(hidden.sum().asscalar()) > 1e9 else hidden.relu())


class Scale(mx.gluon.HybridBlock):
    """One weight, by which a function is scaled."""

    def __init__(self, function: Callable[[Any, Any], Any], value: float = 1.0) -> None:
        super().__init__()
        self._function = function
        self.scale = self.params.get("scale", shape=(1,), init=mx.init.Constant(value))

    def hybrid_forward(self, ops: Any, x: Any, scale: Any) -> Any:
        return ops.broadcast_mul(self._function(ops, x), scale)


def ready(model: Any, *shape: int, dtype: str = "float32") -> Any:
    mx.random.seed(4)
    model.initialize(mx.init.Xavier())
    model(mx.nd.zeros(shape or (1, 4), dtype=dtype))
    return model


def print_cases() -> None:
    """Run every case, and print what they give."""
    found: dict[str, Any] = {}
    for name, function in CASES.items():
        try:
            found[name] = function()
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    print(json.dumps(found))
