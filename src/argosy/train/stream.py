"""Streams of files (`argosy.data.open`) as a source of mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.data.bad import BadRows
from argosy.data.stream import Rows, Stream
from argosy.errors import InputError
from argosy.train.data import Dataset
from argosy.train.losses import Criterion

__all__ = ["StreamSource", "read_validation"]

_MAX_VALIDATION_BYTES: Final = 512 << 20
"""Of rows to validate on, which are measured as a whole."""


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
        self._stream = stream
        self._dtype = dtype
        self._batch_size = batch_size
        self._seed = seed if shuffle else None
        self._bad = BadRows(stream.max_bad_rows)
        self.num_batches = None if stream.num_rows is None else -(-stream.num_rows // batch_size)
        self.sample = self._read_pair(stream.sample)[0]
        """The first rows."""
        self._criterion: Criterion | None = None
        self._output_shape: tuple[int, ...] = ()

    def prepare(self, criterion: Criterion, output_shape: tuple[int, ...]) -> None:
        """Say what targets are to be prepared for."""
        self._criterion, self._output_shape = criterion, output_shape

    def iterate(self, epoch: int, start: int, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        assert self._criterion is not None
        batches = self._stream.iterate(self._batch_size, epoch=epoch, start=start, seed=self._seed, part=part, bad=self._bad)
        try:
            for rows in batches:
                x, y = self._read_pair(rows)
                yield x, self._criterion.prepare(y, self._output_shape, self._dtype)
        finally:
            batches.close()

    def describe(self) -> dict[str, Any]:
        return self._stream.describe() | self._bad.describe()

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
    for rows in stream.iterate(256):
        pairs.append(Dataset(_check_numbers("inputs", rows.inputs, dtype), _check_numbers("targets", rows.targets, None)))
        size += pairs[-1].x.nbytes + pairs[-1].y.nbytes
        if size > _MAX_VALIDATION_BYTES:
            detail = f"validation rows have more than {_MAX_VALIDATION_BYTES >> 20} MiB: take fewer, by argosy.data.split"
            raise InputError("bad_data", detail=detail)
    if not pairs:
        raise InputError("bad_data", detail="the validation stream has no row")
    return Dataset(np.concatenate([pair.x for pair in pairs]), np.concatenate([pair.y for pair in pairs]))
