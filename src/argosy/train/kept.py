"""The weights of a published model under its framework's names, so that another run can start from them.

What the ONNX file of a version holds already is referred to; only the rest is written beside it, as safetensors:

    argosy.safetensors    8 bytes: length of the header; header: JSON, a tensor by name; then their bytes
"""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.signature import Arrays
from argosy.store.manifest import WEIGHTS_FILE

__all__ = ["KeptWeight", "KeptWeights", "open_kept", "write_kept"]

_CODES: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
"""Types as safetensors calls them."""
_MAX_HEADER_BYTES: Final = 100_000_000
"""As safetensors itself has it."""
_META: Final = "__metadata__"


def write_kept(weights: Arrays, path: Path, entry: Path | None) -> None:
    """Write weights by name, but those that an ONNX file holds as they are or transposed.

    Args:
        weights: by the framework's names.
        path: of the file to write.
        entry: the ONNX file; None if the version has none.
    """
    held = _find_held(weights, entry) if entry is not None else {}
    written = {name: array for name, array in weights.items() if name not in held and array.dtype.name in _CODES}
    meta = {"format": "np", "held": json.dumps(held)}
    if entry is not None:
        meta["holder"] = _digest(entry)
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


class KeptWeight(NamedTuple):
    """Where a weight is: in the file itself, or in the ONNX file."""

    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    start: int = 0
    """Of its bytes in the file."""
    array: NDArray[Any] | None = None
    """Of the ONNX file."""


class KeptWeights:
    """The weights of a version by name; read one by one, each only after it was found to be what is wanted."""

    def __init__(self, path: Path | None, found: Mapping[str, KeptWeight]) -> None:
        """Hold what was found; `path` is the file that was written for this, None for an ONNX file alone."""
        self._path = path
        self.found = dict(found)

    @property
    def is_whole(self) -> bool:
        """Whether these are all weights of a model and nothing else; an ONNX file alone holds other numbers, too."""
        return self._path is not None

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
        if weight.array is not None:
            return weight.array.copy()
        assert self._path is not None
        content = bytearray(like.nbytes)
        with self._path.open("rb") as file:
            file.seek(weight.start)
            size = file.readinto(content)
        if size != like.nbytes:
            raise ValueError(f"{self._path.name} ends within {name}")
        return np.frombuffer(content, like.dtype).reshape(like.shape)


def open_kept(folder: Path, entry: str, *, is_onnx: bool) -> KeptWeights:
    """Find the weights of an artifact: those kept for this, or those of an ONNX file by its own names.

    Args:
        folder: the artifact's files.
        entry: what its runtime loads.
        is_onnx: that is an ONNX file.

    Raises:
        ValueError: it holds none by name, or the file is none that `write_kept` made for this ONNX file.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if not is_onnx:
            raise ValueError("it keeps no weights by name")
        tensors = _read_tensors(folder / entry)
        return KeptWeights(None, {name: _hold(array) for name, array in tensors.items()})
    with path.open("rb") as file:
        header, start = _read_header(file)
    meta = _check_table(header.pop(_META, {}))
    held = _check_table(json.loads(str(meta.get("held", "{}"))))
    if held and (not is_onnx or meta.get("holder") != _digest(folder / entry)):
        raise ValueError(f"{entry} is not the file that its weights were kept for")
    found = {name: _read_place(name, table, start, path.stat().st_size) for name, table in header.items()}
    tensors = _read_tensors(folder / entry) if held else {}
    for name, place in held.items():
        tensor, is_transposed = _read_held(place)
        if tensor not in tensors:
            raise ValueError(f"{entry} holds no {tensor}")
        found[name] = _hold(tensors[tensor].T if is_transposed else tensors[tensor])
    return KeptWeights(path, found)


def _hold(array: NDArray[Any]) -> KeptWeight:
    return KeptWeight(_CODES.get(array.dtype.name, ""), array.shape, array=array)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Give the header, and where the bytes of the tensors begin."""
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= _MAX_HEADER_BYTES:
        raise ValueError(f"{WEIGHTS_FILE} is no file of safetensors")
    return _check_table(json.loads(file.read(size))), 8 + size


def _check_table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{WEIGHTS_FILE} is no file of safetensors")
    return cast("dict[str, Any]", value)


def _read_held(place: Any) -> tuple[str, bool]:
    """Give the name of a tensor of the ONNX file, and whether it is transposed there."""
    match place:
        case [str(tensor), bool(is_transposed)]:
            return tensor, is_transposed
        case _:
            raise ValueError(f"{WEIGHTS_FILE} does not say where its weights are held")


def _read_place(name: str, table: Any, start: int, size: int) -> KeptWeight:
    try:
        first, last = (int(offset) for offset in table["data_offsets"])
        shape = tuple(int(length) for length in table["shape"])
        dtype = str(table["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{WEIGHTS_FILE} does not say where {name} is") from error
    if not 0 <= first <= last <= size - start:
        raise ValueError(f"{WEIGHTS_FILE} ends before {name}")
    return KeptWeight(dtype, shape, start + first)


def _find_held(weights: Arrays, path: Path) -> dict[str, tuple[str, bool]]:
    """Name the tensor of an ONNX file that holds a weight, and whether it is transposed there; for each that one holds."""
    known: dict[tuple[Any, ...], tuple[str, bool]] = {}
    for name, array in _read_tensors(path).items():
        if array.ndim == 2:
            known[_identify(array.T)] = (name, True)
        known[_identify(array)] = (name, False)
    found = {name: known.get(_identify(array)) for name, array in weights.items()}
    return {name: place for name, place in found.items() if place is not None}


def _identify(array: NDArray[Any]) -> tuple[Any, ...]:
    return array.dtype.name, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _read_tensors(path: Path) -> Arrays:
    """Give the initializers of an ONNX file by name.

    Raises:
        ValueError: it cannot be read.
    """
    onnx: Any = importlib.import_module("onnx")
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    try:
        graph = onnx.load(str(path)).graph
        return {tensor.name: np.asarray(to_array(tensor)) for tensor in graph.initializer}
    except Exception as error:  # What protobuf and onnx raise shares no base but this one.
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
