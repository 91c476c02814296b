"""What a training run gives: the fitted model, how it got there, and its way into the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Framework, Precision
from argosy.optim.schedules import check_count, check_number
from argosy.signature import Ragged
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.data import check_dataset, check_rows
from argosy.train.losses import Criterion
from argosy.train.ports import Names
from argosy.train.publish import Labels, publish

__all__ = ["Epoch", "Settings", "TrainResult"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows."""

    number: int
    """Counted from 1."""
    loss: float
    """Mean over the rows, each as the weights were at its own step."""
    metrics: dict[str, float]
    """As `loss`, from the outputs of training itself (with dropout)."""
    validation_loss: float | None
    """After the epoch, as the model would be served; None without validation rows."""
    validation_metrics: dict[str, float]
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run was made; all of it goes into the lineage."""

    loss: str | dict[str, Any]
    """The name of one of ours, or the description of the framework's own."""
    metrics: tuple[str, ...]
    optimizer: dict[str, Any]
    batch_size: int | None
    """None: as the loader gives them."""
    epochs: int | None
    """None: until the tolerance or the patience ends it."""
    tolerance: float | None
    patience: int | None
    shuffle: bool
    seed: int
    validation_split: float
    precision: Precision | None
    micro_batch_size: int | None
    num_threads: int | None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if self.epochs is not None:
            check_count("epochs", self.epochs)
        elif self.tolerance is None and self.patience is None:
            raise InputError("bad_option", option="epochs", got=None, expected="a number, or None with a tolerance or a patience")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "a number in [0, 1)", lowest=0.0, below=1.0)
        for option in ("patience", "micro_batch_size", "num_threads"):
            if getattr(self, option) is not None:
                check_count(option, getattr(self, option))
        check_count("seed", self.seed, 0)
        if self.precision not in (None, "bfloat16"):
            raise InputError(
                "bad_option", option="precision", got=self.precision, expected="bfloat16, or None for the model's own"
            )
        check_number("validation_split", self.validation_split, "a number in [0, 1)", lowest=0.0, below=1.0)

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {**dataclasses.asdict(self), "metrics": list(self.metrics)}


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A fitted model and how it was fitted."""

    model: Any
    """The framework's own object: the one that was given, now with the trained weights."""
    framework: Framework
    criterion: Criterion
    settings: Settings
    history: tuple[Epoch, ...]
    num_steps: int
    data: dict[str, Any]
    """Digest, number of rows and shapes of the data that was given; of a loader what it tells."""
    sample: NDArray[Any]
    """The first rows of the data, for golden examples, and some of the rest, which show its spread."""
    checkpoint: Path | None
    """The state at the end, from which a longer run can go on; None if no checkpoints were asked for."""

    def predict(self, x: object) -> NDArray[Any]:
        """Answer rows as the served model would; one output row for each.

        Raises:
            InputError: `bad_data`, no rows, not numbers, or not what the model takes.
        """
        return self.framework.predict(self.model, check_rows(x, self.framework.float_dtype(self.model)))

    def evaluate(self, x: object, y: object) -> dict[str, float]:
        """Measure the loss and the metrics on rows with known targets, as the model would be served.

        Raises:
            InputError: `bad_data`.
        """
        dtype = self.framework.float_dtype(self.model)
        data = check_dataset((x, y), dtype)
        outputs = self.framework.predict(self.model, data.x)
        targets = self.criterion.prepare(data.y, outputs.shape, dtype)
        return {
            "loss": self.criterion.compute(outputs, targets),
            **{name: self.criterion.get_metric(name, targets)(outputs, targets) for name in self.settings.metrics},
        }

    def publish(
        self,
        name: str,
        store: Store | None = None,
        *,
        sample: object = None,
        measurements: Mapping[str, float] = {},
        lineage: Mapping[str, object] = {},
        input_name: Names = None,
        output_name: Names = None,
        labels: Labels = None,
        dynamic: Mapping[str, Sequence[int]] | None = None,
        ragged: Ragged | None = None,
    ) -> Version:
        """Make the model a version of the store, as `publish` does, with all that the run knows of itself.

        Args:
            name: of the model; its next version is made.
            store: default: that of ARGOSY_HOME.
            sample: real rows; the first 8 become golden examples. Default: the first of the training data.
            measurements: what is known of it, such as the accuracy on test rows; added to those of the run.
            lineage: added to what the run knows of itself.
            input_name: of the tensor that goes in, or the names of all, as for `publish`.
            output_name: of the tensor that comes out, or the names of all, as for `publish`.
            labels: names of the output's last axis, such as class names; of several outputs by output.
            dynamic: axes of the inputs that may have any length, as for `publish`.
            ragged: which of them may differ between the requests of a batch, as for `publish`.

        Raises:
            ModelError: `save_failed`; nothing was published.
            InputError: `bad_data`, the sample; `bad_option`, the labels or axes; `bad_name` and more from the store.
        """
        return publish(
            self.model,
            name,
            store,
            sample=self.sample if sample is None else sample,
            measurements=self._measure() | dict(measurements),
            lineage=self.describe_lineage() | dict(lineage),
            input_name=input_name,
            output_name=output_name,
            labels=labels,
            dynamic=dynamic,
            ragged=ragged,
        )

    def describe_lineage(self) -> dict[str, Any]:
        """Give what the run knows of itself, as JSON data."""
        return {"kind": "training", "data": self.data, "training": self.settings.describe() | {"steps": self.num_steps}}

    def _measure(self) -> dict[str, float]:
        last = self.history[-1]
        values = {"train_loss": last.loss, **{f"train_{name}": value for name, value in last.metrics.items()}}
        if last.validation_loss is not None:
            values["validation_loss"] = last.validation_loss
            values |= {f"validation_{name}": value for name, value in last.validation_metrics.items()}
        return values | {"train_s": sum(epoch.duration_s for epoch in self.history)}
