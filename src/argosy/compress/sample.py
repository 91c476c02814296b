"""Rows that compression is calibrated and judged on: taken from what a user has, and never the same rows for both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.bench.rows import Rows
from argosy.errors import InputError, list_choices
from argosy.signature import Arrays, Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.train.data import check_rows

__all__ = ["Sample", "remove_known", "split_sample", "take_golden", "take_sample"]

_CALIBRATION_SHARE: Final = 0.25
_MAX_CALIBRATION_ROWS: Final = 512


@dataclass(frozen=True)
class Sample:
    """Requests, with what is right for them, if that is known."""

    rows: Rows
    """Of one row each where the signature has rows, else whole requests."""
    targets: Arrays = field(default_factory=dict[str, NDArray[Any]])
    """By output; the first axis counts the requests. Empty where none are known."""
    basis: str = "evaluation"
    """What they are: `evaluation` rows, or `golden` examples of the version."""

    def pick(self, places: Sequence[int]) -> Sample:
        """Some of the requests."""
        index = np.asarray(places, np.int64)
        targets = {name: array[index] for name, array in self.targets.items()}
        return Sample([self.rows[place] for place in places], targets, self.basis)


def take_sample(signature: Signature, rows: object, targets: object = None, basis: str = "evaluation") -> Sample:
    """Name and check rows, and their targets.

    Args:
        signature: of the version.
        rows: an array, or one for each input by name, whose first axis counts rows (of a signature without rows: requests); or
            a list of requests, each a mapping of arrays by input name, whose shapes may differ.
        targets: one a row, or by output name; None for none.
        basis: as `Sample.basis`.

    Raises:
        InputError: `bad_data`.
    """
    listed: list[Any] = cast("list[Any]", rows) if isinstance(rows, list) else []
    if listed and isinstance(listed[0], Mapping):
        requests = [_check_request(signature, request) for request in listed]
    else:
        requests = _cut(signature, _name_arrays(signature, cast("object", rows)))
    if not requests:
        raise InputError("bad_data", detail="there are no rows")
    return Sample(requests, _name_targets(signature, targets, len(requests)), basis)


def take_golden(signature: Signature, golden: Golden) -> Sample:
    """Give a version's examples as a sample without targets: the original's answers stand for them."""
    examples = [golden.example(index, is_batched=signature.is_batched).inputs for index in range(golden.num_examples)]
    return Sample(examples, basis="golden")


def split_sample(sample: Sample, *, seed: int = 0) -> tuple[Rows, Sample]:
    """Split rows into those that steps are calibrated on and those that candidates are judged on; equal rows stay together.

    Returns:
        At most a quarter of the different rows, and 512, without their targets; and all others.
    """
    groups: dict[bytes, list[int]] = {}
    for place, row in enumerate(sample.rows):
        groups.setdefault(_digest(row), []).append(place)
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    count = min(int(len(groups) * _CALIBRATION_SHARE), _MAX_CALIBRATION_ROWS)
    calibration = [sample.rows[members[index][0]] for index in order[:count]]
    return calibration, sample.pick(sorted(place for index in order[count:] for place in members[index]))


def remove_known(sample: Sample, calibration: Rows) -> Sample:
    """Leave out rows that steps are calibrated on.

    Raises:
        InputError: `bad_data`, none is left.
    """
    known = {_digest(row) for row in calibration}
    places = [place for place, row in enumerate(sample.rows) if _digest(row) not in known]
    if not places:
        raise InputError(
            "bad_data", detail="every evaluation row is a calibration row, too: a candidate must be judged on others"
        )
    return sample if len(places) == len(sample.rows) else sample.pick(places)


def _digest(row: Arrays) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(row):
        array = row[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _name_arrays(signature: Signature, rows: object) -> Arrays:
    given: Mapping[str, Any] = cast("Any", rows) if isinstance(rows, Mapping) else {signature.inputs[0].name: rows}
    _check_names(signature, given)
    arrays = {spec.name: _check_type(spec, check_rows(given[spec.name])) for spec in signature.inputs}
    first = 0 if signature.is_batched else 1
    for spec in signature.inputs:
        array = arrays[spec.name]
        if not spec.accepts(array.shape[first:]):
            got, want = f"type {array.dtype} and shape {array.shape}", spec.shape if not first else ("requests", *spec.shape)
            raise InputError("bad_data", detail=f"input {spec.name!r} has {got}, expected {spec.dtype} and {want}")
    if len({len(array) for array in arrays.values()}) != 1:
        raise InputError("bad_data", detail="the inputs have different numbers of rows")
    return arrays


def _cut(signature: Signature, arrays: Arrays) -> list[Arrays]:
    count = len(next(iter(arrays.values())))
    if signature.is_batched:
        return [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(count)]
    return [{name: array[index, ...] for name, array in arrays.items()} for index in range(count)]


def _check_request(signature: Signature, request: Mapping[str, Any]) -> Arrays:
    _check_names(signature, request)
    arrays = {spec.name: _check_type(spec, np.asarray(request[spec.name])) for spec in signature.inputs}
    for spec in signature.inputs:
        shape = arrays[spec.name].shape
        if not spec.accepts(shape) or (signature.is_batched and shape[0] != 1):
            want = (1, *spec.shape[1:]) if signature.is_batched else spec.shape
            raise InputError("bad_data", detail=f"input {spec.name!r} of a request has shape {shape}, expected {want}")
    return arrays


def _check_names(signature: Signature, given: Mapping[str, Any]) -> None:
    names = [spec.name for spec in signature.inputs]
    if set(given) != set(names):
        raise InputError("bad_data", detail=f"there are arrays for {list_choices(given)}, the model takes {list_choices(names)}")


def _check_type(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if spec.dtype.kind != "O" and not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        got = f"type {array.dtype} and shape {array.shape}"
        raise InputError("bad_data", detail=f"input {spec.name!r} has {got}, expected {spec.dtype} and {spec.shape}")
    return array.astype(spec.dtype, copy=False)


def _name_targets(signature: Signature, targets: object, num_rows: int) -> Arrays:
    if targets is None:
        return {}
    names = [spec.name for spec in signature.outputs]
    given: Mapping[str, Any] = cast("Any", targets) if isinstance(targets, Mapping) else {names[0]: targets}
    if not given or not set(given) <= set(names):
        raise InputError("bad_data", detail=f"there are targets for {list_choices(given)}, the model gives {list_choices(names)}")
    arrays = {name: np.asarray(target) for name, target in given.items()}
    for array in arrays.values():
        if array.ndim == 0 or len(array) != num_rows:
            raise InputError("bad_data", detail=f"evaluation has {num_rows} rows, its targets have shape {array.shape}")
    return arrays
