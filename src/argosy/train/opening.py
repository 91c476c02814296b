"""Data and model held together before the first step: what comes in, what goes out, and that the losses can take both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Batch, Framework, loader_framework, name_kind
from argosy.frameworks.trees import Tree, count_rows, is_named, is_ordered, map_tree, take_rows
from argosy.train.data import check_dataset, split_rows
from argosy.train.elements import Columns, check_inputs, to_arrays
from argosy.train.losses import bound_targets
from argosy.train.objective import Objective
from argosy.train.plain import FREE
from argosy.train.result import Settings
from argosy.train.source import ArraySource, LoaderSource, Source, StreamSource, is_stream
from argosy.train.validation import Validation

__all__ = ["Opened", "open_data"]

_VALIDATION_ROWS: Final = 256
"""Rows of a batch of a stream that is measured alone."""


class Opened(NamedTuple):
    """Data that is ready."""

    source: Source
    validation: Validation | None
    sample: Tree
    """Inputs of some rows; None where nobody knows what the model takes."""
    objective: Objective
    """With what data and model say of it."""
    is_weighted: bool
    """Batches bring weights."""

    def share(self) -> Opened:
        """Give what other workers of the run need of it."""
        nobody: Any = None
        source = self.source if isinstance(self.source, ArraySource) else nobody
        return self._replace(source=source, validation=None, sample=None)


def open_data(
    framework: Framework,
    model: Any,
    data: Any,
    validation_data: Any,
    objective: Objective,
    settings: Settings,
    columns: Columns,
    *,
    is_raw: bool,
) -> Opened:
    """Give the mini-batches, what to validate on, and some rows as a sample.

    Args:
        framework: the model's.
        model: to be fitted.
        data: arrays, a loader or a stream.
        validation_data: of any of these; None for none.
        objective: as the user names it.
        settings: of the run.
        columns: of data by column.
        is_raw: there is a step of the user's own, which takes the data as it is.

    Raises:
        InputError: `bad_data`, `bad_option`.
    """
    is_array = not _gives_batches(data)
    if settings.validation_split and (validation_data is not None or not is_array):
        expected = "0 when validation_data is given" if is_array else "0 with a loader; give validation_data"
        raise InputError("bad_option", option="validation_split", got=settings.validation_split, expected=expected)
    opening = _Opening(framework, model, objective, settings, columns, framework.float_dtype(model))
    if is_raw:
        return opening.open_raw(data, validation_data)
    return opening.open_arrays(data, validation_data) if is_array else opening.open_batches(data, validation_data)


class _Bound(NamedTuple):
    """An objective and the model's outputs."""

    objective: Objective
    outputs: Tree
    dtype: np.dtype[Any]

    def prepare(self, batch: Batch) -> Batch:
        """Bring a batch into the form that training takes."""
        return self.objective.weigh(self.prepare_plain(batch), self.dtype)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What the numbers of a single target lie between that is taken as it is; None where nobody knows."""
        criterion, outputs = self.objective.criterion, self.outputs
        if criterion is None or self.objective.class_weights or not isinstance(outputs, np.ndarray):
            return None
        if not criterion.is_ours:
            return FREE
        return bound_targets(criterion.name, cast("NDArray[Any]", outputs).shape)

    def prepare_plain(self, batch: Batch) -> Batch:
        """The same without weights of classes, by which nothing is judged."""
        return batch._replace(targets=self.objective.prepare(batch.targets, self.outputs, self.dtype))


@dataclass(frozen=True)
class _Opening:
    """What data is held against."""

    framework: Framework
    model: Any
    objective: Objective
    settings: Settings
    columns: Columns
    dtype: np.dtype[Any]

    def open_arrays(self, data: Any, validation_data: Any) -> Opened:
        """Open rows in memory."""
        given = check_dataset(data, self.dtype, columns=self.columns)
        training, held = self._hold_back(given)
        bound = self._bind(given.inputs, given.targets)
        prepared = bound.prepare(training)
        source, validation = self._serve(given, prepared), self._open_validation(validation_data, held, bound)
        return Opened(source, validation, given.inputs, bound.objective, prepared.weights is not None)

    def open_batches(self, data: Any, validation_data: Any) -> Opened:
        """Open a loader or a stream."""
        source = self._read(data, self.columns)
        first = source.sample
        inputs = check_inputs(first.inputs, self.dtype, source=f"the {name_kind(data)}")
        bound = self._bind(inputs, None)
        source.prepare(bound.prepare, self.dtype, bound.bounds)
        prepared = source.convert(first, 0)  # What the loss cannot take is said before the first step.
        validation = self._open_validation(validation_data, None, bound)
        return Opened(source, validation, inputs, bound.objective, prepared.weights is not None)

    def open_raw(self, data: Any, validation_data: Any) -> Opened:
        """Open any data as it is, for a step of the user's own."""
        sample, held = None, None
        if _gives_batches(data):
            source: Source = self._read(data, self.columns, is_raw=True)
        else:
            rows = map_tree(lambda leaf: _narrow(leaf, self.dtype), to_arrays(_as_tuple(data), is_given=True))
            count_rows(rows)
            training, held = self._hold_back(Batch(rows))
            source, sample = self._serve(training, training), _find_inputs(training.inputs)
        validation_data = validation_data if held is None else held.inputs
        if validation_data is None:
            return Opened(source, None, sample, self.objective, False)
        known = self._sample_validation(validation_data)
        bound = self._bind(known.inputs, known.targets)
        return Opened(source, self._open_validation(validation_data, None, bound), sample, bound.objective, False)

    def _bind(self, inputs: Tree, targets: Tree) -> _Bound:
        outputs = self.framework.predict(self.model, take_rows(inputs, slice(0, 1)))
        return _Bound(self.objective.bind(outputs, targets), outputs, self.dtype)

    def _hold_back(self, rows: Batch) -> tuple[Batch, Batch | None]:
        """Give what to train on, and what is kept from it for validation."""
        split = self.settings.validation_split
        return split_rows(rows, split, self.settings.seed) if split else (rows, None)

    def _serve(self, given: Batch, prepared: Batch) -> ArraySource:
        settings = self.settings
        assert settings.batch_size is not None
        return ArraySource(given, prepared, batch_size=settings.batch_size, shuffle=settings.shuffle, seed=settings.seed)

    def _read(self, data: Any, columns: Columns, *, is_raw: bool = False) -> LoaderSource | StreamSource:
        settings, owner = self.settings, loader_framework(data)
        if owner is not None:
            return LoaderSource(data, owner, columns, settings.seed, is_raw=is_raw)
        batch_size = settings.batch_size or _VALIDATION_ROWS
        opened = data.open_source(batch_size=batch_size, shuffle=settings.shuffle, seed=settings.seed)
        return StreamSource(opened, dtype=self.dtype, is_raw=is_raw)

    def _open_validation(self, data: Any, held: Batch | None, bound: _Bound) -> Validation | None:
        """Give what is measured after each epoch: data of the user's, or rows that were held back."""
        if data is None and held is None:
            return None
        objective = bound.objective
        if objective.criteria is None and not objective.metrics.own:
            expected = "None, or with a `loss` or `metrics` to measure it by, beside a step of one's own"
            raise InputError("bad_option", option="validation_data", got=name_kind(data), expected=expected)
        if _gives_batches(data):
            source = self._read(data, self._lenient)
            source.prepare(bound.prepare_plain, self.dtype, bound.bounds)
            source.convert(source.sample, 0)
            return Validation(lambda: source.iterate(0, 0))
        batch = bound.prepare_plain(check_dataset(data, self.dtype, columns=self._lenient) if held is None else held)
        return Validation(lambda: iter([batch]))

    def _sample_validation(self, data: Any) -> Batch:
        """Give rows of validation data, to see what the model makes of them."""
        if not _gives_batches(data):
            return check_dataset(data, self.dtype, columns=self._lenient)
        first = self._read(data, self._lenient).sample
        return first._replace(inputs=check_inputs(first.inputs, self.dtype, source="validation_data"), targets=None)

    @property
    def _lenient(self) -> Columns:
        """Of validation data, which need not be by column where the data is."""
        return replace(self.columns, is_strict=False)


def _gives_batches(data: Any) -> bool:
    """Whether data is a loader or a stream."""
    return loader_framework(data) is not None or is_stream(data)


def _as_tuple(data: Any) -> Any:
    return tuple(data) if is_ordered(data) and all(hasattr(part, "shape") for part in data) else data


def _find_inputs(rows: Tree) -> Tree:
    """Give what the model takes, as far as that is known: the first of a pair, or the only array."""
    if is_ordered(rows):
        return rows[0]
    return None if is_named(rows) else rows


def _narrow(leaf: Any, dtype: np.dtype[Any]) -> Any:
    return leaf.astype(dtype, copy=False) if leaf.dtype.kind == "f" else leaf
