"""A data set as a stream of rows: what it is, and its batches in order."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.data.ahead import run_ahead
from argosy.data.bad import BadRows
from argosy.data.block import CHUNK_BYTES, Block, Chunk, Column, Reader
from argosy.data.choice import Choice, Rows
from argosy.data.files import digest_files
from argosy.data.finish import Finish
from argosy.data.naming import make_places, name_rows
from argosy.data.order import LANES, Piece, draw_rows, list_pieces, list_windows
from argosy.data.prepare import Encoder, check_names
from argosy.data.reading import read_pieces
from argosy.data.split import Part
from argosy.errors import InputError, list_choices

__all__ = ["Source", "Stream"]

BUFFER_BYTES: Final = 64 << 20
"""Of the rows among which order is drawn, if none is said."""
MAX_WINDOW_BYTES: Final = 256 << 20
"""Of a buffer that turns out to be larger than its rows promised; or four times what they did."""
_SAMPLE_ROWS: Final = 256
_OBJECT_BYTES: Final = 64
"""Of a string, beside its characters."""

Leaves = list[NDArray[Any]]


class Stream:
    """Rows of files, read as they are needed. `argosy.data.open` makes it.

    Attributes:
        format: of the files.
        num_files: how many there are.
        columns: what each column has in a row; those alone that are used.
        sample: the first rows, at most 256.
        buffer_rows: among so many rows a random order is drawn.
        classes: of the targets, where they are known: how many there are, or their names; of pictures, their folders.
        max_bad_rows: so many rows may be left out.
        preprocess: the steps that make the inputs, for `argosy.publish`; none where columns are taken as they are.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        format: str,
        choice: Choice,
        schema: Mapping[str, str],
        casts: Mapping[str, np.dtype[Any]],
        classes: int | Sequence[str] | None,
        max_bad_rows: int,
        buffer_rows: int | None,
        num_threads: int,
    ) -> None:
        self.format = format
        self.num_files = len(reader.files)
        self.max_bad_rows = max_bad_rows
        self._reader = reader
        self._schema = dict(schema)
        self._finish = Finish(choice, tuple(choice.names), tuple(choice.names), casts, classes)
        self._num_threads = num_threads
        step = getattr(reader, "step", None)
        self.preprocess: list[dict[str, Any]] = [] if step is None else [step]
        self._recorded = self.preprocess
        self.classes: int | list[str] | None = classes if isinstance(classes, int) else list(classes or ()) or None
        self.classes = getattr(reader, "classes", None) or self.classes
        self._blocks = list(reader.list_blocks())
        counts = [block.num_rows for block in self._blocks]
        self._total = None if None in counts else sum(count or 0 for count in counts)
        self.columns: dict[str, Column] = {}
        self._text_row_bytes = 1.0
        chunk = self._read_sample()
        self._row_bytes = _count_row_bytes(chunk)
        self._chunk_rows = max(1, CHUNK_BYTES // self._row_bytes)
        self._is_sized = buffer_rows is None
        self.buffer_rows = max(1, BUFFER_BYTES // self._row_bytes) if buffer_rows is None else buffer_rows
        self.sample: Rows = choice.build([leaf[:_SAMPLE_ROWS] for leaf in choice.join(chunk.columns)])

    @property
    def num_rows(self) -> int | None:
        """All rows; None where only reading tells: of text, of a part, or where bad rows may be left out."""
        if self._finish.part is not None or self.max_bad_rows:
            return None
        return self._total

    @property
    def schema(self) -> dict[str, str]:
        """All columns of the files with their types, in the words of the format."""
        return dict(self._schema)

    def __len__(self) -> int:
        """Count the rows.

        Raises:
            TypeError: only reading tells.
        """
        if self.num_rows is None:
            raise TypeError("how many rows this stream has, only reading tells")
        return self.num_rows

    def __repr__(self) -> str:
        rows = "an unknown number of" if self.num_rows is None else self.num_rows
        return f"<Stream of {rows} rows in {self.num_files} files ({self.format}): {', '.join(self._finish.choice.names)}>"

    def describe(self) -> dict[str, Any]:
        """Say what the data is, as JSON data for a lineage."""
        described: dict[str, Any] = {
            "format": self.format,
            "files": self.num_files,
            "rows": self.num_rows,
            "digest": digest_files(self._reader.files, (f"{name} {kind}" for name, kind in self._schema.items())),
            "columns": {name: str(column) for name, column in self.columns.items()},
            "buffer_rows": self.buffer_rows,
            "max_bad_rows": self.max_bad_rows,
        }
        if self._finish.part is not None:
            described["part"] = self._finish.part.describe()
        if self.classes is not None:
            described["classes"] = self.classes
        if self.preprocess:
            described["preprocess"] = self._recorded
        return described

    def select(self, names: Sequence[str]) -> Stream:
        """Give the stream of the same rows with other columns as inputs, by their names, and no targets."""
        choice = Choice({name: name for name in names}, None, None, self._schema)
        return self._change(dataclasses.replace(self._finish, choice=choice, names=tuple(choice.names), encoder=None))

    def prepare(self, *steps: Mapping[str, Any]) -> Stream:
        """Give the stream whose inputs are made of columns by steps of preprocessing; a worker makes the same of raw requests.

        Args:
            steps: tables with `kind` and options, as of `argosy.publish(preprocess=[...])`. `row`: of `argosy.data.learn_row`,
                or written by hand. `text`: with `column`, the column of text (by default `text`), `file`, the path of the
                tokenizer, `max_length`, and `inputs`, the names of the tensors (by default `input_ids` alone). `image`: with
                `column`, the column of pictures as their files hold them (by default `image`), and the options of a folder of
                pictures, `size` first. Several tensors are inputs by their names.

        Raises:
            InputError: `bad_preprocess`, `bad_option`, `unknown_choice`, `bad_rows`.
        """
        for step in cast("tuple[object, ...]", steps):
            if not isinstance(step, Mapping):
                raise InputError(
                    "bad_option", option="prepare", got=type(step).__qualname__, expected="tables, one after the other"
                )
        encoder = Encoder([_find_file(step) for step in steps])
        check_names(encoder.names, self._schema)
        _, targets, weights = self._finish.choice.parts
        names = list(encoder.tensors)
        others = [
            name for part in (targets, weights) if part is not None for name in Choice(part, None, None, self._schema).names
        ]
        if both := set(names) & set(others):
            raise InputError("bad_option", option="inputs", got=sorted(both), expected="tensors with names that no target has")
        schema = {**self._schema, **encoder.tensors}
        choice = Choice(names[0] if len(names) == 1 else {name: name for name in names}, targets, weights, schema)
        taken = tuple(dict.fromkeys([*encoder.names, *others]))
        return self._change(dataclasses.replace(self._finish, choice=choice, names=taken, encoder=encoder))

    def _change(self, finish: Finish) -> Stream:
        """Give the same rows, otherwise finished; in the same order, unless a buffer of them would be too large."""
        changed = copy.copy(self)
        changed._finish, encoder = finish, finish.encoder
        changed.preprocess, changed._recorded = ([], []) if encoder is None else (encoder.steps, encoder.recorded)
        chunk = changed._read_sample()
        changed._row_bytes = _count_row_bytes(chunk)
        if changed._is_sized and changed.buffer_rows * changed._row_bytes > MAX_WINDOW_BYTES:
            # Pictures and categories become far more numbers than they have bytes.
            changed.buffer_rows = max(1, BUFFER_BYTES // changed._row_bytes)
            changed._chunk_rows = max(1, CHUNK_BYTES // changed._row_bytes)
        changed.sample = finish.choice.build([leaf[:_SAMPLE_ROWS] for leaf in finish.choice.join(chunk.columns)])
        return changed

    def take_part(self, part: Part) -> Stream:
        """Give the stream of the rows of a part; of one that is a part already, the rows that are in both.

        Raises:
            InputError: `bad_option`, there is no such key, or the stream is a part by another key already.
        """
        if part.key is not None and part.key not in self._schema:
            raise InputError("bad_option", option="key", got=part.key, expected=f"columns: {list_choices(self._schema)}")
        if self._finish.part is not None:
            raise InputError("bad_option", option="parts", got="a part", expected="a whole stream: split it once, into all parts")
        taken = copy.copy(self)
        taken._finish = dataclasses.replace(self._finish, part=part)
        return taken

    def iterate(
        self,
        batch_size: int,
        *,
        epoch: int = 1,
        start: int = 0,
        seed: int | None = None,
        part: tuple[int, int] = (0, 1),
        bad: BadRows | None = None,
    ) -> Generator[Rows]:
        """Give the batches of an epoch.

        The order is a function of the data set, the seed and the epoch: the same for any number of threads and parts, and from
        any `start`.

        Args:
            batch_size: rows of a batch; the last one has those that are left.
            epoch: counted from 1.
            start: the batch to begin with, counted from 0. What stands before is read only where nothing else tells how many
                rows of it count.
            seed: of a random order; None: as the rows stand.
            part: (index, count): of each batch, the rows that fall to one of so many workers.
            bad: counts the rows that are left out; by default this iteration's own.

        Raises:
            InputError: `bad_rows`, `bad_file`, `data_changed`.
        """
        bad = BadRows(self.max_bad_rows) if bad is None else bad
        windows = run_ahead(self._iterate_windows(epoch, start * batch_size, seed, bad), 1)
        rest: Leaves | None = None
        index, count = part
        try:
            for leaves, order in windows:
                for rows in _cut(len(leaves[0]), order, 0 if rest is None else len(rest[0]), batch_size):
                    batch = [leaf[rows] for leaf in leaves]
                    if rest is not None:
                        batch = [np.concatenate(pair) for pair in zip(rest, batch, strict=True)]
                        rest = None
                    if len(batch[0]) < batch_size:
                        rest = batch
                    else:
                        yield self._finish.choice.build(_share(batch, index, count))
            if rest is not None and len(rest[0]):
                yield self._finish.choice.build(_share(rest, index, count))
        finally:
            windows.close()

    def locate(self, batch_size: int, *, epoch: int, batch: int, seed: int | None = None) -> list[str]:
        """Say where the rows of a batch stand: a text for each file, with the numbers of at most 1024 rows.

        Args:
            batch_size: as of `iterate`.
            epoch: counted from 1.
            batch: counted from 0.
            seed: of the order.

        Raises:
            InputError: `bad_rows`, `bad_file`, `data_changed`.
        """
        places: list[NDArray[np.int64]] = []
        left = batch_size
        windows = self._iterate_windows(epoch, batch * batch_size, seed, BadRows(self.max_bad_rows), with_places=True)
        with contextlib.closing(windows):
            while left and (window := next(windows, None)) is not None:
                leaves, order = window
                places.append((leaves[-1] if order is None else leaves[-1][order])[:left])
                left -= len(places[-1])
        return name_rows(self._reader, self._blocks, np.concatenate(places)) if places else []

    def open_source(self, *, batch_size: int, shuffle: bool, seed: int) -> Source:
        """Give the batches of one run of training, epoch by epoch.

        Args:
            batch_size: rows of a batch.
            shuffle: a new order every epoch.
            seed: of the order.
        """
        return Source(self, batch_size, seed if shuffle else None)

    def _iterate_windows(
        self, epoch: int, skip: int, seed: int | None, bad: BadRows, *, with_places: bool = False
    ) -> Generator[tuple[Leaves, Any]]:
        """Give the leaves of each window and the order of its rows, the first `skip` rows left out.

        The last leaf are the rows' places, if these are wanted.
        """
        windows = enumerate(
            list_windows(list_pieces(self._blocks, self._count_about, self._limit, seed, epoch), self.buffer_rows)
        )
        for number, window in windows:
            if skip:
                num_rows = self._count(window, bad)
                if num_rows <= skip:
                    skip -= num_rows
                    continue
            # What follows is read ahead in one go, whatever the window.
            windows = itertools.chain([(number, window)], windows)
            break
        pieces, groups = _tee(windows)
        chunks = read_pieces(self._reader, pieces, self._finish.list_names(), self.columns, self._finish.apply, self._num_threads)
        try:
            for number, size in groups:
                leaves = self._gather(itertools.islice(chunks, size), bad, with_places)
                if leaves is None:
                    continue
                order = draw_rows(len(leaves[0]), seed, epoch, number)
                if skip:
                    order = np.arange(len(leaves[0])) if order is None else order
                    order, skip = order[skip:], 0
                yield leaves, order
        finally:
            chunks.close()

    def _gather(self, chunks: Iterator[tuple[Piece, Chunk]], bad: BadRows, with_places: bool) -> Leaves | None:
        """Put the chunks of a window together."""
        parts: list[Leaves] = []
        size = 0
        for piece, chunk in chunks:
            bad.add(self._reader, piece.block, piece.first, chunk.bad)
            if not len(chunk.rows):
                continue
            parts.append(self._finish.choice.join(chunk.columns))
            size += sum(_count_bytes(array) for array in parts[-1])
            if size > max(MAX_WINDOW_BYTES, 4 * self.buffer_rows * self._row_bytes):
                detail = f"{sum(len(part[0]) for part in parts)} rows have {size >> 20} MiB"
                expected = f"fewer: {detail}, about {self._reader.locate(piece.block, piece.first)}"
                raise InputError("bad_option", option="buffer_rows", got=self.buffer_rows, expected=expected)
            if with_places:
                parts[-1].append(make_places(piece.block, chunk.rows))
        if len(parts) <= 1:
            return parts[0] if parts else None
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _count(self, window: Sequence[Piece], bad: BadRows) -> int:
        """Count the rows of a window that are in no batch to come, reading as little as tells."""
        if self.num_rows is not None:
            return sum(piece.num_rows for piece in window)
        names = self._finish.list_names()
        part = self._finish.part
        if part is not None and part.key is not None and not self.max_bad_rows:
            names = [part.key]
        num_rows = 0
        for piece, chunk in read_pieces(self._reader, iter(window), names, self.columns, self._finish.apply, self._num_threads):
            bad.add(self._reader, piece.block, piece.first, chunk.bad)
            num_rows += len(chunk.rows)
        return num_rows

    def _count_about(self, block: Block) -> int:
        return max(1, round(block.size / self._text_row_bytes))

    def _limit(self, block: Block) -> int:
        assert block.num_rows is not None
        # What the file says of this block: its rows may be wider than those of the first.
        return max(1, min(self._chunk_rows, self.buffer_rows // LANES, CHUNK_BYTES * block.num_rows // max(block.size, 1)))

    def _read_sample(self) -> Chunk:
        """Read the first rows, by which the columns are known."""
        bad = BadRows(self.max_bad_rows)
        for block in self._blocks:
            chunks = self._reader.read(block, self._finish.list_names(), columns={}, first=0, limit=_SAMPLE_ROWS)
            # Closed here: what is open of the block is closed with it.
            with contextlib.closing(chunks):
                for number, chunk in enumerate(map(self._finish.apply, chunks)):
                    bad.add(self._reader, block, number, chunk.bad)
                    if not len(chunk.rows):
                        continue
                    self._text_row_bytes = max(1.0, block.size / (len(chunk.rows) + len(chunk.bad)))
                    self.columns = {name: _describe(array) for name, array in chunk.columns.items()}
                    self._finish.choice.check(self.columns)
                    return chunk
        detail = f"there is no row in {self.num_files} files, the first of which is {str(self._reader.files[0].path)!r}"
        raise InputError("bad_data", detail=detail)


class Source:
    """A stream's batches for one run.

    Attributes:
        num_batches: of an epoch; None where only the end tells.
    """

    def __init__(self, stream: Stream, batch_size: int, seed: int | None) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._seed = seed
        self._bad = BadRows(stream.max_bad_rows)
        self.num_batches = None if stream.num_rows is None else -(-stream.num_rows // batch_size)

    def iterate(self, epoch: int, start: int, part: tuple[int, int] = (0, 1)) -> Generator[Rows]:
        """Give the batches of an epoch as `Stream.iterate` does."""
        stream, size = self._stream, self._batch_size
        return stream.iterate(size, epoch=epoch, start=start, seed=self._seed, part=part, bad=self._bad)

    def locate(self, epoch: int, batch: int) -> list[str]:
        """Say where the rows of a batch stand, as `Stream.locate` does."""
        return self._stream.locate(self._batch_size, epoch=epoch, batch=batch, seed=self._seed)

    def describe(self) -> dict[str, Any]:
        """Say what the data is, and which rows were left out so far, as JSON data for a lineage."""
        return self._stream.describe() | self._bad.describe()


def _find_file(step: Mapping[str, Any]) -> dict[str, Any]:
    """Give a step with the whole path of its file, which is read again when a model is published."""
    return {**step, "file": str(Path(step["file"]).absolute())} if isinstance(step.get("file"), str | os.PathLike) else dict(step)


def _describe(array: NDArray[Any]) -> Column:
    return Column(array.dtype, array.shape[1:], array.dtype.kind == "O" and isinstance(array[0], str))


def _count_row_bytes(chunk: Chunk) -> int:
    return max(1, sum(_count_bytes(array) for array in chunk.columns.values()) // len(chunk.rows))


def _count_bytes(array: NDArray[Any]) -> int:
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(map(len, array.tolist())) + _OBJECT_BYTES * len(array)


def _tee(windows: Iterator[tuple[int, list[Piece]]]) -> tuple[Iterator[Piece], Iterator[tuple[int, int]]]:
    """Give the chunks of all windows, and of each window its number and how many it has; the second may lag behind."""
    one, other = itertools.tee(windows)
    return (piece for _, window in one for piece in window), ((number, len(window)) for number, window in other)


def _cut(num_rows: int, order: NDArray[np.int64] | None, num_left: int, batch_size: int) -> Iterator[Any]:
    """Cut the rows of a window into batches, the first of which is what fills up the rows that are left from before."""
    total, place = num_rows if order is None else len(order), 0
    while place < total:
        end = min(total, place + batch_size - (num_left if not place else 0))
        yield slice(place, end) if order is None else order[place:end]
        place = end


def _share(batch: Leaves, index: int, count: int) -> Leaves:
    if count == 1:
        return batch
    num_rows = len(batch[0])
    rows = slice(num_rows * index // count, num_rows * (index + 1) // count)
    return [leaf[rows] for leaf in batch]
