"""Streams of files (`argosy.data.open`) as a source of mini-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, Final, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.train.data import Dataset
from argosy.train.losses import Criterion

__all__ = ["Stream", "StreamSource", "is_stream", "read_validation"]

_MAX_VALIDATION_BYTES: Final = 512 << 20
"""Of rows to validate on, which are measured as a whole."""


class Rows(Protocol):
    """Some rows of a stream."""

    @property
    def inputs(self) -> Any: ...
    @property
    def targets(self) -> Any: ...


class Source(Protocol):
    """Batches of a stream, epoch by epoch."""

    @property
    def num_batches(self) -> int | None: ...
    def iterate(self, epoch: int, start: int) -> Generator[Rows]: ...
    def describe(self) -> dict[str, Any]: ...


class Stream(Protocol):
    """Data that reads itself: none of its room is imported, where nobody has any."""

    @property
    def sample(self) -> Rows: ...
    def open_source(self, *, batch_size: int, shuffle: bool, seed: int) -> Source: ...


def is_stream(data: object) -> TypeGuard[Stream]:
    """Tell whether data reads itself."""
    return callable(getattr(data, "open_source", None))


class StreamSource:
    """A stream's rows in batches of one size, in an order that follows from seed and epoch."""

    def __init__(self, stream: Stream, dtype: np.dtype[Any], *, batch_size: int, shuffle: bool, seed: int) -> None:
        """Take a stream.

        Args:
            stream: with one input and one target.
            dtype: in which the model takes numbers with a fraction.
            batch_size: rows of a mini-batch; the last one of an epoch has those that are left.
            shuffle: new order every epoch.
            seed: of the order.

        Raises:
            InputError: `bad_data`, its rows are no numbers, or have no targets.
        """
        self._source = stream.open_source(batch_size=batch_size, shuffle=shuffle, seed=seed)
        self._dtype = dtype
        self.num_batches = self._source.num_batches
        self.sample = self._read_pair(stream.sample)[0]
        """The first rows."""
        self._criterion: Criterion | None = None
        self._output_shape: tuple[int, ...] = ()

    def prepare(self, criterion: Criterion, output_shape: tuple[int, ...]) -> None:
        """Say what targets are to be prepared for."""
        self._criterion, self._output_shape = criterion, output_shape

    def iterate(self, epoch: int, start: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        assert self._criterion is not None
        # Closed with this one: what reads ahead ends with the epoch.
        with contextlib.closing(self._source.iterate(epoch, start)) as batches:
            for rows in batches:
                x, y = self._read_pair(rows)
                yield x, self._criterion.prepare(y, self._output_shape, self._dtype)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()

    def _read_pair(self, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
        return _check_numbers("inputs", rows.inputs, self._dtype), _check_numbers("targets", rows.targets, None)


def _check_numbers(part: str, array: Any, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or cast("NDArray[Any]", array).dtype.kind == "O":
        got = "nothing" if array is None else "strings or bytes" if isinstance(array, np.ndarray) else "several columns"
        raise InputError(
            "bad_data", detail=f"the stream's {part} are {got}, expected one column of numbers, or some joined to one"
        )
    numbers = cast("NDArray[Any]", array)
    return np.ascontiguousarray(numbers, dtype if numbers.dtype.kind == "f" else None)


def read_validation(stream: Stream, dtype: np.dtype[Any]) -> Dataset:
    """Read the rows to validate on.

    Raises:
        InputError: `bad_data`, they have more bytes than are kept in memory, or there are none.
    """
    pairs: list[Dataset] = []
    size = 0
    for rows in stream.open_source(batch_size=256, shuffle=False, seed=0).iterate(1, 0):
        pairs.append(Dataset(_check_numbers("inputs", rows.inputs, dtype), _check_numbers("targets", rows.targets, None)))
        size += pairs[-1].x.nbytes + pairs[-1].y.nbytes
        if size > _MAX_VALIDATION_BYTES:
            detail = f"validation rows have more than {_MAX_VALIDATION_BYTES >> 20} MiB: take fewer, by argosy.data.split"
            raise InputError("bad_data", detail=detail)
    if not pairs:
        raise InputError("bad_data", detail="the validation stream has no row")
    return Dataset(np.concatenate([pair.x for pair in pairs]), np.concatenate([pair.y for pair in pairs]))
