"""PyTorch, as `frameworks/base.py` asks of every framework.

torch's stubs are partial, so the module is taken as `Any`; tensors are annotated where it helps the reader.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import FitOptions, Framework, LossPart, MetricPart, Step, fail_answer, fail_rows
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.frameworks.torch.describe import describe_loss, describe_optimizer, describe_program
from argosy.frameworks.torch.files import save_native
from argosy.frameworks.torch.step import TorchStep, get_weights, set_weights
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "TorchFramework"]

torch: Any = importlib.import_module("torch")

_PREDICT_ROWS: Final = 256
"""Rows of one forward pass of `predict`: bounds its memory, and is large enough to be fast."""

_OPSET: Final = 17
"""Of the ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""

_EXPORTER_DEPRECATIONS: Final = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)


class TorchFramework:
    """See `base.Framework`. Models are `torch.nn.Module`s with one input and one output tensor, on the CPU."""

    name = "torch"
    packages = ("torch",)
    draws_eagerly = True
    training_methods = ("training_step", "train_step")
    """Of Lightning's modules, and of others'."""

    def is_model(self, model: object) -> bool:
        return isinstance(model, torch.nn.Module)

    def is_loader(self, data: object) -> bool:
        return isinstance(data, torch.utils.data.DataLoader)

    def read_loader(self, data: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        batch: Any
        for batch in data:
            parts: list[Any] = [*batch] if isinstance(batch, list | tuple) else []
            if [torch.is_tensor(part) for part in parts] != [True, True]:
                raise InputError("bad_data", detail=f"the DataLoader gives {_describe(batch)}, expected pairs of tensors (x, y)")
            yield parts[0].numpy(), parts[1].numpy()

    def get_compiled(self, model: Any) -> tuple[object, object]:
        return None, None

    def list_compiled_metrics(self, model: Any) -> tuple[object, ...]:
        return ()

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_metric(self, metric: object) -> MetricPart | None:
        return None

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: NDArray[Any], y: NDArray[Any]) -> float:
        with torch.no_grad():
            return float(loss(torch.from_numpy(np.array(outputs)), torch.from_numpy(np.array(y))))

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        model = torch.nn.Sequential()
        shapes = list_shapes(layers, input_shape)
        for index, (name, layer) in enumerate(zip(name_layers(layers), layers, strict=True)):
            model.add_module(name, _build_layer(layer, shapes[index]))
        model.to(torch.from_numpy(next(iter(weights.values()))).dtype)
        # torch keeps the matrix of a dense layer as (out, in).
        flipped = {name: array.T if array.ndim == 2 else array for name, array in weights.items()}
        self.set_weights(model, flipped)
        return model

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        num_before = torch.get_num_threads()
        was_strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.set_num_threads(num_threads or num_before)
        # An operator that has no deterministic kernel is worth training with, and is warned of.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield
        finally:
            torch.use_deterministic_algorithms(was_strict[0], warn_only=was_strict[1])
            torch.set_num_threads(num_before)

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return TorchStep(model, loss, optimizer, options)

    def predict(self, model: Any, x: NDArray[Any]) -> NDArray[Any]:
        model.eval()
        parts: list[NDArray[Any]] = []
        with torch.no_grad():
            for start in range(0, len(x), _PREDICT_ROWS):
                rows = np.array(x[start : start + _PREDICT_ROWS])  # A copy: torch warns of read-only arrays.
                try:
                    outputs = model(torch.from_numpy(rows))
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    raise fail_rows(rows, error) from error
                if not torch.is_tensor(outputs) or outputs.ndim < 1 or len(outputs) != len(rows):
                    raise fail_answer(len(rows), _describe(outputs))
                parts.append(outputs.numpy())
        return np.concatenate(parts)

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        is_double = any(weight.dtype == torch.float64 for weight in model.parameters())
        return np.dtype(np.float64 if is_double else np.float32)

    def get_weights(self, model: Any) -> Arrays:
        return get_weights(model)

    def set_weights(self, model: Any, weights: Arrays) -> None:
        set_weights(model, weights)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        return tuple(name for name, weight in model.named_parameters() if weight.requires_grad)

    def save_native(self, model: Any, rows: NDArray[Any], folder: Path) -> str:
        return save_native(model, rows, folder)

    def export_onnx(self, model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str) -> None:
        model.eval()
        # Two rows: a single one lets the tracer take its 1 for a constant that broadcasts.
        traced = torch.from_numpy(rows[np.arange(2) % len(rows)])
        # It prints the graph of a failed export.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            for text in _EXPORTER_DEPRECATIONS:
                warnings.filterwarnings("ignore", message=text, category=DeprecationWarning)
            try:
                # The TorchScript exporter, deprecated though it is: it needs no onnxscript, takes 0.1 s where the
                # other takes 2 to 6, and keeps the batch dynamic. What it gets wrong, the check of the export finds.
                torch.onnx.export(
                    model,
                    (traced,),
                    str(path),
                    dynamo=False,
                    opset_version=_OPSET,
                    input_names=[input_name],
                    output_names=[output_name],
                    dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
                )
            except Exception as error:  # Of the exporter, or of the model's own code when it is traced: any.
                raise ModelError("export_failed", detail=str(error).strip()) from error


def _describe(value: Any) -> str:
    if torch.is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__qualname__


def _build_layer(layer: Layer, shape: tuple[int, ...]) -> Any:
    """Make a layer for rows of this shape."""
    nn = torch.nn
    match layer:
        case Conv(channels, kernel):
            return nn.Conv2d(shape[0], channels, kernel, padding=kernel // 2)
        case BatchNorm():
            return nn.BatchNorm2d(shape[0])
        case Relu():
            return nn.ReLU()
        case MaxPool(size):
            return nn.MaxPool2d(size)
        case Flatten():
            return nn.Flatten()
        case Dropout(rate):
            return nn.Dropout(rate)
        case Dense(units):
            return nn.Linear(shape[0], units)


FRAMEWORK: Final[Framework] = TorchFramework()
