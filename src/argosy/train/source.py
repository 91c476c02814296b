"""Where mini-batches come from: arrays, or a framework's own loader. An epoch can be begun anywhere, for a resumed run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import Framework, derive_seed, name_kind
from argosy.train.data import Dataset, iterate_batches
from argosy.train.lineage import describe_data
from argosy.train.losses import Criterion

__all__ = ["ArraySource", "LoaderSource", "Source"]

Batch = tuple[NDArray[Any], NDArray[Any]]


class Source(Protocol):
    """Mini-batches, epoch by epoch."""

    @property
    def num_batches(self) -> int | None:
        """Of an epoch; None where only the end tells."""
        ...

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        """Give the mini-batches of an epoch (counted from 1), from number `start` (counted from 0) on."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say what the data is, as JSON data for a lineage."""
        ...


class ArraySource:
    """Rows in memory."""

    def __init__(self, given: Dataset, prepared: Dataset, *, batch_size: int, shuffle: bool, seed: int) -> None:
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
        self.num_batches = -(-len(prepared.x) // batch_size)

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        batches = iterate_batches(len(self._data.x), self._batch_size, shuffle=self._shuffle, seed=self._seed, epoch=epoch)
        for rows in itertools.islice(batches, start, None):
            yield self._data.x[rows], self._data.y[rows]

    def describe(self) -> dict[str, Any]:
        return describe_data(self._given)


class LoaderSource:
    """A loader of some framework's, which decides about batches and their order.

    What it draws from the framework's global random numbers, such as a shuffled order, follows from seed, epoch and
    batch; what it draws from a generator of its own, a resumed run draws anew.
    """

    def __init__(self, loader: Any, framework: Framework, dtype: np.dtype[Any], seed: int) -> None:
        """Take a loader.

        Args:
            loader: gives pairs (x, y), and a new epoch each time that it is iterated over.
            framework: the loader's; the model's may be another.
            dtype: in which the model takes numbers with a fraction.
            seed: of the run.

        Raises:
            InputError: `bad_data`, it gives no batch.
        """
        self._loader = loader
        self._framework = framework
        self._dtype = dtype
        self._seed = seed
        try:
            self.num_batches: int | None = len(loader)
        except TypeError:
            self.num_batches = None
        first = next(self._read(0), None)
        if first is None:
            raise InputError("bad_data", detail=f"the {name_kind(loader)} gives no batch")
        self.sample = first[0]
        """The first rows that it gives."""
        self._criterion: Criterion | None = None
        self._output_shape: tuple[int, ...] = ()

    def prepare(self, criterion: Criterion, output_shape: tuple[int, ...]) -> None:
        """Say what targets are to be prepared for."""
        self._criterion, self._output_shape = criterion, output_shape

    def iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        assert self._criterion is not None
        for number, (x, y) in enumerate(self._read(epoch)):
            if number >= start:
                yield x, self._criterion.prepare(y, self._output_shape, self._dtype)

    def describe(self) -> dict[str, Any]:
        return {
            "loader": name_kind(self._loader),
            "batches": self.num_batches,
            "x": f"{self.sample.dtype} {list(self.sample.shape[1:])}",
        }

    def _read(self, epoch: int) -> Iterator[Batch]:
        # Seeded for each batch, where a step draws from the same random numbers: a resumed run skips steps.
        self._framework.seed(derive_seed(self._seed, epoch))
        for number, (x, y) in enumerate(self._framework.read_loader(self._loader)):
            if x.ndim == 0 or x.shape[:1] != y.shape[:1]:
                detail = f"a batch has x of shape {x.shape} and y of shape {y.shape}, expected as many rows"
                raise InputError("bad_data", detail=detail)
            yield np.ascontiguousarray(x, self._dtype if x.dtype.kind == "f" else None), y
            if self._framework.draws_eagerly:
                self._framework.seed(derive_seed(self._seed, epoch, number))
