"""What Argosy needs of a training framework, and which ones there are.

`frameworks/X.py` is the sole importer of framework X and offers one object, `FRAMEWORK`. It is imported when
a model of it turns up, so that a process without torch never pays for torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.agreement import Saved
from argosy.frameworks.fitting import (
    Batch,
    Fit,
    FitOptions,
    Precision,
    Step,
    check_state,
    derive_seed,
    fail_not_finite,
)
from argosy.frameworks.layers import Layer
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree
from argosy.signature import Arrays

__all__ = [
    "FRAMEWORKS",
    "Batch",
    "Fit",
    "FitOptions",
    "Framework",
    "LossPart",
    "MetricPart",
    "Precision",
    "Step",
    "check_state",
    "count_weights",
    "derive_seed",
    "fail_not_finite",
    "framework_of",
    "get_framework",
    "import_extra",
    "loader_framework",
    "name_kind",
]


class LossPart(NamedTuple):
    """What a framework says of one of its own losses."""

    name: str
    parameters: dict[str, Any]
    """JSON data."""
    takes_logits: bool
    """The model's outputs are unbounded; otherwise they are probabilities or values."""


class MetricPart(NamedTuple):
    """What a framework says of one of its own metrics."""

    name: str
    compute: Callable[[NDArray[Any], NDArray[Any]], float]
    """From outputs and targets."""
    is_mean: bool
    """A mean over rows, so that means of mini-batches make that of an epoch."""


