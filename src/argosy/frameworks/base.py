"""What Argosy needs of a training framework, and which ones there are.

`frameworks/X.py` is the sole importer of framework X and offers one object, `FRAMEWORK`. It is imported when
a model of it turns up, so that a process without torch never pays for torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.layers import Layer
from argosy.optim import Optimizer
from argosy.signature import Arrays

__all__ = ["FRAMEWORKS", "Framework", "Step", "fail_not_finite", "framework_of", "get_framework", "import_extra"]


class Step(Protocol):
    """One model being fitted: each call takes one step of the optimizer."""

    def __call__(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Fit one mini-batch.

        Args:
            x: rows, as the model takes them.
            y: targets as `train.losses.prepare_targets` gives them.

        Returns:
            The loss before the step (mean over the rows) and the outputs it was computed from.

        Raises:
            ModelError: `not_finite`, the loss or a gradient is; the weights are as before the step.
        """
        ...


class Framework(Protocol):
    """The same few functions for every framework. A `model` is always the framework's own object."""

    name: str

    def is_model(self, model: object) -> bool:
        """Say whether this is a model of this framework."""
        ...

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...]) -> Any:
        """Build a new model from a neutral description; `input_shape` is that of one row, channels first."""
        ...

    def session(self, seed: int, num_threads: int | None) -> AbstractContextManager[None]:
        """Seed the framework's random numbers and bound its threads within the block, then restore the caller's.

        None leaves the number of threads to the framework.
        """
        ...

    def build_step(self, model: Any, loss: str, optimizer: Optimizer) -> Step:
        """Start to fit a model, in place.

        Raises:
            InputError: `unknown_choice`, this framework has no such loss or optimizer.
        """
        ...

    def predict(self, model: Any, x: NDArray[Any]) -> NDArray[Any]:
        """Run a model on rows as it would be served (no dropout), in bounded pieces.

        Raises:
            InputError: `bad_data`, the model fails on these rows, or its output is no tensor.
        """
        ...

    def get_weights(self, model: Any) -> Arrays:
        """Give copies of everything that training changes, by the framework's names."""
        ...

    def count_weights(self, model: Any) -> int:
        """Count the numbers that the optimizer changes."""
        ...

    def export_onnx(self, model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str) -> None:
        """Write a model as an ONNX file whose first axis is any number of rows.

        Args:
            model: with one input and one output.
            rows: a few real ones, to trace.
            path: of the file to write.
            input_name: of its input.
            output_name: of its output.

        Raises:
            ModelError: `export_failed`, ONNX has no word for something in the model.
        """
        ...


class _Entry(NamedTuple):
    module: str
    package: str
    """Whose classes a model of the framework derives from."""


FRAMEWORKS: Final[dict[str, _Entry]] = {"torch": _Entry("argosy.frameworks.torch", "torch")}


def get_framework(name: str) -> Framework:
    """Import a framework by name.

    Raises:
        InputError: `unknown_choice`, no such framework; `missing_extra`, it is not installed.
    """
    if name not in FRAMEWORKS:
        raise InputError("unknown_choice", kind="framework", got=name, known=list_choices(FRAMEWORKS))
    entry = FRAMEWORKS[name]
    import_extra(entry.package, feature=f"Framework {name}", extra=name)
    framework: Framework = importlib.import_module(entry.module).FRAMEWORK
    return framework


def framework_of(model: object) -> Framework:
    """Find the framework that a model belongs to, importing no other.

    Raises:
        InputError: `bad_option`, it is a model of none.
    """
    kind = type(model)
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    for name, entry in FRAMEWORKS.items():
        if entry.package in packages:
            framework = get_framework(name)
            if framework.is_model(model):
                return framework
    got = f"{kind.__module__}.{kind.__qualname__}"
    raise InputError("bad_option", option="model", got=got, expected=f"a model of {list_choices(FRAMEWORKS)}")


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


def fail_not_finite(*, step: int, what: str, layer: str | None, learning_rate: float) -> ModelError:
    """Make the error of a loss, gradient or weight that is not finite.

    Args:
        step: counted from 1.
        what: such as `loss`.
        layer: where it showed first, None if no layer is to blame.
        learning_rate: for the hint.
    """
    where = f" in layer {layer}" if layer else ""
    return ModelError("not_finite", step=step, what=what, where=where, learning_rate=learning_rate)
