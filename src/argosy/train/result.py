"""What a training run gives: the fitted model, how it got there, and its way into the store."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Framework
from argosy.frameworks.onnx import OnnxModel, check_export
from argosy.optim import Optimizer
from argosy.signature import Signature
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.data import check_dataset, check_rows
from argosy.train.lineage import describe_code, describe_environment
from argosy.train.losses import get_loss, get_metric, prepare_targets

__all__ = ["NUM_GOLDEN", "Epoch", "Settings", "TrainResult"]

NUM_GOLDEN: Final = 8
"""Golden examples of a published version: enough to tell a wrong artifact, few enough to run in milliseconds."""

_MODEL_FILE: Final = "model.onnx"


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

    loss: str
    metrics: tuple[str, ...]
    optimizer: Optimizer
    batch_size: int
    epochs: int
    shuffle: bool
    seed: int
    validation_split: float
    num_threads: int | None

    def __post_init__(self) -> None:
        suitable = get_loss(self.loss).metrics
        for metric in self.metrics:
            get_metric(metric)
            if metric not in suitable:
                expected = f"metrics that suit the loss {self.loss}: {', '.join(suitable)}"
                raise InputError("bad_option", option="metrics", got=metric, expected=expected)
        _check_count("batch_size", self.batch_size, 1)
        _check_count("epochs", self.epochs, 1)
        _check_count("seed", self.seed, 0)
        if self.num_threads is not None:
            _check_count("num_threads", self.num_threads, 1)
        if not 0.0 <= self.validation_split < 1.0:
            raise InputError("bad_option", option="validation_split", got=self.validation_split, expected="a number in [0, 1)")

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "metrics": list(self.metrics), "optimizer": self.optimizer.describe()}


def _check_count(option: str, value: object, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < 2**63:
        raise InputError("bad_option", option=option, got=value, expected=f"an integer, at least {lowest}")


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A fitted model and how it was fitted."""

    model: Any
    """The framework's own object: the one that was given, now with the trained weights."""
    framework: Framework
    settings: Settings
    history: tuple[Epoch, ...]
    data: dict[str, Any]
    """Digest, number of rows and shapes of the data that was given."""
    sample: NDArray[Any]
    """The first rows of the data, for golden examples."""

    def predict(self, x: object) -> NDArray[Any]:
        """Answer rows as the served model would; one output row for each.

        Raises:
            InputError: `bad_data`, no rows, not numbers, or not what the model takes.
        """
        return self.framework.predict(self.model, check_rows(x))

    def evaluate(self, x: object, y: object) -> dict[str, float]:
        """Measure the loss and the metrics of the run on rows with known targets.

        Raises:
            InputError: `bad_data`.
        """
        data = check_dataset((x, y))
        outputs = self.framework.predict(self.model, data.x)
        targets = prepare_targets(self.settings.loss, data.y, outputs.shape)
        return {
            "loss": get_loss(self.settings.loss).compute(outputs, targets),
            **{name: get_metric(name).compute(outputs, targets) for name in self.settings.metrics},
        }

    def publish(
        self,
        name: str,
        store: Store | None = None,
        *,
        sample: object = None,
        measurements: Mapping[str, float] = {},
        lineage: Mapping[str, object] = {},
        input_name: str = "input",
        output_name: str = "output",
        labels: Sequence[str] | None = None,
    ) -> Version:
        """Export the model to ONNX, check the export against the model, and make it a version of the store.

        Args:
            name: of the model; its next version is made.
            store: default: that of ARGOSY_HOME.
            sample: real rows; the first 8 become golden examples, each answered alone by ONNX Runtime.
                Default: the first of the training data.
            measurements: what is known of it, such as the accuracy on test rows; added to those of the run.
            lineage: added to what the run knows of itself.
            input_name: of the tensor that goes in.
            output_name: of the tensor that comes out.
            labels: names of the output's last axis, such as class names.

        Raises:
            ModelError: `export_failed`, `export_differs`; nothing was published.
            InputError: `bad_data`, the sample; `bad_option`, the labels; `bad_name` and more from the store.
        """
        rows = (self.sample if sample is None else check_rows(sample))[:NUM_GOLDEN]
        expected = self.framework.predict(self.model, rows)
        if labels is not None and len(labels) != expected.shape[-1]:
            expected_labels = f"{expected.shape[-1]} names, one for each entry of the output's last axis"
            raise InputError("bad_option", option="labels", got=list(labels), expected=expected_labels)
        with tempfile.TemporaryDirectory(prefix="argosy-export-") as folder:
            path = Path(folder, _MODEL_FILE)
            self.framework.export_onnx(self.model, rows, path, input_name=input_name, output_name=output_name)
            exported = OnnxModel(path)
            difference = check_export(exported, rows, expected)
            golden = Golden({input_name: rows}, exported.run_alone({input_name: rows}))
            return (store or Store()).publish(
                name,
                {_MODEL_FILE: path},
                signature=_label_output(Signature.from_arrays(golden.inputs, golden.outputs), labels),
                entry=_MODEL_FILE,
                golden=golden,
                lineage=self.describe_lineage() | {"export": {"format": "onnx", "difference": difference}, **lineage},
                measurements=self._measure() | {"size_bytes": path.stat().st_size, **measurements},
            )

    def describe_lineage(self) -> dict[str, Any]:
        """Give what the run knows of itself, as JSON data."""
        name = self.framework.name
        return {
            "kind": "training",
            "framework": name,
            "precision": "float32",
            "code": describe_code(type(self.model)) | {"num_weights": self.framework.count_weights(self.model)},
            "data": self.data,
            "training": self.settings.describe(),
            "environment": describe_environment(("argosy", "numpy", name, "onnx", "onnxruntime")),
        }

    def _measure(self) -> dict[str, float]:
        last = self.history[-1]
        values = {"train_loss": last.loss, **{f"train_{name}": value for name, value in last.metrics.items()}}
        if last.validation_loss is not None:
            values["validation_loss"] = last.validation_loss
            values |= {f"validation_{name}": value for name, value in last.validation_metrics.items()}
        return values | {"train_s": sum(epoch.duration_s for epoch in self.history)}


def _label_output(signature: Signature, labels: Sequence[str] | None) -> Signature:
    if labels is None:
        return signature
    (output,) = signature.outputs
    return Signature(signature.inputs, (type(output)(output.name, output.datatype, output.shape, labels=tuple(labels)),))
