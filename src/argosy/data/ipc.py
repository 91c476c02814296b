"""Arrow's own files, which are also called Feather: a block is a record batch."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

from argosy.data.arrow import convert_batch, is_taken
from argosy.data.block import Block, Chunk, Column, Location, load_module
from argosy.data.files import File, open_file
from argosy.data.parquet import guard_arrow
from argosy.data.schema import check_names, check_same_schema
from argosy.errors import InputError

__all__ = ["ArrowReader"]

MAX_BATCH_BYTES: Final = 256 << 20
"""Of a record batch, which is read as a whole. (A memory map would read parts, and end the process if the file shrinks.)"""


class ArrowReader:
    """Reads Arrow files."""

    def __init__(self, files: Sequence[File], options: Mapping[str, Any]) -> None:
        self.files = files
        self._pa = load_module("pyarrow", "Reading Arrow files")
        self._ipc = load_module("pyarrow.ipc", "Reading Arrow files")
        self._firsts: dict[tuple[int, int], int] = {}
        self._blocks: list[Block] = []

    def read_schema(self) -> dict[str, str]:
        schema: dict[str, str] = {}
        for number, file in enumerate(self.files):
            with self._open(number, None) as reader:
                check_names(reader.schema.names, file)
                found = {field.name: str(field.type) for field in reader.schema}
                found = {
                    name: kind if is_taken(reader.schema.field(name).type, self._pa) else f"{kind} (not taken)"
                    for name, kind in found.items()
                }
                num_batches = reader.num_record_batches
            self._count(number, file, num_batches)
            schema = schema or found
            check_same_schema(schema, found, self.files[0], file)
        return schema

    def _count(self, number: int, file: File, num_batches: int) -> None:
        counts: list[int] = []
        with self._open(number, [0]) as reader:
            for place in range(num_batches):
                with guard_arrow(file, "Arrow", self._pa):
                    counts.append(reader.get_batch(place).num_rows)
        total, first = max(1, sum(counts)), 0
        if file.size * max(counts, default=0) // total > MAX_BATCH_BYTES:
            detail = f"a record batch holds more than {MAX_BATCH_BYTES >> 20} MiB: write it with smaller ones"
            raise InputError("bad_file", path=repr(str(file.path)), detail=detail)
        for place, num_rows in enumerate(counts):
            self._firsts[number, place] = first
            first += num_rows
            if num_rows:
                self._blocks.append(Block(number, place, num_rows, file.size * num_rows // total))

    def list_blocks(self) -> Sequence[Block]:
        return self._blocks

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        assert block.num_rows is not None
        file = self.files[block.file]
        with self._open(block.file, names) as reader, guard_arrow(file, "Arrow", self._pa):
            batch = reader.get_batch(block.place).select(list(names))
            if batch.num_rows != block.num_rows:
                detail = f"record batch {block.place} had {block.num_rows} rows and has {batch.num_rows}"
                raise InputError("data_changed", path=repr(str(file.path)), detail=detail)
            # Of what a file says about itself, nothing is believed: its offsets may point anywhere.
            batch.validate(full=True)
        for start in range(first, block.num_rows, limit):
            with guard_arrow(file, "Arrow", self._pa):
                chunk = convert_batch(batch.slice(start, limit), columns, start, self._pa)
            yield chunk

    def locate(self, block: Block, row: int) -> Location:
        return Location(self.files[block.file].path, "row", self._firsts[block.file, block.place] + row)

    @contextlib.contextmanager
    def _open(self, number: int, names: Sequence[Any] | None) -> Generator[Any]:
        file = self.files[number]
        with open_file(file) as descriptor:
            with guard_arrow(file, "Arrow", self._pa):
                source = self._pa.OSFile(f"/proc/self/fd/{descriptor}")
                reader = self._ipc.open_file(source)
                if names is not None:
                    places = [name if isinstance(name, int) else reader.schema.get_field_index(name) for name in names]
                    source.seek(0)
                    reader = self._ipc.open_file(
                        source, options=self._ipc.IpcReadOptions(included_fields=places, use_threads=False)
                    )
            try:
                yield reader
            finally:
                source.close()
