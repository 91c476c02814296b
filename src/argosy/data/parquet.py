"""Parquet: a block is a row group, read chunk by chunk, whatever its size."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

from argosy.data.arrow import convert_batch, is_string, is_taken
from argosy.data.block import Block, Chunk, Column, Location, load_module
from argosy.data.files import File, open_file
from argosy.data.schema import check_names, check_same_schema
from argosy.errors import ArgosyError, InputError

__all__ = ["ParquetReader"]

_BUFFER_BYTES: Final = 256 << 10
"""Of a column of an open row group: a group is never in memory as a whole."""
_MAX_HEADS: Final = 64
"""Footers of files that are kept: one is read and decoded in some milliseconds."""


_DELTAS: Final = frozenset(("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"))
_SPELLED_ROWS: Final = 64
MAX_PIECE_BYTES: Final = 256 << 20
"""Of strings that are written as differences, where a few bytes of the file may stand for any number."""


class ParquetReader:
    """Reads Parquet files."""

    def __init__(self, files: Sequence[File], options: Mapping[str, Any]) -> None:
        self.files = files
        self._pa = load_module("pyarrow", "Reading Parquet")
        self._pq = load_module("pyarrow.parquet", "Reading Parquet")
        self._heads: dict[int, Any] = {}
        self._firsts: dict[tuple[int, int], int] = {}
        self._blocks: list[Block] = []
        self._words: dict[int, list[str]] = {}
        """By file its columns of strings: read as dictionaries, of which a string that many rows have is one."""
        self._spelled: set[int] = set()
        """Files with strings that are written as what they differ in from the one before, of which Arrow makes no dictionary."""

    def read_schema(self) -> dict[str, str]:
        schema: dict[str, str] = {}
        for number, file in enumerate(self.files):
            with self._open(number) as parquet:
                check_names(parquet.schema_arrow.names, file)
                found = {field.name: self._name_type(field.type) for field in parquet.schema_arrow}
                head, first = parquet.metadata, 0
                self._find_words(number, head, [field.name for field in parquet.schema_arrow if is_string(field.type, self._pa)])
                for place in range(head.num_row_groups):
                    group = head.row_group(place)
                    if group.num_rows < 0:
                        raise InputError(
                            "bad_file", path=repr(str(file.path)), detail=f"row group {place} claims {group.num_rows} rows"
                        )
                    self._firsts[number, place] = first
                    first += group.num_rows
                    if group.num_rows:
                        self._blocks.append(Block(number, place, group.num_rows, max(group.total_byte_size, 0)))
            schema = schema or found
            check_same_schema(schema, found, self.files[0], file)
        return schema

    def _find_words(self, number: int, head: Any, names: Sequence[str]) -> None:
        """Say how the strings of a file are read."""
        if not names:
            return
        places = {head.schema.column(place).path: place for place in range(head.num_columns)}
        spelled = {
            name
            for group in map(head.row_group, range(head.num_row_groups))
            for name in names
            if not _DELTAS.isdisjoint(group.column(places[name]).encodings)
        }
        self._words[number] = [name for name in names if name not in spelled]
        if spelled:
            self._spelled.add(number)

    def _name_type(self, kind: Any) -> str:
        if self._pa.types.is_dictionary(kind):
            kind = kind.value_type
        return str(kind) if is_taken(kind, self._pa) else f"{kind} (not taken)"

    def list_blocks(self) -> Sequence[Block]:
        return self._blocks

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        assert block.num_rows is not None
        place = 0
        with self._open(block.file) as parquet:
            for batch in self._iterate(parquet, block, names, limit):
                rows = batch.slice(first - place) if first > place else batch
                place += batch.num_rows
                if place > block.num_rows:
                    break
                if rows.num_rows:
                    with self._guard(self.files[block.file]):
                        chunk = convert_batch(rows, columns, place - rows.num_rows, self._pa)
                    yield chunk
        if place != block.num_rows:
            detail = (
                f"row group {block.place} holds {'more' if place > block.num_rows else place} rows, and claims {block.num_rows}"
            )
            raise InputError("bad_file", path=repr(str(self.files[block.file].path)), detail=detail)

    def locate(self, block: Block, row: int) -> Location:
        return Location(self.files[block.file].path, "row", self._firsts[block.file, block.place] + row)

    def _iterate(self, parquet: Any, block: Block, names: Sequence[str], limit: int) -> Iterator[Any]:
        """Give pieces of `limit` rows, but for the last."""
        with self._guard(self.files[block.file]):
            size = min(limit, _SPELLED_ROWS) if block.file in self._spelled else limit
            pieces = parquet.iter_batches(size, row_groups=[block.place], columns=list(names), use_threads=False)
        left: list[Any] = []
        while True:
            with self._guard(self.files[block.file]):
                piece = next(pieces, None)
                if piece is None:
                    break
                # A dictionary's codes may differ from piece to piece, and a column's name stand in another order.
                left.append(piece.select(list(names)))
                self._check_size(block, left)
                if sum(part.num_rows for part in left) < limit:
                    continue
                whole = self._pa.Table.from_batches(left) if len(left) > 1 else left[0]
                left = [] if whole.num_rows == limit else self._pa.Table.from_batches(left).slice(limit).to_batches()
            yield whole.slice(0, limit)
        if left:
            yield self._pa.Table.from_batches(left)

    def _check_size(self, block: Block, pieces: Sequence[Any]) -> None:
        """Strings that are written as differences may be far longer than the file tells."""
        if block.file in self._spelled and sum(piece.nbytes for piece in pieces) > MAX_PIECE_BYTES:
            detail = f"strings that follow one another have more than {MAX_PIECE_BYTES >> 20} MiB: write them as a dictionary"
            raise InputError("bad_file", path=repr(str(self.files[block.file].path)), detail=detail)

    @contextlib.contextmanager
    def _open(self, number: int) -> Generator[Any]:
        file = self.files[number]
        with open_file(file) as descriptor:
            with self._guard(file):
                source = self._pa.OSFile(f"/proc/self/fd/{descriptor}")
                parquet = self._pq.ParquetFile(
                    source,
                    metadata=self._heads.get(number),
                    buffer_size=_BUFFER_BYTES,
                    pre_buffer=False,
                    read_dictionary=self._words.get(number),
                    page_checksum_verification=True,
                )
            if len(self._heads) < _MAX_HEADS:
                self._heads[number] = parquet.metadata
            try:
                yield parquet
            finally:
                source.close()

    def _guard(self, file: File) -> contextlib.AbstractContextManager[None]:
        return guard_arrow(file, "Parquet", self._pa)


@contextlib.contextmanager
def guard_arrow(file: File, what: str, pa: Any) -> Generator[None]:
    """Say of which file it is what Arrow raises."""
    try:
        yield
    except ArgosyError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError, RecursionError) as error:
        detail = f"it is no {what} file that can be read: {str(error)[:300] or type(error).__name__}"
        raise InputError("bad_file", path=repr(str(file.path)), detail=detail) from error
