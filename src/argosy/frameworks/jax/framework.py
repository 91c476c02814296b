"""JAX with flax.nnx and optax, as `frameworks/base.py` asks of every framework.

Their types are partial, so the modules are taken as `Any`.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.agreement import Saved
from argosy.frameworks.base import FitOptions, Framework, LossPart, MetricPart, Step, name_kind
from argosy.frameworks.defaults import FrameworkDefaults
from argosy.frameworks.jax.describe import describe_loss, describe_metric, describe_optimizer, describe_program
from argosy.frameworks.jax.export import export_onnx, save_native
from argosy.frameworks.jax.losses import open_loss
from argosy.frameworks.jax.movers import scale_rate
from argosy.frameworks.jax.network import build_network
from argosy.frameworks.jax.predict import answer, predict
from argosy.frameworks.jax.state import list_trained, open_precision, prepare, set_weights, show, take_apart
from argosy.frameworks.jax.step import JaxStep
from argosy.frameworks.layers import Layer
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, list_leaves, map_tree, name_arguments
from argosy.runtimes.jax import begin, count_threads
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "JaxFramework"]

jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")
optax: Any = importlib.import_module("optax")


class JaxFramework(FrameworkDefaults):
    """See `base.Framework`. Models are `flax.nnx.Module`s of any inputs and outputs, on the CPU.

    Losses are functions of outputs and targets, such as those of `optax.losses`; what they give for rows is averaged.
    Optimizers are gradient transformations of optax, metrics those of `nnx.metrics` that take logits and labels. JAX has no
    loaders, and no random numbers but those of a model's own streams.
    """

    name = "jax"
    packages = ("jax", "jaxlib", "flax", "optax")

    def is_model(self, model: object) -> bool:
        return isinstance(model, nnx.Module)

    def is_loader(self, data: object) -> bool:
        return False

    def read_loader(self, data: Any) -> Iterator[Any]:
        raise InputError("bad_data", detail=f"JAX has no loaders; {name_kind(data)} is none")

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_metric(self, metric: object) -> MetricPart | None:
        return describe_metric(metric)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        is_double = any(leaf.dtype == np.float64 for leaf in list_leaves(outputs))
        with open_precision(is_double=is_double):
            given, right = (map_tree(lambda leaf: jnp.asarray(prepare(np.asarray(leaf), "y")), part) for part in (outputs, y))
            compute = open_loss(loss, FitOptions(is_weighted=weights is not None))
            return float(compute(given, right, None if weights is None else jnp.asarray(weights)))

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        return build_network(layers, input_shape, weights)

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        """See `base.Framework.session`. XLA is deterministic on a CPU as it is."""
        if num_threads is not None:
            try:
                begin(num_threads)
            except ValueError as error:
                expected = f"None or {count_threads()}: {error}; set PJRT_NPROC before the process starts"
                raise InputError("bad_option", option="num_threads", got=num_threads, expected=expected) from error
        self.seed(seed)
        yield

    def seed(self, seed: int) -> None:
        """Do nothing: JAX has no random numbers but those that a model or a program asks of a key of its own."""

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        return scale_rate(optimizer, factor)

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return JaxStep(model, loss, optimizer, options)

    def answer(self, model: Any, inputs: Tree) -> Tree:
        return answer(model, inputs)

    def predict(self, model: Any, inputs: Tree) -> Tree:
        return predict(model, inputs)

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        return np.dtype(np.float64 if take_apart(model, is_training=False).is_double else np.float32)

    def get_weights(self, model: Any) -> Arrays:
        return {name: show(leaf) for name, leaf in take_apart(model, is_training=False).items()}

    def set_weights(self, model: Any, weights: Arrays) -> None:
        set_weights(model, weights)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        return list_trained(model)

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        return name_arguments(model.__call__)

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        export_onnx(model, inputs, path, ports)

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        return save_native(model, inputs, folder, ports)


FRAMEWORK: Final[Framework] = JaxFramework()