class Framework(Protocol):
    """The same few functions for every framework. A `model` is always the framework's own object."""

    @property
    def name(self) -> str:
        """Key of `FRAMEWORKS`."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions belong in a lineage."""
        ...

    # What users have in hand.

    def is_model(self, model: object) -> bool:
        """Say whether this is a model of this framework."""
        ...

    def is_loader(self, data: object) -> bool:
        """Say whether this is something of this framework that gives mini-batches, such as a DataLoader."""
        ...

    def find_opener(self, data: Any) -> Callable[[int], Any] | None:
        """Give what opens a loader for an epoch (counted from 1; in any order), where its own random numbers go on in the next.

        What that gives, `read_loader` reads. None where there are none such: then the loader itself is read.
        """
        ...

    def read_loader(self, data: Any) -> Iterator[Any]:
        """Give the elements of one epoch, batches as the loader makes them; rows that only fill the last one up are left out.

        Leaves are arrays or the framework's tensors; the form is the loader's.

        Raises:
            InputError: `bad_data`, the loader never ends, or gives no batches.
        """
        ...

    @property
    def training_methods(self) -> tuple[str, ...]:
        """Methods by which a model of this framework says how it is trained, which `train` does not call."""
        ...

    def get_compiled(self, model: Any) -> tuple[object, object]:
        """Give the loss and the optimizer that a model was compiled with; None for what it has not."""
        ...

    def get_compiled_weights(self, model: Any) -> Tree:
        """Give the factors of the losses that a model was compiled with, in their form; None if it has none."""
        ...

    def list_compiled_metrics(self, model: Any) -> Any:
        """Give the metrics that a model was compiled with: by output, if there are several."""
        ...

    def describe_program(self, model: Any) -> Any:
        """Describe all of a model but the values of its weights: layers with their settings, and code; JSON data.

        It is the same in every process that builds the model alike.
        """
        ...

    def describe_loss(self, loss: object) -> LossPart | None:
        """Describe a loss of the framework's own; None if it is none."""
        ...

    def describe_optimizer(self, optimizer: object) -> dict[str, Any] | None:
        """Describe an optimizer of the framework's own, `name` and parameters as JSON data; None if it is none."""
        ...

    def describe_metric(self, metric: object) -> MetricPart | None:
        """Describe a metric of the framework's own; None if it is none."""
        ...

    def measure_loss(self, loss: Any, outputs: Tree, y: Tree, weights: NDArray[Any] | None = None) -> float:
        """Compute a loss of the framework's own from outputs; with weights of the rows where it has the ability `weights`."""
        ...

    # Build and fit.

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...], weights: Arrays) -> Any:
        """Build a model from a neutral description.

        Args:
            layers: see `layers.py`.
            input_shape: of one row, channels first; every framework's network takes rows so.
            weights: of `layers.draw_weights`, in its layout; copied. Their type is the network's.

        Returns:
            A model whose `list_trainable` follows the order of the layers, each one's weight before its bias.
        """
        ...

    def session(self, seed: int, num_threads: int | None) -> AbstractContextManager[None]:
        """Seed the framework's random numbers, make it deterministic, bound its threads; restore the caller's after the block.

        None leaves the number of threads to the framework.

        Raises:
            InputError: `bad_option`, the number of threads cannot be changed any more in this process.
        """
        ...

    def seed(self, seed: int) -> None:
        """Seed the global random numbers that loaders and models draw from, before an epoch."""
        ...

    def find_seeder(self, data: Any) -> Callable[[int], None] | None:
        """Give what seeds those of them that both steps and this loader draw from, batch by batch; None where there are none."""
        ...

    def scale_rate(self, optimizer: Any, factor: float) -> bool:
        """Multiply the learning rate of an optimizer of the framework's own; False if it has none to set."""
        ...

    def set_threads(self, num_threads: int) -> bool:
        """Compute with so many threads from now on, in a session; False where their number cannot be changed any more."""
        ...

    def reduce(self, part: Any) -> Any:
        """Say how an object of the framework's is pickled for another worker, as `__reduce__` does; None: as it says itself."""
        ...

    def build_step(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> Step:
        """Start to fit a model, in place.

        Args:
            model: any.
            loss: a name of `train.losses.LOSSES`, or the framework's own; of several outputs a tree of these, in a form that
                the outputs have, too; a function is given outputs and targets as they stand at its place. None with a step of
                the user's own.
            optimizer: a `GradientOptimizer`, or the framework's own; or several by name, see `fitting.share_weights`.
            options: see there.

        Raises:
            InputError: `bad_option`, the model has no weights to train, or an option that the framework cannot follow.
        """
        ...

    def answer(self, model: Any, inputs: Tree) -> Tree:
        """Run a model on one request as it would be served (no dropout), in one piece.

        Args:
            model: of any inputs and outputs.
            inputs: arrays, in the form in which the model takes them.

        Returns:
            Arrays, in the form in which the model gives them.

        Raises:
            InputError: `bad_data`, the model fails on these inputs, or gives anything but tensors.
        """
        ...

    def predict(self, model: Any, inputs: Tree) -> Tree:
        """Run a model on rows, as `answer` does, in bounded pieces.

        Raises:
            InputError: `bad_data`, as for `answer`; or the outputs have not as many rows as the inputs.
        """
        ...

    def float_dtype(self, model: Any) -> np.dtype[Any]:
        """Give the type in which the model takes numbers with a fraction: float32, or float64 if its weights are."""
        ...

    def get_weights(self, model: Any) -> Arrays:
        """Give copies of everything that training changes, by the framework's names."""
        ...

    def set_weights(self, model: Any, weights: Arrays) -> None:
        """Set some or all of what `get_weights` gives."""
        ...

    def list_trainable(self, model: Any) -> tuple[str, ...]:
        """Name the weights that an optimizer changes."""
        ...

    # Out of the framework.

    def list_arguments(self, model: Any) -> tuple[str, ...]:
        """Name the inputs of a model in the order in which a call takes them, as far as it tells."""
        ...

    def list_free_axes(self, model: Any, inputs: Tree) -> list[tuple[int, ...]]:
        """List the axes that a model itself says are of any length, beside the first; for each leaf of its inputs."""
        ...

    def export_onnx(self, model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
        """Write a model as an ONNX file, whose tensors have the names of the ports, and their open axes any length.

        Args:
            model: of any inputs and outputs.
            inputs: real ones, to trace; a few rows are enough.
            path: of the file to write.
            ports: of the model.

        Raises:
            ModelError: `export_failed`, ONNX has no word for something in the model, or a tracer would write down one of
                its ways alone.
        """
        ...

    def save_native(self, model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
        """Write a model into an empty folder in the form that `runtimes/NAME.py` loads; no pickle.

        What was written is loaded, and held against the model on `trials.draw_trials`.

        Args:
            model: as for `export_onnx`.
            inputs: real ones.
            folder: to write into.
            ports: of the model.

        Returns:
            The file's name that the runtime is told to load, how it was held against the model, and the runtime's options.

        Raises:
            ModelError: `save_failed`.
        """
        ...


class _Entry(NamedTuple):
    module: str
    packages: tuple[str, ...]
    """Whose classes its models, losses, optimizers and loaders derive from."""
    needs: tuple[str, ...]
    """What must be importable."""


# In the order in which a model is looked up: a Keras model derives from the classes of its backend, too.
FRAMEWORKS: Final[dict[str, _Entry]] = {
    "keras": _Entry("argosy.frameworks.keras", ("keras",), ("keras",)),
    "torch": _Entry("argosy.frameworks.torch", ("torch",), ("torch",)),
    "tensorflow": _Entry("argosy.frameworks.tensorflow", ("tensorflow",), ("tensorflow",)),
    "mxnet": _Entry("argosy.frameworks.mxnet", ("mxnet",), ("mxnet",)),
    "jax": _Entry("argosy.frameworks.jax", ("flax", "jax", "optax"), ("flax", "optax")),
}


def get_framework(name: str) -> Framework:
    """Import a framework by name.

    Raises:
        InputError: `unknown_choice`, no such framework; `missing_extra`, it is not installed.
    """
    if name not in FRAMEWORKS:
        raise InputError("unknown_choice", kind="framework", got=name, known=list_choices(FRAMEWORKS))
    entry = FRAMEWORKS[name]
    for package in entry.needs:
        import_extra(package, feature=f"Framework {name}", extra=name)
    framework: Framework = importlib.import_module(entry.module).FRAMEWORK
    return framework


def framework_of(model: object) -> Framework:
    """Find the framework that a model belongs to, importing no other.

    Raises:
        InputError: `bad_option`, it is a model of none.
    """
    for framework in _candidates(model):
        if framework.is_model(model):
            return framework
    raise InputError("bad_option", option="model", got=name_kind(model), expected=f"a model of {list_choices(FRAMEWORKS)}")


def loader_framework(data: object) -> Framework | None:
    """Find the framework whose loader this is; None if it is none."""
    return next((framework for framework in _candidates(data) if framework.is_loader(data)), None)


def _candidates(value: object) -> Iterator[Framework]:
    """Give the frameworks that a value's classes stem from; those are imported already, since the value is there."""
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    for name, entry in FRAMEWORKS.items():
        if packages & set(entry.packages):
            yield get_framework(name)


def name_kind(value: object) -> str:
    """Name a value's class for a message."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def count_weights(framework: Framework, model: Any) -> int:
    """Count the numbers that an optimizer changes."""
    weights = framework.get_weights(model)
    return sum(weights[name].size for name in framework.list_trainable(model))


def import_extra(module: str, *, feature: str, extra: str) -> Any:
    """Import a module that an optional extra of Argosy brings.

    Args:
        module: such as `matplotlib.figure`.
        feature: what needs it, for the message.
        extra: of the package argosy that installs it.

    Raises:
        InputError: `missing_extra`, its package is not installed.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise InputError("missing_extra", feature=feature, package=package, extra=extra)
    return importlib.import_module(module)
