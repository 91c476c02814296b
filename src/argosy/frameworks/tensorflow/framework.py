"""TensorFlow, as `frameworks/base.py` asks of every framework.

TensorFlow's stubs are partial, so the module is taken as `Any`.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.agreement import Saved, check_saved
from argosy.frameworks.base import (
    FitOptions,
    Framework,
    LossPart,
    Step,
    derive_seed,
)
from argosy.frameworks.defaults import FrameworkDefaults
from argosy.frameworks.layers import Layer
from argosy.frameworks.ports import Ports
from argosy.frameworks.schedules import release_schedules, scale_rate
from argosy.frameworks.tensorflow.datasets import Epochs, read_dataset
from argosy.frameworks.tensorflow.describe import describe_loss, describe_optimizer, describe_program
from argosy.frameworks.tensorflow.files import SAVED_MODEL, export_graph, save_graph
from argosy.frameworks.tensorflow.losses import open_loss
from argosy.frameworks.tensorflow.network import Network
from argosy.frameworks.tensorflow.step import ModuleStep, call_module, name_variables, to_tensors
from argosy.frameworks.trees import Tree, check_answer, fail_rows, map_tree, name_arguments
from argosy.runtimes.tensorflow import TensorFlowRuntime
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "TensorFlowFramework", "bound_threads", "seed_graphs"]

tf: Any = importlib.import_module("tensorflow")

_SAVED_TOLERANCE: Final = 1e-4
"""Largest difference of a saved model's answers, relative to their largest magnitude; rounding is 1e-7 to 1e-6."""


class TensorFlowFramework(FrameworkDefaults):
    """See `base.Framework`. Models are `tf.Module`s with any inputs and outputs of `__call__`, on the CPU.

    `__call__` may take `training`, a boolean, and `seed`, two integers for the operators of `tf.random` whose names
    begin with `stateless`. Random numbers of any other kind inside a module cannot follow from a step's number,
    so that a run that is resumed goes on with other ones. The same holds for the order in which a `tf.data.Dataset`
    is shuffled, unless by `shuffle(..., seed=1, reshuffle_each_iteration=False)`.
    """

    name = "tensorflow"
    packages = ("tensorflow", "tensorflow-cpu")

    def is_model(self, model: object) -> bool:
        return isinstance(model, tf.Module) and callable(model)

    def is_loader(self, data: object) -> bool:
        return isinstance(data, tf.data.Dataset)

    def find_opener(self, data: Any) -> Callable[[int], Any] | None:
        return Epochs(data).open

    def read_loader(self, data: Any) -> Iterator[Any]:
        return read_dataset(data)

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        given = [None if part is None else to_tensors(part) for part in (outputs, y, weights)]
        return float(open_loss(loss, FitOptions(is_weighted=weights is not None))(*given))

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        return Network(layers, input_shape, weights)

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        # Strict determinism (enable_op_determinism) is not asked for: it cannot be taken back, and on the CPU it changes
        # nothing (convolutions, normalisation, embeddings and recurrent layers gave the same bits in every run without it).
        bound_threads(num_threads)
        with seed_graphs(seed):
            try:
                yield
            finally:
                release_schedules()

    def seed(self, seed: int) -> None:
        """Seed what generators draw from: the seeds of a dataset's own operations are set when it is made.

        To set TensorFlow's global one anew changes none of them, and empties caches: an epoch of a small model took ten times
        as long.
        """
        random.seed(seed)
        np.random.seed(derive_seed(seed))

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        return scale_rate(optimizer, factor)

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return ModuleStep(model, loss, optimizer, options)

    def answer(self, model: Any, inputs: Tree) -> Tree:
        try:
            outputs = call_module(model, map_tree(tf.convert_to_tensor, inputs), training=False)
            outputs = map_tree(lambda leaf: leaf.numpy() if tf.is_tensor(leaf) else leaf, outputs)
        except Exception as error:  # The edge of a model's own code.
            raise fail_rows(inputs, error) from error
        check_answer(outputs)
        return outputs

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        is_double = any(variable.dtype == tf.float64 for variable in model.variables)
        return np.dtype(np.float64 if is_double else np.float32)

    def get_weights(self, model: Any) -> Arrays:
        return {name: variable.numpy().copy() for name, variable in name_variables(model).items()}

    def set_weights(self, model: Any, weights: Arrays) -> None:
        own = name_variables(model)
        for name, array in weights.items():
            own[name].assign(array)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        return tuple(name for name, variable in name_variables(model).items() if variable.trainable)

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        return name_arguments(model.__call__, but=("training", "seed"))

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        export_graph(lambda tree: call_module(model, tree, training=False), inputs, path, ports)

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        save_graph(lambda tree: call_module(model, tree, training=False), model, inputs, folder, ports)
        saved, options = TensorFlowRuntime(), {"inputs": ports.input_names, "outputs": ports.output_names}
        try:
            saved.open(folder, SAVED_MODEL, options["inputs"], options["outputs"])
        except RuntimeError as error:
            raise ModelError("save_failed", detail=str(error)) from error
        expect, trials = ports.run(partial(self.answer, model)), ports.draw_trials(inputs)
        return check_saved(SAVED_MODEL, options, saved.infer, expect, trials, _SAVED_TOLERANCE, has_rows=ports.has_rows)


def bound_threads(num_threads: int | None) -> None:
    """Bound TensorFlow's threads, those of one operator and those of operators side by side; None leaves them.

    Raises:
        InputError: `bad_option`, TensorFlow has started with another number.
    """
    if num_threads is None:
        return
    threading = tf.config.threading
    num_cores = len(os.sched_getaffinity(0))
    for get, change in (
        (threading.get_intra_op_parallelism_threads, threading.set_intra_op_parallelism_threads),
        (threading.get_inter_op_parallelism_threads, threading.set_inter_op_parallelism_threads),
    ):
        if (get() or num_cores) == num_threads:
            continue
        try:
            change(num_threads)
        except RuntimeError as error:
            expected = (
                f"{get() or num_cores}, with which TensorFlow has started; for another number call before the model is made "
                "tf.config.threading.set_intra_op_parallelism_threads and set_inter_op_parallelism_threads"
            )
            raise InputError("bad_option", option="num_threads", got=num_threads, expected=expected) from error


@contextmanager
def seed_graphs(seed: int) -> Generator[None]:
    """Seed TensorFlow's global random numbers for a block.

    Its seed cannot be read, so after the block the caller goes on from a number that their own seed drew.
    """
    after = int(tf.random.uniform((), maxval=2**31 - 1, dtype=tf.int32))
    tf.random.set_seed(derive_seed(seed))
    try:
        yield
    finally:
        tf.random.set_seed(after)


FRAMEWORK: Final[Framework] = TensorFlowFramework()
