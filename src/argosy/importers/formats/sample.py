"""Sample rows of an import: the user's, or random ones where the file tells the shapes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ArgosyError, InputError, list_choices
from argosy.importers.formats.base import FORMATS, ForeignModel
from argosy.signature import Arrays, TensorSpec

__all__ = ["NUM_ROWS", "count_rows", "is_batched", "name_sample", "synthesise"]

NUM_ROWS: Final = 8
"""Golden examples of a version: enough to tell a wrong artifact, few enough to run in milliseconds."""

_ATTEMPTS: Final = ((16, 100), (16, 2), (224, 100), (1, 100))
"""(length of free axes, bound of integers): small vocabularies, images that pooling makes too small at 16, single steps."""

_NUM_WORDS: Final = 4
"""Of a random text, of words that the model knows."""

_MAX_ELEMENTS: Final = 1 << 26
"""Of one tensor, all rows together: 256 MiB of float32."""


def is_batched(model: ForeignModel) -> bool:
    """Say whether the first axis of a model's tensors is rows: unless its file fixes a length."""
    return all(spec.shape[:1] == (-1,) for spec in model.inputs)


def count_rows(inputs: Arrays) -> int:
    """Give the number of rows of inputs that have some."""
    return len(next(iter(inputs.values())))


def name_sample(given: Mapping[str, NDArray[Any]] | NDArray[Any], model: ForeignModel) -> Arrays:
    """Give the user's sample the names of the model's inputs, and at most as many rows as become golden examples.

    Raises:
        InputError: `bad_sample`, names or numbers of rows do not fit.
    """
    if not isinstance(given, Mapping):
        if len(model.input_names) != 1:
            known = list_choices(model.input_names)
            raise InputError("bad_sample", detail=f"it is one array, expected one for each of the inputs {known}, by name")
        given = {model.input_names[0]: given}
    names = model.take_names(list(given))
    if set(given) != set(names):
        raise InputError("bad_sample", detail=f"it has {list_choices(given)}, expected {list_choices(names)}")
    inputs = {name: np.asarray(given[name]) for name in names}
    if is_batched(model):
        lengths = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise InputError("bad_sample", detail=f"rows are {lengths}, expected one number above 0, on the first axis")
        inputs = {name: array[:NUM_ROWS] for name, array in inputs.items()}
    return model.arrange(inputs)


def synthesise(model: ForeignModel, format_name: str) -> Arrays:
    """Make random rows that the model answers with finite numbers.

    Raises:
        InputError: `needs_sample`, the file does not tell the shapes, or nothing that was tried is answered so.
    """
    title, reason = FORMATS[format_name].title, ""
    if not model.inputs:
        known = list_choices(model.input_names)
        raise InputError("needs_sample", title=title, detail=f"it does not tell the shapes of its inputs ({known})")
    for free_length, bound in _ATTEMPTS:
        generator = np.random.default_rng(0)
        try:
            inputs = {spec.name: _draw(spec, generator, free_length, bound, model) for spec in model.inputs}
            answers = model.predict(inputs)
        except ArgosyError as error:
            reason = reason or error.message
            continue
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in answers.values()):
            return inputs
        reason = reason or "random rows are answered with NaN or infinity"
    raise InputError("needs_sample", title=title, detail=reason)


def _draw(spec: TensorSpec, generator: np.random.Generator, free_length: int, bound: int, model: ForeignModel) -> NDArray[Any]:
    """Draw one input, in the range that its datatype and name suggest."""
    has_rows = is_batched(model)
    shape = tuple(free_length if dim == -1 else dim for dim in spec.shape)
    shape = (NUM_ROWS, *shape[1:]) if has_rows else shape
    if math.prod(shape) > _MAX_ELEMENTS:
        raise InputError("bad_sample", detail=f"random rows of input {spec.name!r} would have shape {shape}")
    kind = spec.dtype.kind
    if kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    if kind == "O":
        texts = np.empty(shape, object)
        words = model.words or tuple(f"word {number}" for number in range(bound))
        count = _NUM_WORDS if model.words else 1
        picked: list[list[int]] = generator.integers(0, len(words), (texts.size, count)).tolist()
        texts.ravel()[:] = [" ".join(words[number] for number in numbers).encode() for numbers in picked]
        return texts
    if kind == "b" or "mask" in spec.name.lower() or "type" in spec.name.lower():
        values = generator.integers(0, 2, shape)
        if "mask" in spec.name.lower() and values.ndim > 1:
            values[..., 0] = 1  # A mask of zeros alone makes a softmax over nothing.
        return values.astype(spec.dtype)
    return generator.integers(0, bound, shape).astype(spec.dtype)
