"""PyTorch, as `frameworks/base.py` asks of every framework.

torch's stubs are partial, so the module is taken as `Any`; tensors are annotated where it helps the reader.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.agreement import Saved
from argosy.frameworks.base import FitOptions, Framework, LossPart, Step, derive_seed
from argosy.frameworks.defaults import FrameworkDefaults
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, list_shapes, name_layers
from argosy.frameworks.ports import Ports
from argosy.frameworks.torch.describe import describe_loss, describe_optimizer, describe_program
from argosy.frameworks.torch.files import export_onnx, save_native
from argosy.frameworks.torch.losses import open_loss
from argosy.frameworks.torch.movers import scale_rate
from argosy.frameworks.torch.step import TorchStep, get_weights, set_weights
from argosy.frameworks.trees import Tree, check_answer, fail_rows, map_tree, name_arguments, spread
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "TorchFramework"]

torch: Any = importlib.import_module("torch")

_DEFAULT_COLLATE: Final = torch.utils.data.default_collate
_SAMPLERS: Final = (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler)


class TorchFramework(FrameworkDefaults):
    """See `base.Framework`. Models are `torch.nn.Module`s on the CPU."""

    name = "torch"
    packages = ("torch",)
    training_methods = ("training_step", "train_step")
    """Of Lightning's modules, and of others'."""

    def is_model(self, model: object) -> bool:
        return isinstance(model, torch.nn.Module)

    def is_loader(self, data: object) -> bool:
        return isinstance(data, torch.utils.data.DataLoader)

    def read_loader(self, data: Any) -> Iterator[Any]:
        return iter(data)

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        return scale_rate(optimizer, factor)

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        def copy(tree: Tree) -> Tree:
            return map_tree(lambda leaf: torch.from_numpy(np.array(leaf)), tree)

        compute = open_loss(loss, FitOptions(is_weighted=weights is not None))
        with torch.no_grad():
            return float(compute(copy(outputs), copy(y), copy(weights)))

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
        # Transforms draw from all three. That of the processor alone: to seed all devices takes ten times as long.
        random.seed(seed)
        np.random.seed(derive_seed(seed))
        torch.default_generator.manual_seed(seed)

    def find_seeder(self, data: Any) -> Callable[[int], None] | None:
        # Rows that are tensors already draw nothing, and the order is drawn when an epoch begins.
        is_still = type(data.dataset) is torch.utils.data.TensorDataset and data.collate_fn is _DEFAULT_COLLATE
        return None if is_still and type(data.sampler) in _SAMPLERS else torch.default_generator.manual_seed

    def set_threads(self, num_threads: int) -> bool:
        torch.set_num_threads(num_threads)
        return True

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return TorchStep(model, loss, optimizer, options)

    def answer(self, model: Any, inputs: Tree) -> Tree:
        model.eval()
        try:
            # Copies: torch warns of read-only arrays.
            given, named = spread(map_tree(lambda array: torch.from_numpy(np.array(array)), inputs))
            with torch.no_grad():
                outputs = map_tree(_to_array, model(*given, **named))
        except Exception as error:  # The edge of a model's own code.
            raise fail_rows(inputs, error) from error
        check_answer(outputs)
        return outputs

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        is_double = any(weight.dtype == torch.float64 for weight in model.parameters())
        return np.dtype(np.float64 if is_double else np.float32)

    def get_weights(self, model: Any) -> Arrays:
        return get_weights(model)

    def set_weights(self, model: Any, weights: Arrays) -> None:
        set_weights(model, weights)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        return tuple(name for name, weight in model.named_parameters() if weight.requires_grad)

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        return name_arguments(model.forward)

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        return save_native(model, inputs, folder, ports, ports.run(partial(self.answer, model)))

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        export_onnx(model, inputs, path, ports)


def _to_array(leaf: Any) -> Any:
    return leaf.detach().numpy() if torch.is_tensor(leaf) else leaf


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
