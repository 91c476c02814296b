"""Folders of pictures: a file a row, decoded as a server that is sent the same file decodes it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import BadRow, Block, Chunk, Column, Location, load_module
from argosy.data.files import File, open_file, read_range
from argosy.errors import InputError
from argosy.runtimes.base import BadInput
from argosy.runtimes.preprocess import BadStep
from argosy.runtimes.preprocess_image import ImageStep

__all__ = ["PictureReader", "decode_picture", "make_image_step"]

_MAX_BYTES: Final = 64 << 20
"""Of a file: no picture that is taken has more."""
_BLOCK_FILES: Final = 16
_TYPES: Final = {"UINT8", "FP16", "FP32", "FP64"}


class PictureReader:
    """Reads pictures. Columns: `image`, and where there are folders `label`, the number of the file's folder among them.

    Options:
        size: [height, width], which all are brought to.
        datatype: of the pixels: FP32 (the default), UINT8, FP16 or FP64.
        layout: NCHW (the default), NHWC, or NHW for grey without an axis of channels.
        channels: RGB (the default), BGR or grey.
        classes: names of folders in the order of their numbers; by default all, sorted.

    And resize, shorter, filter, fill, scale, mean, std and max_pixels, as of the step `image` of preprocessing.
    """

    def __init__(self, files: Sequence[File], options: Mapping[str, Any]) -> None:
        self.files = files
        folders = [str(Path(file.name).parent) for file in files]
        given: Any = options.get("classes")
        self.classes: list[str] = list(given) if given is not None else sorted(set(folders) - {"."})
        places = {name: place for place, name in enumerate(self.classes)}
        self._labels = [places.get(folder, -1) for folder in folders]
        if given is None and self.classes and "." in folders:
            name = files[folders.index(".")].path
            raise InputError("bad_file", path=repr(str(name)), detail="it stands in no folder, which would be its label")
        own = ("classes", "schema", "max_bad_rows")
        self._step, self.step = make_image_step("image", {key: value for key, value in options.items() if key not in own})

    def read_schema(self) -> dict[str, str]:
        return {"image": "picture", **({"label": "int64"} if self.classes else {})}

    def list_blocks(self) -> Sequence[Block]:
        files = self.files
        return [Block(0, at, len(part), sum(file.size for file in part)) for at, part in _cut(files)]

    def read(
        self, block: Block, names: Sequence[str], *, columns: Mapping[str, Column], first: int, limit: int
    ) -> Generator[Chunk]:
        assert block.num_rows is not None
        for start in range(first, block.num_rows, limit):
            yield self._read(block.place, range(start, min(start + limit, block.num_rows)), "image" in names)

    def _read(self, base: int, rows: Sequence[int], with_pictures: bool) -> Chunk:
        pictures: list[Any] = []
        kept: list[int] = []
        bad: list[BadRow] = []
        for row in rows:
            file = self.files[base + row]
            if self.classes and self._labels[base + row] < 0:
                bad.append(BadRow(row, f"label {str(Path(file.name).parent)!r} is none of the classes"))
                continue
            try:
                if with_pictures:
                    pictures.append(self._decode(file))
            except BadInput as error:
                bad.append(BadRow(row, str(error)))
                continue
            kept.append(row)
        columns: dict[str, Any] = {"image": np.stack(pictures)} if pictures else {}
        if self.classes and (columns or not with_pictures):
            columns["label"] = np.array([self._labels[base + row] for row in kept], np.int64)
        return Chunk(columns, np.array(kept, np.int64), bad)

    def _decode(self, file: File) -> Any:
        _check_size(file.size)
        with open_file(file) as descriptor:
            data = read_range(file, descriptor, 0, file.size)
        return decode_picture(self._step, "image", data)

    def locate(self, block: Block, row: int) -> Location:
        return Location(self.files[block.place + row].path, "picture", 0)


def make_image_step(tensor: str, options: Mapping[str, Any]) -> tuple[ImageStep, dict[str, Any]]:
    """Give what makes a tensor of a picture, and the step as a version keeps it.

    Args:
        tensor: its name.
        options: `size`, `datatype`, `layout` and `channels` as of `PictureReader`, and those of the step.

    Raises:
        InputError: `bad_option`, `bad_preprocess`; `missing_extra`, Pillow is not installed.
    """
    load_module("PIL.Image", "Reading pictures")
    chosen = {key: value for key, value in options.items() if key != "datatype"}
    layout, channels = chosen.setdefault("layout", "NCHW"), chosen.setdefault("channels", "RGB")
    datatype = options.get("datatype", "FP32")
    size: Any = chosen.get("size")
    sides = cast("list[Any]", size) if isinstance(size, list | tuple) else []
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError("bad_option", option="size", got=options.get("size"), expected="[height, width] of all pictures")
    if datatype not in _TYPES:
        raise InputError("bad_option", option="datatype", got=datatype, expected=", ".join(sorted(_TYPES)))
    height, width = chosen["size"] = list(sides)
    count = 1 if channels == "grey" else 3
    shapes = {"NCHW": [-1, count, height, width], "NHWC": [-1, height, width, count], "NHW": [-1, height, width]}
    spec = {"datatype": datatype, "shape": shapes.get(layout, [])}
    try:
        return ImageStep({tensor: spec}, chosen, Path()), {"kind": "image", **chosen}
    except BadStep as error:
        raise InputError("bad_preprocess", detail=error) from error


def decode_picture(step: ImageStep, name: str, data: bytes) -> NDArray[Any]:
    """Give the tensor of one picture: a batch of a server's has bounds that a data set has not.

    Raises:
        BadInput: it is no picture of a known format, damaged, or too large.
    """
    _check_size(len(data))
    ((tensor,),) = step.convert(name, [data]).tensors.values()
    return tensor


def _check_size(size_bytes: int) -> None:
    if size_bytes > _MAX_BYTES:
        raise BadInput(f"it has {size_bytes} bytes, at most {_MAX_BYTES} are taken")


def _cut(files: Sequence[File]) -> Iterator[tuple[int, Sequence[File]]]:
    for start in range(0, len(files), _BLOCK_FILES):
        yield start, files[start : start + _BLOCK_FILES]
