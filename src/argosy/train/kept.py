"""The weights of a published model under its framework's names, so that another run can start from them.

Most weights stand byte for byte in the files that serve already, whatever their format: these are referred to by where they
begin there. Only the rest is written beside them, as safetensors:

    argosy.safetensors    8 bytes: length of the header; header: JSON, a tensor by name; then their bytes

All of it may come from elsewhere, and is hostile then: the header is held against its type and the places in it against the
files, and nothing else is parsed. Of an ONNX file that was imported, a confined process makes such a file (`extraction.py`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.signature import Arrays
from argosy.store.manifest import WEIGHTS_FILE

__all__ = ["KeptWeight", "KeptWeights", "open_kept", "write_kept"]

_Kind = TypeVar("_Kind")

_CODES: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
"""Types as safetensors calls them."""
_MAX_HEADER_BYTES: Final = 32 << 20
"""Some hundred thousand tensors; a hostile header takes many times its size in memory."""
_META: Final = "__metadata__"
_STEP: Final = 1024
_MIN_HELD_BYTES: Final = 2 * _STEP
"""A smaller weight is written: to say where it stands takes nearly as much."""
_MAX_ALIKE: Final = 8
"""A word that a file has in more places tells none of them: it is of zeros, or of another number again and again."""
_MAX_NAME: Final = 1000


_Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]{1,16}\Z")]
_Shape = Annotated[tuple[int, ...], msgspec.Meta(max_length=64)]
"""Messages show both."""


class _Held(msgspec.Struct, frozen=True):
    """A weight that stands in another file."""

    file: str
    start: int
    dtype: _Word
    shape: _Shape
    is_transposed: bool


def write_kept(weights: Arrays, path: Path, files: Sequence[Path]) -> None:
    """Write weights by name, but those that other files hold as they are or transposed.

    Args:
        weights: by the framework's names.
        path: of the file to write.
        files: that will lie beside it.
    """
    known = {name: array for name, array in weights.items() if array.dtype.name in _CODES}
    held = _find_held(known, files)
    written = {name: array for name, array in known.items() if name not in held}
    holders = {file.name: _digest(file) for file in files if any(weight.file == file.name for weight in held.values())}
    meta = {"format": "np", "held": msgspec.json.encode(held).decode(), "holders": json.dumps(holders)}
    header: dict[str, Any] = {_META: meta}
    offset = 0
    for name, array in written.items():
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset := offset + array.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in written.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _find_held(weights: Arrays, files: Sequence[Path]) -> dict[str, _Held]:
    """Say where weights stand in files, for each that stands in one."""
    found: dict[str, _Held] = {}
    for path in files:
        if path.stat().st_size < _MIN_HELD_BYTES:
            continue
        finder = _Finder(path)
        for name, array in weights.items():
            if name in found or array.nbytes < _MIN_HELD_BYTES:
                continue
            for is_transposed in (False, True):
                start = finder.find(array.T if is_transposed else array)
                if start is not None:
                    found[name] = _Held(path.name, start, _CODES[array.dtype.name], array.shape, is_transposed)
                    break
    return found


class _Finder:
    """Finds arrays in a file, wherever in it they begin.

    Of the file one word of 8 bytes in 1024 is known, in order. An array of twice as many bytes has one of them among the first
    1024 words of its own; which it is, a search tells, and a comparison whether the rest follows.
    """

    def __init__(self, path: Path) -> None:
        self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        count = len(self._bytes) // _STEP
        words = _to_words(self._bytes[: count * _STEP].reshape(count, _STEP)[:, :8])
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]

    def find(self, array: NDArray[Any]) -> int | None:
        """Give the place of an array's first byte, or None."""
        wanted: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        # It may begin with zeros, as an embedding does that knows a word for nothing.
        for base in (0, len(wanted) // 2 - _STEP // 2, len(wanted) - _STEP - 7):
            words = _to_words(np.lib.stride_tricks.sliding_window_view(wanted[base : base + _STEP + 7], 8))
            first, last = (np.searchsorted(self._words, words, side) for side in ("left", "right"))
            for offset in np.flatnonzero((last > first) & (last <= first + _MAX_ALIKE)).tolist():
                for place in self._order[first[offset] : last[offset]].tolist():
                    start = place * _STEP - offset - base
                    if start >= 0 and np.array_equal(self._bytes[start : start + len(wanted)], wanted):
                        return start
        return None


def _to_words(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Make a number of each row of 8 bytes."""
    return np.ascontiguousarray(rows).view(np.uint64)[:, 0]


class KeptWeight(NamedTuple):
    """Where a weight is."""

    path: Path
    """Of the file that has it."""
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""
    is_transposed: bool = False
    """The file has its axes the other way round."""


class KeptWeights:
    """The weights of a version by name; read one by one, each only after it was found to be what is wanted."""

    def __init__(self, found: Mapping[str, KeptWeight], *, is_whole: bool) -> None:
        """Hold what was found."""
        self.found = dict(found)
        self.is_whole = is_whole
        """Whether these are all weights of a model and nothing else; an ONNX file alone holds other numbers, too."""

    def show(self, name: str) -> str:
        """Give type and shape of a weight, for a message."""
        weight = self.found[name]
        dtype = next((dtype for dtype, code in _CODES.items() if code == weight.dtype), weight.dtype or "of another type")
        return f"{dtype} {list(weight.shape)}"

    def fits(self, name: str, like: NDArray[Any]) -> bool:
        """Say whether a weight has the shape and type of another."""
        weight = self.found[name]
        return weight.shape == like.shape and weight.dtype == _CODES.get(like.dtype.name)

    def read(self, name: str, like: NDArray[Any]) -> NDArray[Any]:
        """Give a weight that fits.

        Raises:
            ValueError: the file ends before it does.
        """
        weight = self.found[name]
        content = bytearray(like.nbytes)
        with weight.path.open("rb") as file:
            file.seek(weight.start)
            size = file.readinto(content)
        if size != like.nbytes:
            raise ValueError(f"{weight.path.name} ends within {name}")
        array = np.frombuffer(content, like.dtype)
        return array.reshape(like.shape[::-1]).T if weight.is_transposed else array.reshape(like.shape)


@contextmanager
def open_kept(folder: Path, entry: str, *, is_onnx: bool) -> Generator[KeptWeights]:
    """Find the weights of an artifact: those kept for this, or those of an ONNX file by its own names.

    Args:
        folder: the artifact's files.
        entry: what its runtime loads.
        is_onnx: that is an ONNX file.

    Raises:
        ValueError: it holds none by name, or the file is none that `write_kept` made for these files.
        StoreError: `temp_full`.
    """
    if (folder / WEIGHTS_FILE).is_file():
        yield KeptWeights(_read_kept(folder), is_whole=True)
        return
    if not is_onnx:
        raise ValueError("it keeps no weights by name")
    # Few runs start from such a file: the others load nothing of what confines.
    from argosy.train.extraction import extract_tensors

    with extract_tensors(folder, entry) as path:
        yield KeptWeights(_read_header(path)[0], is_whole=False)


def _read_kept(folder: Path) -> dict[str, KeptWeight]:
    """Find what `write_kept` wrote or referred to."""
    found, meta = _read_header(folder / WEIGHTS_FILE)
    held = _decode(meta.get("held", "{}").encode(), dict[str, _Held], "does not say where its weights are held")
    holders = _decode(meta.get("holders", "{}").encode(), dict[str, str], "does not say where its weights are held")
    _check_names(held)
    files = {path.name: path for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    for name in {weight.file for weight in held.values()}:
        if name not in files or holders.get(name) != _digest(files[name]):
            raise ValueError("a file that its weights stand in is not the one that they were kept for")
    for name, weight in held.items():
        path = files[weight.file]
        if not 0 <= weight.start <= path.stat().st_size:
            raise ValueError(f"{path.name} ends before {name}")
        found[name] = KeptWeight(path, weight.dtype, weight.shape, weight.start, weight.is_transposed)
    return found


class _Place(msgspec.Struct, frozen=True):
    """A tensor in the header of a file of safetensors."""

    dtype: _Word
    shape: _Shape
    data_offsets: tuple[int, int]


def _read_header(path: Path) -> tuple[dict[str, KeptWeight], dict[str, str]]:
    """Find the tensors of a file of safetensors, and what it says beside them."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes):
            raise ValueError(f"{path.name} is no file of safetensors")
        tables = _decode(file.read(length), dict[str, msgspec.Raw], "is no file of safetensors")
    meta = _decode(bytes(tables.pop(_META, msgspec.Raw(b"{}"))), dict[str, str], "is no file of safetensors")
    _check_names(tables)
    found: dict[str, KeptWeight] = {}
    for name, table in tables.items():
        place = _decode(bytes(table), _Place, f"does not say where {name} is")
        first, last = place.data_offsets
        if not 0 <= first <= last <= size_bytes - 8 - length:
            raise ValueError(f"{path.name} ends before {name}")
        found[name] = KeptWeight(path, place.dtype, place.shape, 8 + length + first)
    return found, meta


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that a message could not show."""
    if not all(name.isprintable() and len(name) <= _MAX_NAME for name in names):
        raise ValueError(f"{WEIGHTS_FILE} holds a name of more than {_MAX_NAME} characters, or one that cannot be printed")


def _decode(text: bytes, kind: type[_Kind], told: str) -> _Kind:
    try:
        return msgspec.json.decode(text, type=kind)
    # Lists in lists without end are no error of JSON's.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{WEIGHTS_FILE} {told}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
