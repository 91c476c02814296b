"""Data and model held together before the first step: what comes in, what goes out, and that the losses can take both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
        source: Any = self.source.share() if isinstance(self.source, ArraySource) else None
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
    dtype = framework.float_dtype(model)
    is_array = loader_framework(data) is None and not is_stream(data)
    if settings.validation_split and (validation_data is not None or not is_array):
        expected = "0 when validation_data is given" if is_array else "0 with a loader; give validation_data"
        raise InputError("bad_option", option="validation_split", got=settings.validation_split, expected=expected)
    if is_raw:
        return _open_raw(framework, model, data, validation_data, objective, settings, columns, dtype)
    if not is_array:
        return _open_loader(framework, model, data, validation_data, objective, settings, columns, dtype)
    given = check_dataset(data, dtype, columns=columns)
    training, kept = given, None
    if validation_data is None and settings.validation_split:
        training, kept = split_rows(given, settings.validation_split, settings.seed)
    bound = _bind(framework, model, take_rows(given.inputs, slice(0, 1)), objective, given.targets, dtype)
    prepared = bound.prepare(training)
    assert settings.batch_size is not None
    source = ArraySource(given, prepared, batch_size=settings.batch_size, shuffle=settings.shuffle, seed=settings.seed)
    validation = _open_validation(validation_data, kept, bound, settings, columns, dtype)
    return Opened(source, validation, given.inputs, bound.objective, prepared.weights is not None)


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


def _bind(framework: Framework, model: Any, inputs: Tree, objective: Objective, targets: Tree, dtype: np.dtype[Any]) -> _Bound:
    outputs = framework.predict(model, inputs)
    return _Bound(objective.bind(outputs, targets), outputs, dtype)


def _open_loader(
    framework: Framework,
    model: Any,
    data: Any,
    validation_data: Any,
    objective: Objective,
    settings: Settings,
    columns: Columns,
    dtype: np.dtype[Any],
) -> Opened:
    source = _make_source(data, columns, settings, dtype)
    first = source.sample
    inputs = check_inputs(first.inputs, dtype, source=f"the {name_kind(data)}")
    bound = _bind(framework, model, take_rows(inputs, slice(0, 1)), objective, None, dtype)
    source.prepare(bound.prepare, dtype, bound.bounds)
    prepared = source.convert(first, 0)  # What the loss cannot take is said before the first step.
    validation = _open_validation(validation_data, None, bound, settings, columns, dtype)
    return Opened(source, validation, inputs, bound.objective, prepared.weights is not None)


def _make_source(data: Any, columns: Columns, settings: Settings, dtype: np.dtype[Any]) -> LoaderSource | StreamSource:
    owner = loader_framework(data)
    if owner is not None:
        return LoaderSource(data, owner, columns, settings.seed)
    batch_size = settings.batch_size or _VALIDATION_ROWS
    return StreamSource(data.open_source(batch_size=batch_size, shuffle=settings.shuffle, seed=settings.seed), dtype=dtype)


def _open_validation(
    data: Any, kept: Batch | None, bound: _Bound, settings: Settings, columns: Columns, dtype: np.dtype[Any]
) -> Validation | None:
    """Give what is measured after each epoch: data of the user's, or rows that were kept from training."""
    if data is None and kept is None:
        return None
    objective, columns = bound.objective, replace(columns, is_strict=False)
    if objective.criteria is None and not objective.metrics.own:
        expected = "None, or with a `loss` or `metrics` to measure it by, beside a step of one's own"
        raise InputError("bad_option", option="validation_data", got=name_kind(data), expected=expected)
    if data is not None and (loader_framework(data) is not None or is_stream(data)):
        source = _make_source(data, columns, settings, dtype)
        source.prepare(bound.prepare_plain, dtype, bound.bounds)
        source.convert(source.sample, 0)
        return Validation(lambda: source.iterate(0, 0))
    batch = bound.prepare_plain(check_dataset(data, dtype, columns=columns) if kept is None else kept)

    def read() -> Iterator[Batch]:
        yield batch

    return Validation(read)


def _open_raw(
    framework: Framework,
    model: Any,
    data: Any,
    validation_data: Any,
    objective: Objective,
    settings: Settings,
    columns: Columns,
    dtype: np.dtype[Any],
) -> Opened:
    """Give the data as it is, for a step of the user's own."""
    owner = loader_framework(data)
    source: Source
    if owner is not None:
        source = LoaderSource(data, owner, columns, settings.seed, is_raw=True)
        sample = None
    elif is_stream(data):
        opened = data.open_source(batch_size=settings.batch_size, shuffle=settings.shuffle, seed=settings.seed)
        source = StreamSource(opened, dtype=dtype, is_raw=True)
        sample = None
    else:
        rows = map_tree(lambda leaf: _narrow(leaf, dtype), to_arrays(_as_tuple(data), is_given=True))
        count_rows(rows)
        held = None
        if settings.validation_split:
            whole, held = split_rows(Batch(rows), settings.validation_split, settings.seed)
            rows = whole.inputs
        assert settings.batch_size is not None
        batch = Batch(rows)
        source = ArraySource(batch, batch, batch_size=settings.batch_size, shuffle=settings.shuffle, seed=settings.seed)
        sample = _find_inputs(rows)
        if held is not None:
            validation_data = held.inputs
    validation = None
    if validation_data is not None:
        known = _sample_validation(validation_data, columns, settings, dtype)
        bound = _bind(framework, model, take_rows(known.inputs, slice(0, 1)), objective, known.targets, dtype)
        objective = bound.objective
        validation = _open_validation(validation_data, None, bound, settings, columns, dtype)
    return Opened(source, validation, sample, objective, False)


def _sample_validation(data: Any, columns: Columns, settings: Settings, dtype: np.dtype[Any]) -> Batch:
    """Give rows of validation data, to see what the model makes of them."""
    columns = replace(columns, is_strict=False)
    if loader_framework(data) is None and not is_stream(data):
        return check_dataset(data, dtype, columns=columns)
    first = _make_source(data, columns, settings, dtype).sample
    return first._replace(inputs=check_inputs(first.inputs, dtype, source="validation_data"), targets=None)


def _as_tuple(data: Any) -> Any:
    return tuple(data) if is_ordered(data) and all(hasattr(part, "shape") for part in data) else data


def _find_inputs(rows: Tree) -> Tree:
    """Give what the model takes, as far as that is known: the first of a pair, or the only array."""
    if is_ordered(rows):
        return rows[0]
    return None if is_named(rows) else rows


def _narrow(leaf: Any, dtype: np.dtype[Any]) -> Any:
    return leaf.astype(dtype, copy=False) if leaf.dtype.kind == "f" else leaf
