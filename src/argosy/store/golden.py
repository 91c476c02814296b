"""Golden examples: inputs with the artifact's own outputs, against which a rollout verifies a loaded version.

On disk an uncompressed `.npz`: entries `in:NAME` and `out:NAME`. A BYTES tensor is its packed bytes (uint8,
see `argosy.signature.pack_bytes`) with its shape in `shape:in:NAME`, for NumPy would pickle an object array. Items of two
bytes without a type are bfloat16.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import OPAQUE, decode_stored, is_bfloat16
from argosy.errors import ArgosyError, InputError, StoreError, list_choices
from argosy.signature import Arrays, Signature, TensorSpec, pack_bytes, unpack_bytes

__all__ = ["Golden", "check_golden", "decode_golden", "encode_golden"]

_SIDES: Final = ("in:", "out:")
_SHAPE: Final = "shape:"


class Golden(msgspec.Struct, eq=False):
    """Recorded examples of a version. The first axis of every array counts examples.

    Of a batched signature an example is one row, so arrays have the tensors' own shapes. Otherwise an
    example is a whole request: the shapes have one axis more than the tensors, in front. Outputs are what the
    artifact answers to that example alone, non-finite values as they come.
    """

    inputs: Arrays
    outputs: Arrays

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return min((len(array) for array in (self.inputs | self.outputs).values() if array.ndim), default=0)

    def example(self, index: int, *, is_batched: bool) -> Golden:
        """Give one example as a request and its answer, views of the arrays."""
        # With the ellipsis what has no axes stays an array.
        pick = slice(index, index + 1) if is_batched else (index, ...)
        return Golden({n: a[pick] for n, a in self.inputs.items()}, {n: a[pick] for n, a in self.outputs.items()})


def check_golden(golden: Golden, signature: Signature, model: str) -> None:
    """Hold golden examples against the signature.

    Raises:
        InputError: `bad_golden`, a tensor is missing, unknown, of another datatype or shape, or the arrays
            have different numbers of examples, or none.
    """
    for arrays, specs, side in ((golden.inputs, signature.inputs, "inputs"), (golden.outputs, signature.outputs, "outputs")):
        if set(arrays) != {spec.name for spec in specs}:
            known = list_choices(spec.name for spec in specs)
            raise InputError("bad_golden", model=model, detail=f"{side} are {list_choices(arrays)}, expected {known}")
        for spec in specs:
            _check_array(arrays[spec.name], spec, is_batched=signature.is_batched, model=model)
    lengths = {name: len(array) for name, array in (golden.inputs | golden.outputs).items()}
    if len(set(lengths.values())) != 1 or not golden.num_examples:
        raise InputError("bad_golden", model=model, detail=f"numbers of examples are {lengths}, expected one number above 0")


def _check_array(array: NDArray[Any], spec: TensorSpec, *, is_batched: bool, model: str) -> None:
    if array.dtype != spec.dtype:
        detail = f"{spec.name!r} has dtype {array.dtype}, expected {spec.dtype} for {spec.datatype}"
        raise InputError("bad_golden", model=model, detail=detail)
    expected = spec.shape if is_batched else (-1, *spec.shape)
    if array.ndim != len(expected) or not spec.accepts(array.shape if is_batched else array.shape[1:]):
        detail = f"{spec.name!r} has shape {array.shape}, expected {expected}; the first axis counts examples"
        raise InputError("bad_golden", model=model, detail=detail)


def encode_golden(golden: Golden) -> bytes:
    """Serialise golden examples as an uncompressed `.npz`; equal examples give equal bytes."""
    entries: dict[str, NDArray[Any]] = {}
    for prefix, arrays in zip(_SIDES, (golden.inputs, golden.outputs), strict=True):
        for name, array in arrays.items():
            if array.dtype.kind == "O":
                entries[_SHAPE + prefix + name] = np.array(array.shape, dtype=np.int64)
                entries[prefix + name] = np.frombuffer(pack_bytes(array), dtype=np.uint8)
            else:
                entries[prefix + name] = array.view(OPAQUE) if is_bfloat16(array.dtype) else array
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for key, array in entries.items():
            # A ZipInfo of our own has a fixed date, so that the digest depends on the examples alone.
            with archive.open(zipfile.ZipInfo(key + ".npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    return out.getvalue()


def decode_golden(data: bytes, what: str) -> Golden:
    """Read golden examples.

    Raises:
        StoreError: `bad_manifest`, the data is no such file, is compressed (it could unpack to any size) or
            holds pickled objects.
    """
    try:
        entries = _read_entries(data)
        sides: list[Arrays] = []
        for prefix in _SIDES:
            names = [key.removeprefix(prefix) for key in entries if key.startswith(prefix)]
            sides.append({name: _restore(entries, prefix + name) for name in names})
    except (zipfile.BadZipFile, ValueError, OverflowError, MemoryError, EOFError, KeyError, ArgosyError) as error:
        raise StoreError("bad_manifest", what=what, detail=error) from error
    return Golden(*sides)


def _read_entries(data: bytes) -> dict[str, NDArray[Any]]:
    """Read each entry under its exact name: `np.load` would take one tensor `a.npy` for another named `a`."""
    entries: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"entry {info.filename!r} is compressed")
            entries[info.filename.removesuffix(".npy")] = np.lib.format.read_array(
                io.BytesIO(archive.read(info)), allow_pickle=False
            )
    return entries


def _restore(entries: dict[str, NDArray[Any]], key: str) -> NDArray[Any]:
    if _SHAPE + key not in entries:
        return decode_stored(entries[key])
    shape = tuple(int(dim) for dim in entries[_SHAPE + key])
    num_elements = int(np.prod(shape, dtype=np.int64))
    return unpack_bytes(entries[key].tobytes(), num_elements, key).reshape(shape)
