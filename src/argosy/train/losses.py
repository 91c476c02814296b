"""Losses and metrics in plain NumPy: what validation, evaluation and compression are measured with.

A framework computes the loss of a training step itself, by the same definition; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework, MetricPart, name_kind

__all__ = ["LOSSES", "METRICS", "Criterion", "Loss", "Metric", "get_loss", "get_metric", "prepare_targets", "resolve_loss"]

Array = NDArray[Any]

_LARGEST: Final = float(np.finfo(np.float32).max)


class Loss(NamedTuple):
    """What training makes small: a mean over rows (and over outputs, where a row has several)."""

    compute: Callable[[Array, Array], float]
    """From outputs (logits for the two entropies) and targets of `prepare_targets`."""
    metrics: tuple[str, ...]
    """Which metrics suit it; the first is the default."""
    compute_rows: Callable[[Array, Array], Array]
    """The loss of each row, of which `compute` gives the mean."""


class Metric(NamedTuple):
    """What people judge a model by: a mean over rows."""

    compute: Callable[[Array, Array], float]
    """From outputs and targets; where outputs are probabilities, see `Criterion.get_metric`."""
    is_higher_better: bool


def _cross_entropies(outputs: Array, targets: Array) -> Array:
    logits = outputs.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
    return losses


def _binary_cross_entropies(outputs: Array, targets: Array) -> Array:
    logits = outputs.astype(np.float64)
    losses: Array = np.logaddexp(0.0, logits) - logits * targets
    return losses


def _squares(outputs: Array, targets: Array) -> Array:
    distances: Array = np.square(outputs.astype(np.float64) - targets)
    return distances


def _mean(losses: Callable[[Array, Array], Array]) -> Callable[[Array, Array], float]:
    return lambda outputs, targets: float(np.mean(losses(outputs, targets)))


def _mean_rows(losses: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda outputs, targets: losses(outputs, targets).reshape(len(outputs), -1).mean(axis=1)


def _half_mse(outputs: Array, targets: Array) -> float:
    return 0.5 * float(_squares(outputs, targets).sum()) / len(outputs)


def _half_squares(outputs: Array, targets: Array) -> Array:
    return 0.5 * _squares(outputs, targets).reshape(len(outputs), -1).sum(axis=1)


def _mae(outputs: Array, targets: Array) -> float:
    return float(np.mean(np.abs(outputs.astype(np.float64) - targets)))


def _accuracy(outputs: Array, targets: Array, threshold: float = 0.0) -> float:
    if targets.ndim == 1 and outputs.ndim == 2 and outputs.shape[1] > 1:
        is_right: Array = outputs.argmax(axis=1) == targets
    else:
        is_right = (outputs > threshold) == (targets.reshape(outputs.shape) > 0.5)
    return float(np.mean(is_right))


def _one_hot_accuracy(outputs: Array, targets: Array) -> float:
    is_right: Array = outputs.argmax(axis=-1) == targets.argmax(axis=-1)
    return float(np.mean(is_right))


LOSSES: Final[dict[str, Loss]] = {
    "binary_cross_entropy": Loss(_mean(_binary_cross_entropies), ("accuracy",), _mean_rows(_binary_cross_entropies)),
    "cross_entropy": Loss(_mean(_cross_entropies), ("accuracy",), _cross_entropies),
    "half_mse": Loss(_half_mse, ("mae", "mse"), _half_squares),
    "mse": Loss(_mean(_squares), ("mae", "mse"), _mean_rows(_squares)),
}

METRICS: Final[dict[str, Metric]] = {
    "accuracy": Metric(_accuracy, is_higher_better=True),
    "mae": Metric(_mae, is_higher_better=False),
    "mse": Metric(_mean(_squares), is_higher_better=False),
}


def get_loss(name: str) -> Loss:
    """Give a loss by name.

    Raises:
        InputError: `unknown_choice`.
    """
    if name not in LOSSES:
        raise InputError("unknown_choice", kind="loss", got=name, known=list_choices(LOSSES))
    return LOSSES[name]


def get_metric(name: str) -> Metric:
    """Give a metric by name.

    Raises:
        InputError: `unknown_choice`.
    """
    if name not in METRICS:
        raise InputError("unknown_choice", kind="metric", got=name, known=list_choices(METRICS))
    return METRICS[name]


@dataclass(frozen=True)
class Criterion:
    """The loss of a run: one of ours by its name, or the framework's own."""

    loss: object
    """What `Framework.build_step` is given."""
    name: str
    parameters: dict[str, Any]
    """Of the framework's own; none for ours."""
    compute: Callable[[Any, Any], float]
    """From outputs and prepared targets."""
    takes_logits: bool
    chosen: tuple[str, ...] = ()
    """Names of the metrics that are to be measured, if any were named."""
    own_metrics: Mapping[str, MetricPart] = field(default_factory=dict[str, MetricPart])
    """Those of them which are the framework's own."""
    measure: Callable[[Any, Any, Any, Any], float] | None = None
    """The framework's, of a loss of its own."""

    @property
    def is_ours(self) -> bool:
        """Whether the name is one of `LOSSES`."""
        return isinstance(self.loss, str)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Which metrics suit it; the first is the default. Any may suit a framework's own loss, and none is default."""
        return LOSSES[self.name].metrics if self.is_ours else tuple(METRICS)

    def compute_weighted(self, outputs: Any, targets: Any, weights: Array) -> float:
        """Give the mean over the rows of weight times loss of the row."""
        if isinstance(self.loss, str):
            return float(np.mean(LOSSES[self.loss].compute_rows(outputs, targets) * weights))
        assert self.measure is not None
        return self.measure(self.loss, outputs, targets, weights)

    def describe(self) -> str | dict[str, Any]:
        """Give the name, of a framework's own loss with its parameters, as JSON data."""
        return self.name if self.is_ours else {"name": self.name, **self.parameters}

    def get_metric(self, name: str, targets: Array) -> Callable[[Array, Array], float]:
        """Give how a metric is computed from outputs and targets of this loss, and such targets as these."""
        if name in self.own_metrics:
            return self.own_metrics[name].compute
        metric = get_metric(name)
        if name != "accuracy" or self.is_ours:
            return metric.compute
        if targets.ndim > 1 and targets.shape[-1] > 1:
            return _one_hot_accuracy
        return metric.compute if self.takes_logits else partial(_accuracy, threshold=0.5)

    def is_mean(self, name: str) -> bool:
        """Say whether a metric of an epoch is the mean of that of its mini-batches."""
        return name not in self.own_metrics or self.own_metrics[name].is_mean

    def prepare(self, y: Array, output_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Bring targets into the form that the loss takes, and check ours against the model's outputs.

        Args:
            y: one target a row.
            output_shape: of the model's answer; its first axis is not looked at.
            dtype: of the model's numbers with a fraction.

        Raises:
            InputError: `bad_data`; as `prepare_targets` for one of ours.
        """
        if self.is_ours:
            return prepare_targets(self.name, y, output_shape, dtype)
        if y.ndim == 1 and output_shape[1:] == (1,):
            y = y[:, None]
        if y.dtype.kind not in "fiub":
            raise InputError("bad_data", detail=f"y has type {y.dtype}, expected numbers")
        return y.astype(dtype, copy=False) if y.dtype.kind == "f" else y


def resolve_loss(loss: object, framework: Framework, *, metrics: Sequence[Any] = ()) -> Criterion:
    """Make a criterion of what a user names as loss and metrics.

    Args:
        loss: a name of `LOSSES`, or a loss of the framework's own.
        framework: the model's.
        metrics: names of `METRICS`, or metrics of the framework's own.

    Raises:
        InputError: `unknown_choice`, no such name; `bad_option`, neither.
    """
    chosen, own = _resolve_metrics(metrics, framework)
    if isinstance(loss, str):
        return Criterion(loss, loss, {}, get_loss(loss).compute, takes_logits=True, chosen=chosen, own_metrics=own)
    part = framework.describe_loss(loss)
    if part is None:
        expected = f"a name ({list_choices(LOSSES)}) or a loss of {framework.name}"
        raise InputError("bad_option", option="loss", got=name_kind(loss), expected=expected)
    compute = partial(framework.measure_loss, loss)
    return Criterion(loss, part.name, part.parameters, compute, part.takes_logits, chosen, own, framework.measure_loss)


def _resolve_metrics(metrics: Sequence[Any], framework: Framework) -> tuple[tuple[str, ...], dict[str, MetricPart]]:
    """Give the names of metrics, and those which are the framework's own."""
    if isinstance(metrics, str):
        raise InputError("bad_option", option="metrics", got=metrics, expected="a sequence of names")
    names: list[str] = []
    own: dict[str, MetricPart] = {}
    for metric in metrics:
        if isinstance(metric, str) and metric in METRICS:
            names.append(metric)
            continue
        part = framework.describe_metric(metric)
        if part is None:
            if isinstance(metric, str):
                get_metric(metric)
            expected = f"a name ({list_choices(METRICS)}) or a metric of {framework.name}"
            raise InputError("bad_option", option="metrics", got=name_kind(metric), expected=expected)
        names.append(part.name)
        own[part.name] = part
    return tuple(names), own


def bound_targets(loss: str, output_shape: tuple[int, ...]) -> tuple[float, float]:
    """Give the least and the largest number that targets of a loss may hold, once they have its form."""
    if loss == "cross_entropy":
        return 0, output_shape[-1] - 1
    return (0, 1) if loss == "binary_cross_entropy" else (-_LARGEST, _LARGEST)


def prepare_targets(
    loss: str, y: Array, output_shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.floating[Any]] = np.float64
) -> Array:
    """Bring targets into the form that a loss takes them in, and check them against the model's outputs.

    Args:
        loss: a name of `LOSSES`.
        y: targets, one a row. For `cross_entropy` class numbers, shape (rows,), of an integer type; otherwise
            numbers of the outputs' shape, where (rows,) does for outputs of shape (rows, 1).
        output_shape: what the model answers to any number of rows; its first axis is not looked at.
        dtype: of targets that are numbers.

    Returns:
        int64 of shape (rows,) for `cross_entropy`, else `dtype` of shape (rows, *output_shape[1:]).

    Raises:
        InputError: `bad_data`, another shape or type, a label that is not a class of the model, a target
            outside 0..1 for `binary_cross_entropy`, or one that is not finite.
    """
    if loss == "cross_entropy":
        return _prepare_labels(y, output_shape)
    shape = (len(y), *output_shape[1:])
    if y.ndim == 1 and shape == (len(y), 1):
        y = y[:, None]
    if y.shape != shape:
        # Left alone, NumPy and the frameworks would broadcast (rows,) against (rows, 1) and train on nonsense.
        raise InputError("bad_data", detail=f"y has shape {y.shape}, but for as many rows the model gives {shape}")
    if y.dtype.kind not in "fiub":
        raise InputError("bad_data", detail=f"y has type {y.dtype}, expected numbers for the loss {loss}")
    low, high = y.min(), y.max()  # Comparisons with NaN are false.
    if not (low >= -_LARGEST and high <= _LARGEST):
        raise InputError("bad_data", detail="y holds NaN, infinity or a value beyond float32")
    if loss == "binary_cross_entropy" and not (low >= 0 and high <= 1):
        detail = f"binary_cross_entropy needs targets from 0 to 1, y has {float(low)} to {float(high)}"
        raise InputError("bad_data", detail=detail)
    return y.astype(dtype, copy=False)


def _prepare_labels(y: Array, output_shape: tuple[int, ...]) -> Array:
    if len(output_shape) != 2:
        detail = f"cross_entropy needs outputs of shape (rows, classes), the model gives (rows, *{output_shape[1:]})"
        raise InputError("bad_data", detail=detail)
    if y.dtype.kind == "f" and np.array_equal(y, np.rint(y)):
        y = y.astype(np.int64)  # MXNet's iterators give class numbers as float32.
    if y.ndim != 1 or y.dtype.kind not in "iu":
        detail = f"cross_entropy needs labels of an integer type (whole numbers) and shape (rows,), y has {y.dtype} and {y.shape}"
        raise InputError("bad_data", detail=detail)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= output_shape[1]:
        detail = f"labels run from {low} to {high}, the model has {output_shape[1]} classes: 0 to {output_shape[1] - 1}"
        raise InputError("bad_data", detail=detail)
    return y.astype(np.int64)
