"""Rows that compression is calibrated and judged on: taken from what a user has, and never the same rows for both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.bench.rows import Rows
from argosy.errors import InputError, list_choices
from argosy.runtimes.preprocess import Preprocessor
from argosy.signature import Arrays, Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.train.data import check_rows
from argosy.train.elements import make_array

__all__ = ["Sample", "group_rows", "remove_known", "split_sample", "take_golden", "take_sample", "thin_rows"]

_CALIBRATION_SHARE: Final = 0.25
_MAX_CALIBRATION_ROWS: Final = 512
_ENOUGH_JUDGED: Final = 1000
"""Rows to judge on, beyond which more of them are of more use to train on."""


@dataclass(frozen=True)
class Sample:
    """Requests, with what is right for them, if that is known."""

    rows: Rows
    """Of one row each where the signature has rows, else whole requests."""
    targets: Arrays = field(default_factory=dict[str, NDArray[Any]])
    """By output; the first axis counts the requests. Empty where none are known."""
    basis: str = "evaluation"
    """What they are: `evaluation` rows, or `golden` examples of the version."""
    places: Sequence[int] = ()
    """Of each among the rows that were given; empty where these are all of them."""

    def find_place(self, row: int) -> int:
        """Give the place of a request among the rows that were given."""
        return self.places[row] if self.places else row

    def pick(self, places: Sequence[int]) -> Sample:
        """Some of the requests."""
        index = np.asarray(places, np.int64)
        targets = {name: array[index] for name, array in self.targets.items()}
        found = [self.find_place(place) for place in places]
        return Sample([self.rows[place] for place in places], targets, self.basis, found)


def take_sample(signature: Signature, rows: object, targets: object = None, *, folder: Path = Path()) -> Sample:
    """Name and check rows, and their targets.

    Args:
        signature: of the version. Where it says how tensors are made of texts or pictures, rows may be these: a list of texts or
            of files' contents, or such lists by the steps' names, besides the tensors that no step makes.
        rows: an array, or one for each input by name, whose first axis counts rows (of a signature without rows: requests); or
            a list of requests, each a mapping of arrays by input name, whose shapes may differ.
        targets: one a row, or by output name; None for none.
        folder: of the artifact, with the steps' files.

    Raises:
        InputError: `bad_data`.
    """
    listed = _as_list(rows)
    raw = _name_raw(signature, rows)
    if raw is not None:
        requests = _convert_raw(signature, raw, folder)
    elif listed and isinstance(listed[0], Mapping):
        requests = [_check_request(signature, request) for request in listed]
    else:
        requests = _cut(signature, _name_arrays(signature, rows))
    if not requests:
        raise InputError("bad_data", detail="there are no rows")
    return Sample(requests, _name_targets(signature, targets, len(requests)))


def take_golden(signature: Signature, golden: Golden) -> Sample:
    """Give a version's examples as a sample without targets: the original's answers stand for them."""
    examples = [golden.example(index, is_batched=signature.is_batched).inputs for index in range(golden.num_examples)]
    return Sample(examples, basis="golden")


def split_sample(sample: Sample, *, seed: int = 0) -> tuple[Rows, Sample, Sample]:
    """Split rows into those that steps learn from and those that candidates are judged on; equal rows stay together.

    Returns:
        Rows to calibrate with: at most a quarter of the different ones, and 512. Rows to train on: these and more, so that a
        quarter at least, and three quarters at most, are judged on, and 1000 of them if there are so many. And those to judge on.
    """
    groups: dict[bytes, list[int]] = {}
    for place, row in enumerate(sample.rows):
        groups.setdefault(_digest(row), []).append(place)
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    count = min(int(len(groups) * _CALIBRATION_SHARE), _MAX_CALIBRATION_ROWS)
    calibration = [sample.rows[members[index][0]] for index in order[:count]]
    judged = max(int(len(groups) * _CALIBRATION_SHARE), min(len(groups) - count, _ENOUGH_JUDGED))
    parts = order[: len(groups) - judged], order[len(groups) - judged :]
    training, rest = (sample.pick(sorted(place for index in part for place in members[index])) for part in parts)
    return calibration, training, rest


def thin_rows(rows: Rows, count: int) -> Rows:
    """Give so many of the rows, evenly spaced from the first to the last: data is often sorted by class."""
    return rows if len(rows) <= count else [rows[index * (len(rows) - 1) // max(1, count - 1)] for index in range(count)]


def group_rows(rows: Rows) -> list[int]:
    """Give of each row a number, from 0, which equal rows have in common."""
    known: dict[bytes, int] = {}
    return [known.setdefault(_digest(row), len(known)) for row in rows]


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


def _as_list(rows: object) -> list[Any]:
    return cast("list[Any]", rows) if isinstance(rows, list) else []


def _name_raw(signature: Signature, rows: object) -> dict[str, list[Any]] | None:
    """Give rows as clients send them, by name; None for tensors."""
    names = [spec.name for spec in signature.raw_inputs]
    if not signature.preprocess:
        return None
    if isinstance(rows, Mapping):
        given = cast("Mapping[str, Any]", rows)
        return {name: list(given[name]) for name in names} if set(given) == set(names) else None
    texts = _as_list(rows)
    return {names[0]: texts} if len(names) == 1 and texts and isinstance(texts[0], str | bytes) else None


def _convert_raw(signature: Signature, raw: Mapping[str, list[Any]], folder: Path) -> list[Arrays]:
    """Make tensors of texts and pictures as a worker does, each row alone, so that none is padded."""
    steps = {step.name for step in signature.preprocess}
    given = {name: [_encode(item) for item in items] if name in steps else items for name, items in raw.items()}
    try:
        preprocessor = Preprocessor(msgspec.to_builtins(signature), folder)
        made = preprocessor.convert({name: items for name, items in given.items() if name in steps}).tensors
    except ValueError as error:  # BadStep, BadInput: which row, and what is wrong with it
        raise InputError("bad_data", detail=str(error)) from error
    columns = {
        **made,
        **{
            name: [make_array(item, f"a row of {name!r}") for item in items] for name, items in given.items() if name not in steps
        },
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise InputError("bad_data", detail="the inputs have different numbers of rows")
    return [
        _check_request(signature, {name: column[index][None] for name, column in columns.items()})
        for index in range(len(next(iter(columns.values()))))
    ]


def _encode(item: object) -> bytes:
    if not isinstance(item, str | bytes):
        raise InputError("bad_data", detail=f"a row is a {type(item).__name__}, expected text, or the bytes of a picture")
    return item.encode() if isinstance(item, str) else item


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
    arrays = {
        spec.name: _check_type(spec, make_array(request[spec.name], f"input {spec.name!r} of a request"))
        for spec in signature.inputs
    }
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
    arrays = {name: make_array(target, "targets") for name, target in given.items()}
    for array in arrays.values():
        if array.ndim == 0 or len(array) != num_rows:
            raise InputError("bad_data", detail=f"evaluation has {num_rows} rows, its targets have shape {array.shape}")
    return arrays
