"""Where mini-batches come from: arrays, a loader of a framework, a stream. An epoch can be begun anywhere, for a resumed run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Batch, Framework, derive_seed, name_kind
from argosy.train.data import iterate_batches
from argosy.train.elements import (
    Columns,
    check_counts,
    check_inputs,
    check_weights,
    describe_schema,
    name_schema,
    read_element,
    to_arrays,
)
from argosy.train.lineage import describe_data, describe_tree
from argosy.train.plain import Plain

__all__ = [
    "ArraySource",
    "LoaderSource",
    "Prepare",
    "Source",
    "Stream",
    "StreamSource",
    "is_stream",
    "keep_numbers",
]

Prepare = Callable[[Batch], Batch]
"""Brings targets and weights into the form that the losses take; inputs stay."""

_NOTHING: Final = object()


class Source(Protocol):
    """Mini-batches, epoch by epoch."""

    @property
    def num_batches(self) -> int | None:
        """Of an epoch; None where only the end tells."""
        ...

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        """Give the mini-batches of an epoch (counted from 1), from number `start` (counted from 0) on.

        Called again for the epoch that was begun last, it gives the same ones.

        Args:
            epoch: counted from 1; 0 where there are none.
            start: the batch to begin with.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Say what the data is, as JSON data for a lineage."""
        ...


class Stream(Protocol):
    """Data that reads itself, as `train` takes it."""

    def open_source(self, *, batch_size: int, shuffle: bool, seed: int) -> Source:
        """Give batches of arrays, targets as the data has them."""
        ...


def is_stream(data: object) -> bool:
    """Say whether data reads itself."""
    return callable(getattr(data, "open_source", None))


class ArraySource:
    """Rows in memory."""

    def __init__(self, given: Batch, prepared: Batch, *, batch_size: int, shuffle: bool, seed: int) -> None:
        """Take rows.

        Args:
            given: as the user gave them, for the lineage.
            prepared: what to train on: the rows that are not kept for validation, targets as the loss takes them.
            batch_size: rows of a mini-batch.
            shuffle: new order every epoch.
            seed: of the order.
        """
        self._given = given
        self._data = prepared
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._is_simple = isinstance(prepared.inputs, np.ndarray) and isinstance(prepared.targets, np.ndarray)
        self.num_batches = -(-prepared.num_rows // batch_size)

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        for order in self.list_orders(epoch, start):
            yield self.take(order)

    def list_orders(self, epoch: int, start: int) -> Iterator[NDArray[Any]]:
        """Give the numbers of the rows of each mini-batch."""
        orders = iterate_batches(self._data.num_rows, self._batch_size, shuffle=self._shuffle, seed=self._seed, epoch=epoch)
        return itertools.islice(orders, start, None)

    def take(self, rows: NDArray[Any]) -> Batch:
        """Give some rows by their numbers."""
        data = self._data
        if not self._is_simple:
            return data.take(rows)
        weights = None if data.weights is None else data.weights[rows]
        return Batch(data.inputs[rows], data.targets[rows], weights)

    def describe(self) -> dict[str, Any]:
        return describe_data(self._given)


class LoaderSource:
    """A loader of some framework's, which decides about batches and their order.

    What it draws from global random numbers, such as a shuffled order, follows from seed and epoch, and where steps draw from
    the same ones from the batch, too. What a dataset of TensorFlow's draws follows from its own seeds and the epoch. A resumed
    run takes the batches that it had, and leaves them. What a loader draws from a generator of its own is drawn anew.
    """

    def __init__(self, loader: Any, framework: Framework, columns: Columns, seed: int, *, is_raw: bool = False) -> None:
        """Take a loader.

        Args:
            loader: gives elements, and a new epoch each time that it is iterated over.
            framework: the loader's; the model's may be another.
            columns: of elements by column.
            seed: of the run.
            is_raw: give elements as they are, as the inputs of a batch, for a step of the user's own.

        Raises:
            InputError: `bad_data`, it gives no batch.
        """
        self._loader = loader
        self._framework = framework
        self._columns = columns
        self._seed = seed
        self._is_raw = is_raw
        try:
            self.num_batches: int | None = len(loader)
        except TypeError:
            self.num_batches = None
        framework.seed(derive_seed(seed, 0))
        elements = framework.read_loader(loader)
        self._first = next(iter(elements), _NOTHING)
        if self._first is _NOTHING:
            raise InputError("bad_data", detail=f"the {name_kind(loader)} gives no batch")
        self.sample: Batch = self._read(self._first)
        """The first batch, as it is given."""
        self._schema = None if is_raw else name_schema(self.sample)
        self._prepare: Prepare = _keep
        self._dtype = np.dtype(np.float32)
        self._plain: Plain | None = None
        self._opener: Callable[[int], Any] | None = None
        self._is_begun = False

    def prepare(self, prepare: Prepare, dtype: np.dtype[Any], bounds: tuple[float, float] | None = None) -> None:
        """Say what makes a batch of an element.

        Args:
            prepare: of the targets.
            dtype: in which the model takes numbers with a fraction.
            bounds: of targets that are taken as they are, if these are in the form of the loss already.

        Raises:
            InputError: `bad_data`, the first batch does not do.
        """
        self._prepare, self._dtype = prepare, dtype
        batch = self.convert(self.sample, 0)
        self._plain = None if self._columns.are_named else Plain.learn(self._first, batch, bounds)

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        framework = self._framework
        seed_batch = framework.find_seeder(self._loader)
        opened = self._open(epoch)
        framework.seed(derive_seed(self._seed, epoch))
        for number, element in enumerate(framework.read_loader(opened)):
            if number >= start:
                batch = (self._plain and self._plain.take(element)) or self._take(element, number)
                yield batch
            if seed_batch is not None:
                seed_batch(derive_seed(self._seed, epoch, number))

    def _open(self, epoch: int) -> Any:
        """Give what an epoch is read from."""
        if not epoch:
            return self._loader
        if not self._is_begun:
            self._opener, self._is_begun = self._framework.find_opener(self._loader), True
        return self._loader if self._opener is None else self._opener(epoch)

    def _take(self, element: Any, number: int) -> Batch:
        batch = self._read(element)
        return batch if self._is_raw else self.convert(batch, number)

    def _read(self, element: Any) -> Batch:
        """Tell the parts of an element apart, as arrays."""
        if self._is_raw:
            return Batch(element)
        parts = read_element(element, self._columns, source=f"the {name_kind(self._loader)}")
        return Batch(*(None if part is None else to_arrays(part) for part in parts))

    def convert(self, batch: Batch, number: int) -> Batch:
        """Give a batch as a step takes it.

        Raises:
            InputError: `bad_data`, it is of another form than the first, or its targets do not fit the loss.
        """
        source = f"the {name_kind(self._loader)}"
        if name_schema(batch) != self._schema:
            detail = f"batch {number} of {source} has {describe_schema(batch)}; the first had {describe_schema(self.sample)}"
            raise InputError("bad_data", detail=detail)
        check_counts(batch)
        inputs = check_inputs(batch.inputs, self._dtype, source=source)
        weights = None if batch.weights is None else check_weights(batch.weights, batch.num_rows, self._dtype)
        return self._prepare(Batch(inputs, batch.targets, weights))

    def describe(self) -> dict[str, Any]:
        described = {"loader": name_kind(self._loader), "batches": self.num_batches}
        return described if self._is_raw else {**described, "x": describe_tree(self.sample.inputs)}


class StreamSource:
    """A stream: data that reads itself, in an order of its own, and begins an epoch anywhere without reading what went before."""

    def __init__(self, source: Source, *, dtype: np.dtype[Any], is_raw: bool = False) -> None:
        """Take what `Stream.open_source` gave.

        Raises:
            InputError: `bad_data`, it gives no batch.
        """
        self._source = source
        self._dtype = dtype
        self._is_raw = is_raw
        self._prepare: Prepare = _keep
        self.num_batches = source.num_batches
        batches = source.iterate(1, 0)
        first = next(batches, None)
        if callable(close := getattr(batches, "close", None)):
            close()
        if first is None:
            raise InputError("bad_data", detail="the data has no rows")
        self.sample: Batch = first

    def prepare(self, prepare: Prepare, dtype: np.dtype[Any], bounds: tuple[float, float] | None = None) -> None:
        """As of a loader."""
        self._prepare, self._dtype = prepare, dtype

    def locate(self, epoch: int, batch: int) -> list[str] | None:
        """Say where the rows of a batch stand, if the stream can."""
        locate = getattr(self._source, "locate", None)
        return None if locate is None else locate(epoch, batch)

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        for batch in self._source.iterate(epoch, start):
            yield _make_element(batch) if self._is_raw else self.convert(batch, start)

    def convert(self, batch: Batch, number: int) -> Batch:
        """As of a loader; the form of batches is the stream's to keep."""
        inputs = check_inputs(batch.inputs, self._dtype, source="the data")
        weights = None if batch.weights is None else check_weights(batch.weights, batch.num_rows, self._dtype)
        return self._prepare(Batch(inputs, batch.targets, weights))

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


def _make_element(batch: Batch) -> Batch:
    """Give the rows as a loader would: `x`, `(x, y)` or `(x, y, w)`."""
    inputs, targets, weights = batch
    if targets is None and weights is None:
        return Batch(inputs)
    return Batch((inputs, targets) if weights is None else (inputs, targets, weights))


@contextmanager
def keep_numbers() -> Generator[None]:
    """Let the caller's random numbers of Python and NumPy go on after a block as if loaders had drawn none of them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _keep(batch: Batch) -> Batch:
    return batch
