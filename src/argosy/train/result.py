"""What a training run gives: the fitted model, how it got there, and its way into the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from argosy.errors import InputError
from argosy.frameworks.base import Framework, Precision
from argosy.frameworks.trees import Tree, is_array, map_tree, take_rows
from argosy.optim.schedules import check_count, check_number
from argosy.signature import Ragged
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import Steps
from argosy.train.data import check_dataset, check_rows
from argosy.train.elements import to_arrays
from argosy.train.objective import Objective
from argosy.train.places import Place, get_part
from argosy.train.ports import Names
from argosy.train.publish import Labels, publish
from argosy.train.rescue import Skip

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

    def list_values(self) -> dict[str, float]:
        """Give all that was measured by name; what belongs to validation rows begins with `validation_`."""
        values = {"loss": self.loss, **self.metrics}
        if self.validation_loss is not None:
            values["validation_loss"] = self.validation_loss
        return values | {f"validation_{name}": value for name, value in self.validation_metrics.items()}


_LATER: Final = (
    "loss_weights",
    "class_weights",
    "labels",
    "own_metrics",
    "step",
    "columns",
    "start",
    "frozen",
    "average",
    "rescue",
    "callbacks",
    "workers",
)
"""Settings that a description leaves out where they are not set."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run was made; all of it goes into the lineage."""

    loss: Any
    """The name of one of ours, or the description of the framework's own; of several outputs in their form."""
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
    loss_weights: Any = None
    class_weights: Mapping[Any, float] | None = None
    labels: Mapping[str, tuple[str, ...]] | None = None
    """Names of classes, where targets are names; by output, of a single one under the empty name."""
    own_metrics: Mapping[str, Any] | None = None
    """Functions of the user's: their code."""
    step: Mapping[str, Any] | None = None
    """The user's own: its code."""
    columns: Mapping[str, Any] | None = None
    """Of data by column those which are no inputs."""
    frozen: tuple[str, ...] | None = None
    """Patterns of weights that stay as they are."""
    average: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    """The version whose weights the model took before the first step."""
    rescue: bool = True
    callbacks: tuple[dict[str, Any], ...] | None = None
    """Of the framework's own: their settings and code."""
    workers: int | Literal["auto"] | None = None
    """That shared the rows of each batch; None for one."""

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
        described = {**dataclasses.asdict(self), "metrics": list(self.metrics)}
        for name in _LATER:
            if described[name] in (None, True):
                del described[name]
        if self.class_weights is not None:
            described["class_weights"] = {str(label): weight for label, weight in self.class_weights.items()}
        return described


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A fitted model and how it was fitted."""

    model: Any
    """The framework's own object: the one that was given, now with the trained weights."""
    framework: Framework
    objective: Objective
    settings: Settings
    history: tuple[Epoch, ...]
    num_steps: int
    data: dict[str, Any]
    """Digest, number of rows and shapes of the data that was given; of a loader what it tells."""
    sample: Tree
    """The first rows of the data, for golden examples, and some of the rest, which show its spread; None with a step of one's own
    whose elements are not what the model takes."""
    checkpoint: Path | None
    """The state at the end, from which a longer run can go on; None if no checkpoints were asked for."""
    skipped: tuple[Skip, ...] = ()
    """Batches that were left out, as their loss was not finite or rose out of nowhere."""
    weights: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How many numbers were trained, and how many not; and adapters that they belong to."""
    preprocess: tuple[Mapping[str, Any], ...] = ()
    """The steps by which the stream that was trained on makes its inputs; a version that is published carries them."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes, in their order, where the targets of a single output are names."""
        return self.objective.labels.get(())

    def predict(self, x: object) -> Any:
        """Answer rows as the served model would; one output row for each.

        Raises:
            InputError: `bad_data`, no rows, not numbers, or not what the model takes.
        """
        dtype = self.framework.float_dtype(self.model)
        rows = map_tree(lambda leaf: check_rows(leaf, dtype), to_arrays(x, is_given=True))
        return self.framework.predict(self.model, rows)

    def evaluate(self, x: object, y: object, weights: object = None) -> dict[str, float]:
        """Measure the loss and the metrics on rows with known targets, as the model would be served.

        Raises:
            InputError: `bad_data`.
        """
        dtype = self.framework.float_dtype(self.model)
        data = check_dataset((x, y) if weights is None else (x, y, weights), dtype)
        outputs = self.framework.predict(self.model, data.inputs)
        targets = self.objective.prepare(data.targets, outputs, dtype)
        loss = {} if self.objective.criteria is None else {"loss": self.objective.compute(outputs, targets, data.weights)}
        return loss | {measure.name: measure.compute(outputs, targets) for measure in self.objective.measures}

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
        preprocess: Steps | None = None,
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
            labels: names of the output's last axis, such as class names; of several outputs by output. Default: those
                of the targets, if these were names, or those of the stream's classes, if the only output has as many.
            preprocess: what makes tensors of raw rows, text and pictures in the worker, as for `publish`. Default: the steps
                of the stream that was trained on; `()` for none.
            dynamic: axes of the inputs that may have any length, as for `publish`.
            ragged: which of them may differ between the requests of a batch, as for `publish`.

        Raises:
            ModelError: `save_failed`; nothing was published.
            InputError: `bad_data`, the sample; `bad_option`, the labels or axes; `data_changed`, a file of a step is not what
                it was in training; `bad_name` and more from the store.
        """
        if preprocess is None and self.preprocess:
            # Few runs have steps: whoever trains by another loads none of it.
            from argosy.data.prepare import check_files

            check_files(self.preprocess, self.data.get("preprocess", ()))
        return publish(
            self.model,
            name,
            store,
            sample=self.sample if sample is None else sample,
            measurements=self._measure() | dict(measurements),
            lineage=self.describe_lineage() | dict(lineage),
            input_name=input_name,
            output_name=output_name,
            labels=self._find_labels() if labels is None else labels,
            preprocess=self.preprocess if preprocess is None else preprocess,
            dynamic=dynamic,
            ragged=ragged,
        )

    def _find_labels(self) -> Labels:
        """Give the names of classes, of the targets or of the stream, for the outputs that have as many entries."""
        classes = self.data.get("classes")
        known = dict(self.objective.labels)
        if not known and isinstance(classes, list):
            known = {(): tuple(cast("list[str]", classes))}
        if not known or self.sample is None:
            return self.labels
        outputs = self.framework.predict(self.model, take_rows(self.sample, slice(1)))
        return {place: names for place, names in known.items() if _count_entries(outputs, place) == len(names)}

    def describe_lineage(self) -> dict[str, Any]:
        """Give what the run knows of itself, as JSON data."""
        training = self.settings.describe() | {"steps": self.num_steps}
        if self.skipped:
            skipped = map(dataclasses.asdict, self.skipped)
            training["skipped"] = [{key: value for key, value in skip.items() if value is not None} for skip in skipped]
        described = {"kind": "training", "data": self.data, "training": training}
        return described | ({"weights": dict(self.weights)} if self.weights else {})

    def _measure(self) -> dict[str, float]:
        last = self.history[-1]
        known = last.list_values()
        values = {name if name.startswith("validation_") else f"train_{name}": value for name, value in known.items()}
        return values | {"train_s": sum(epoch.duration_s for epoch in self.history)}


def _count_entries(outputs: Tree, place: Place) -> int:
    """Count the entries of the last axis of an output; 0 where there are several, or where it is a number."""
    part = get_part(outputs, place)
    return part.shape[-1] if is_array(part) and part.ndim else 0
