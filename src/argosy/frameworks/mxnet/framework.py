"""Apache MXNet's Gluon, as `frameworks/base.py` asks of every framework."""

from __future__ import annotations

import importlib
import random
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.agreement import Saved
from argosy.frameworks.base import FitOptions, Framework, LossPart, MetricPart, Step, derive_seed
from argosy.frameworks.defaults import FrameworkDefaults
from argosy.frameworks.layers import Layer
from argosy.frameworks.mxnet.describe import describe_loss, describe_metric, describe_optimizer, describe_program
from argosy.frameworks.mxnet.graph import call_block, list_arguments
from argosy.frameworks.mxnet.library import count_threads, explain, mx, set_threads, to_tensor
from argosy.frameworks.mxnet.losses import open_loss
from argosy.frameworks.mxnet.native import save_native
from argosy.frameworks.mxnet.network import build_network
from argosy.frameworks.mxnet.ship import reduce_part
from argosy.frameworks.mxnet.step import MxnetStep, to_tensors
from argosy.frameworks.mxnet.trainer import scale_rate
from argosy.frameworks.mxnet.weights import get_weights, list_parameters, set_weights
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, check_answer, fail_rows, map_tree
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "MxnetFramework"]


class MxnetFramework(FrameworkDefaults):
    """See `base.Framework`. Models are `gluon.Block`s of any inputs and outputs, on the CPU."""

    name = "mxnet"
    packages = ("mxnet",)

    def __init__(self) -> None:
        self._first: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        """Order of the rows of shuffling iterators when they were first met; see `_rewind`."""

    def is_model(self, model: object) -> bool:
        return isinstance(model, mx.gluon.Block)

    def is_loader(self, data: object) -> bool:
        return isinstance(data, mx.io.DataIter | mx.gluon.data.DataLoader)

    def read_loader(self, data: Any) -> Iterator[Any]:
        if not isinstance(data, mx.io.DataIter):
            yield from data
            return
        self._rewind(data)
        batch: Any
        for batch in data:
            num_rows = len(batch.data[0]) - (batch.pad or 0)
            parts = [[part[:num_rows] for part in given] if batch.pad else given for given in (batch.data, batch.label)]
            inputs, targets = (part[0] if len(part) == 1 else tuple(part) for part in parts)
            yield (inputs, targets) if batch.label else inputs

    def describe_loss(self, loss: object) -> LossPart | None:
        return describe_loss(loss)

    def describe_metric(self, metric: object) -> MetricPart | None:
        return describe_metric(metric)

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        return describe_optimizer(optimizer)

    def describe_program(self, model: Any) -> Any:
        return describe_program(model)

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        compute = open_loss(loss, FitOptions(is_weighted=weights is not None))
        given = (None if part is None else to_tensors(part) for part in (outputs, y, weights))
        with mx.autograd.pause():
            return float(compute(*given).asscalar())

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        return build_network(layers, input_shape, weights)

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        # MXNet has no mode in which it is deterministic; on the CPU it is.
        python, numpy = random.getstate(), np.random.get_state()
        # MXNet's state cannot be read. What it would have drawn next is what the caller's numbers follow from afterwards.
        following = int(mx.nd.random.randint(0, 2**31 - 1, shape=(1,)).asscalar())
        num_before = count_threads()
        if num_threads is not None:
            set_threads(num_threads)
        self.seed(seed)
        try:
            yield
        finally:
            if num_threads is not None:
                set_threads(num_before)
            random.setstate(python)
            np.random.set_state(numpy)
            mx.random.seed(following)

    def seed(self, seed: int) -> None:
        # Of 31 bits, which is what NumPy's and MXNet's take. Gluon's samplers shuffle by NumPy, its transforms by all three.
        drawn = derive_seed(seed)
        random.seed(drawn)
        np.random.seed(drawn)
        mx.random.seed(drawn)

    def find_seeder(self, data: Any) -> Callable[[int], None] | None:
        # Seeding takes 1.5 ms, longer than the whole step of a small model.
        return self.seed if _draws_rows(data) else None

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        return scale_rate(optimizer, factor)

    def set_threads(self, num_threads: int) -> bool:
        set_threads(num_threads)
        return True

    def reduce(self, part: Any) -> Any:
        return reduce_part(part)

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        return MxnetStep(model, loss, optimizer, options)

    def answer(self, model: Any, inputs: Tree) -> Tree:
        tensors = map_tree(to_tensor, inputs)
        try:
            with mx.autograd.pause(train_mode=False):
                outputs = call_block(model, tensors)
                # Computed in the background: what fails there is raised where the result is asked for.
                outputs = map_tree(lambda leaf: leaf.asnumpy() if isinstance(leaf, mx.nd.NDArray) else leaf, outputs)
        except Exception as error:  # The edge of a model's own code.
            raise fail_rows(inputs, explain(error)) from error
        check_answer(outputs)
        return outputs

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        is_double = any(np.dtype(own.dtype) == np.float64 for own in list_parameters(model).values())
        return np.dtype(np.float64 if is_double else np.float32)

    def get_weights(self, model: Any) -> Arrays:
        return get_weights(model)

    def set_weights(self, model: Any, weights: Arrays) -> None:
        set_weights(model, weights)

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        return tuple(name for name, own in list_parameters(model).items() if own.grad_req != "null")

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        return list_arguments(model)

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        # Imported here: training needs no onnx.
        export: Any = importlib.import_module("argosy.frameworks.mxnet.export")
        export.export_onnx(model, inputs, path, ports)

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        return save_native(model, inputs, folder, ports, ports.run(partial(self.answer, model)))

    def _rewind(self, data: Any) -> None:
        """Begin an epoch.

        NDArrayIter shuffles the order of the epoch before: for a resumed run to see the same rows, every epoch is made to
        shuffle the order that the iterator came with.
        """
        if isinstance(data, mx.io.NDArrayIter):
            if data.last_batch_handle == "roll_over":
                detail = "an epoch of an NDArrayIter that rolls rows over depends on the one before; let it pad or discard them"
                raise InputError("bad_data", detail=detail)
            idx, data.data, data.label = self._first.setdefault(data, (data.idx.copy(), data.data, data.label))
            data.idx = idx.copy()
        data.reset()


def _draws_rows(data: Any) -> bool:
    """Say whether a loader may draw random numbers batch by batch: all but the order, which is drawn when an epoch begins."""
    if isinstance(data, mx.io.DataIter):
        return not isinstance(data, mx.io.NDArrayIter)
    return type(data._dataset) not in (mx.gluon.data.ArrayDataset, mx.gluon.data.SimpleDataset)


FRAMEWORK: Final[Framework] = MxnetFramework()
