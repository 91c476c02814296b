"""Keras, as `frameworks/base.py` asks of every framework.

Keras' stubs are partial, so the module is taken as `Any`. The backend is the process' choice (KERAS_BACKEND).
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.agreement import Saved
from argosy.frameworks.base import (
    FitOptions,
    Framework,
    LossPart,
    MetricPart,
    Step,
    derive_seed,
)
from argosy.frameworks.defaults import FrameworkDefaults
from argosy.frameworks.fitting import Listener
from argosy.frameworks.keras.arrays import name_weights, narrow_integers, to_numpy, to_tensors
from argosy.frameworks.keras.callbacks import open_callbacks
from argosy.frameworks.keras.calling import call_model, list_arguments, match_inputs, predict_batch
from argosy.frameworks.keras.compiled import list_metrics, read_factors, read_loss
from argosy.frameworks.keras.describe import (
    describe_callback,
    describe_loss,
    describe_metric,
    describe_optimizer,
    describe_program,
)
from argosy.frameworks.keras.files import export_onnx, save_native
from argosy.frameworks.keras.losses import open_loss
from argosy.frameworks.keras.network import build_network, check_precision
from argosy.frameworks.keras.session import bind_backend, keep_generator
from argosy.frameworks.keras.ship import reduce_model
from argosy.frameworks.keras.step import KerasStep
from argosy.frameworks.layers import Layer
from argosy.frameworks.ports import Ports
from argosy.frameworks.schedules import release_schedules, scale_rate
from argosy.frameworks.trees import Tree, check_answer, fail_rows, list_leaves, map_tree
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "KerasFramework"]

keras: Any = importlib.import_module("keras")


class KerasFramework(FrameworkDefaults):
    """See `base.Framework`. Models are `keras.Model`s on the CPU.

    Random numbers of layers follow from a step's number if they are drawn with a `keras.random.SeedGenerator` of the
    layer's, as all of Keras' own do; those of `keras.random` without one follow from the session's seed at best.
    """

    name = "keras"
    training_methods = (
        "compute_loss",
        "compute_metrics",
        "fit",
        "make_train_function",
        "predict_step",
        "test_step",
        "train_on_batch",
        "train_step",
    )

    @property
    def packages(self) -> tuple[str, ...]:
        backend = keras.backend.backend()
        return ("keras", *(("tensorflow", "tensorflow-cpu") if backend == "tensorflow" else (backend,)))

    def is_model(self, model: object) -> bool:
        return isinstance(model, keras.Model)

    def is_loader(self, data: object) -> bool:
        return isinstance(data, keras.utils.PyDataset)

    def read_loader(self, data: Any) -> Iterator[Any]:
        num_batches = data.num_batches
        if num_batches is None:
            raise InputError(
                "bad_data", detail="the PyDataset never ends: its num_batches is None; give it the length of an epoch"
            )
        data.on_epoch_begin()
        for index in range(num_batches):
            yield data[index]
        data.on_epoch_end()

    def get_compiled(self, model: Any) -> tuple[object, object]:
        return read_loss(model), model.optimizer if model.compiled else None

    def get_compiled_weights(self, model: Any) -> Tree:
        return read_factors(model)

    def open_callbacks(
        self, callbacks: Sequence[Any], model: Any, step: Step, params: Mapping[str, Any], measured: Collection[str] | None
    ) -> Listener:
        return open_callbacks(callbacks, model, step, params, measured)

    def describe_callback(self, callback: Any) -> dict[str, Any]:
        return describe_callback(callback)

    def list_compiled_metrics(self, model: Any) -> tuple[object, ...] | dict[str, list[object]]:
        return list_metrics(model)

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_metric(self, metric: object) -> MetricPart | None:
        return describe_metric(metric)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        given = map(to_tensors, (outputs, y, weights))
        return float(to_numpy(open_loss(loss, FitOptions(is_weighted=weights is not None))(*given)))

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        return build_network(layers, input_shape, weights)

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        # Layers draw their first seeds from Python's generator, and datasets what they like from NumPy's.
        before = random.getstate(), np.random.get_state()
        with keep_generator(), bind_backend(seed, num_threads):
            try:
                self.seed(seed)
                yield
            finally:
                release_schedules()
                random.setstate(before[0])
                np.random.set_state(before[1])

    def seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(derive_seed(seed))

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        return scale_rate(optimizer, factor)

    def set_threads(self, num_threads: int) -> bool:
        if keras.backend.backend() != "torch":
            return False
        importlib.import_module("torch").set_num_threads(num_threads)
        return True

    def reduce(self, part: Any) -> Any:
        return reduce_model(part) if isinstance(part, keras.Model) else None

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return KerasStep(model, loss, optimizer, options)

    def answer(self, model: Any, inputs: Tree) -> Tree:
        given = map_tree(narrow_integers, inputs)
        try:
            if not model.built:
                call_model(model, map_tree(keras.ops.convert_to_tensor, given), training=False)
            outputs = predict_batch(model, given)
            outputs = map_tree(lambda leaf: to_numpy(leaf) if hasattr(leaf, "shape") else leaf, outputs)
        except Exception as error:  # Those of the backends share no base but this one.
            raise fail_rows(inputs, error) from error
        check_answer(outputs)
        return outputs

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        kinds = [variable.dtype for variable in model.weights] or [layer.variable_dtype for layer in model.layers]
        dtype = np.dtype(np.float64 if "float64" in kinds else np.float32)
        check_precision(dtype)
        return dtype

    def get_weights(self, model: Any) -> Arrays:
        return {name: to_numpy(variable) for name, variable in name_weights(model).items()}

    def set_weights(self, model: Any, weights: Arrays) -> None:
        own = name_weights(model)
        for name, array in weights.items():
            own[name].assign(array)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        trained = {id(variable) for variable in model.trainable_variables}
        return tuple(name for name, variable in name_weights(model).items() if id(variable) in trained)

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        return list_arguments(model)

    def list_free_axes(self, model: Any, inputs: Tree) -> list[tuple[int, ...]]:
        leaves, tensors = list_leaves(inputs), match_inputs(model, inputs)
        if [len(tensor.shape) for tensor in tensors] != [leaf.ndim for leaf in leaves]:
            return [() for _ in leaves]
        return [tuple(axis for axis, length in enumerate(tensor.shape) if axis and length is None) for tensor in tensors]

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        export_onnx(model, inputs, path, ports)

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        return save_native(model, inputs, folder, ports, ports.run(partial(self.answer, model)))


FRAMEWORK: Final[Framework] = KerasFramework()
