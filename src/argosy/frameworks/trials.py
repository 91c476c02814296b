"""Rows that take other ways through a model than its sample does, to hold an artifact against the model on.

A tracer writes down what one sample did. Where the model branches on its data, or takes a length for a constant, the artifact
answers that sample as the model does, and other rows wrongly. So nothing is believed from the sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.signature import Arrays

__all__ = ["LENGTHS", "SAMPLE", "Free", "Trial", "draw_trials"]

SAMPLE: Final = "sample"
LENGTHS: Final = "lengths"
"""Kinds of trials; those of other lengths have the rest after a space."""

Free = Mapping[str, Sequence[int]]
"""By input: its axes of any length, beside that of the rows."""

_NUM_ROWS: Final = 8
"""Of one trial: several fates of a row at once, and few enough for a large model."""
_SIZES: Final = (1, 2, 7)
"""Batch sizes of the sample: one, what is traced, and one that nothing was traced with."""
_SMALL: Final = 0.01
_LARGE: Final = 100.0
_STEPS: Final[tuple[Callable[[int], int], ...]] = (
    lambda length: 1,
    lambda length: max(length // 2, 1),
    lambda length: length + 1,
    lambda length: 2 * length + 3,
)
"""Other lengths: the shortest, and some on both sides of the sample's that share no factor with it."""


class Trial(NamedTuple):
    """Inputs of one batch."""

    kind: str
    """In a word or two, for lineage and messages."""
    inputs: Arrays
    is_far: bool = False
    """Rows are unlike the sample's."""
    may_fail: bool = False
    """The model may take the inputs for something that has a range, such as ids: an artifact that refuses them is not wrong."""


def draw_trials(inputs: Arrays, free: Free, *, has_rows: bool = True) -> Iterator[Trial]:
    """Give batches to try, the same ones for the same inputs.

    Args:
        inputs: real ones, of any number of rows.
        free: axes whose length is tried, too.
        has_rows: the first axis of every input counts rows; otherwise the inputs are one request.

    Yields:
        The sample; rows made of its own values (of other rows, permuted, its smallest and largest); its negative, small and
        large multiples, zeros and ones, random numbers of many magnitudes; text in other cases and orders; other lengths. Of
        several inputs one alone is negated, and set to zero, too.
    """
    first = {name: array[:_NUM_ROWS] for name, array in inputs.items()} if has_rows else inputs
    yield from _repeat_sample(first, has_rows)
    may_fail = any(array.dtype.kind == "f" and np.array_equal(array, np.round(array)) for array in inputs.values())
    generator = np.random.default_rng(0)
    for kind, change in _CHANGES.items():
        changed = {name: np.asarray(change(first[name], inputs[name], generator, has_rows)) for name in inputs}
        is_far = kind in _FAR
        moved = [name for name, array in changed.items() if not _is_same(first[name], array)]
        if moved:
            yield from _with_one(Trial(kind, changed, is_far, may_fail and is_far), has_rows)
        if kind in _ONE_BY_ONE and len(inputs) > 1:
            for name in moved:
                yield Trial(f"{kind} of {name}", first | {name: changed[name]}, is_far, may_fail and is_far)
    for number, step in enumerate(_STEPS):
        for together in (True, False) if any(len(axes) > 1 for axes in free.values()) else (True,):
            stretched = {
                name: _stretch(array, free.get(name, ()), step, None if together else number % 2) for name, array in first.items()
            }
            if any(stretched[name].shape != array.shape for name, array in first.items()):
                yield Trial(f"{LENGTHS} {_name_lengths(stretched, free)}", stretched)


def _repeat_sample(first: Arrays, has_rows: bool) -> Iterator[Trial]:
    if not has_rows:
        yield Trial(SAMPLE, first)
        return
    num_rows = len(next(iter(first.values())))
    for size in dict.fromkeys((*_SIZES, num_rows)):
        picked = np.arange(size) % num_rows
        yield Trial(SAMPLE, {name: array[picked] for name, array in first.items()})


def _with_one(trial: Trial, has_rows: bool) -> Iterator[Trial]:
    """Give the batch, and one row of it alone, whose fate no other row shares."""
    yield trial
    if has_rows and len(next(iter(trial.inputs.values()))) > 1:
        yield trial._replace(inputs={name: array[-1:] for name, array in trial.inputs.items()})


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.array_equal(one, other))


def _name_lengths(inputs: Arrays, free: Free) -> str:
    return ", ".join("x".join(str(inputs[name].shape[axis]) for axis in axes) for name, axes in free.items() if axes)


def _stretch(array: NDArray[Any], axes: Sequence[int], step: Callable[[int], int], only: int | None) -> NDArray[Any]:
    """Repeat or cut an array along its free axes: all of them, or one in two."""
    for place, axis in enumerate(axes):
        if only is None or place % 2 == only:
            length = array.shape[axis]
            array = np.take(array, np.arange(step(length)) % length, axis=axis)
    return np.asarray(array, order="C")


_Change = Callable[[NDArray[Any], NDArray[Any], np.random.Generator, bool], NDArray[Any]]
"""From the first rows, all that there are, random numbers, and whether the first axis counts rows."""


def _mix(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    """Take each value from another row, at its own place: what the data's own spread allows."""
    if not has_rows or rows.dtype.kind == "O":
        return first
    picked = generator.integers(0, len(rows), (_NUM_ROWS, *rows.shape[1:]))
    return np.take_along_axis(rows, picked, axis=0)


def _take_ends(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    if not has_rows or rows.dtype.kind == "O":
        return first
    return np.stack([rows.min(axis=0), rows.max(axis=0)])[np.arange(_NUM_ROWS) % 2]


def _permute(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    if first.dtype.kind == "O":
        return _change_text(first, _shuffle)
    flat = first.reshape(len(first), -1) if has_rows else first.reshape(1, -1)
    # The same order in each input, so that what belongs together stays so where inputs are as long.
    order = np.random.default_rng(1).permutation(flat.shape[1])
    order = order[::-1] if np.array_equal(order, np.arange(len(order))) else order
    return np.asarray(flat[:, order].reshape(first.shape), order="C")


def _negate(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    if first.dtype.kind == "b":
        return ~first
    return -first if first.dtype.kind == "f" else first


def _shrink(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    return (first * _SMALL).astype(first.dtype) if first.dtype.kind == "f" else first


def _grow(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return (first * _LARGE).astype(first.dtype) if first.dtype.kind == "f" else first


def _clear(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    # An id of 0 is in every table; other ids than the sample's may be in none.
    return _change_text(first, lambda text: "") if first.dtype.kind == "O" else np.zeros_like(first)


def _fill(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    return np.ones_like(first) if first.dtype.kind == "f" else first


def _draw(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    """Draw at random: numbers of magnitudes from a thousandth to a thousand, one for each row; integers as the sample's."""
    shape = (_NUM_ROWS, *first.shape[1:]) if has_rows else first.shape
    match first.dtype.kind:
        case "f":
            powers = generator.permutation(np.linspace(-3, 3, shape[0])) if has_rows else generator.uniform(-3, 3, ())
            scale = (10.0**powers).reshape(-1, *[1] * (len(shape) - 1)) if has_rows else 10.0**powers
            return (generator.standard_normal(shape) * scale).astype(first.dtype)
        case "i" | "u":
            return generator.integers(int(rows.min()), int(rows.max()), shape, first.dtype, endpoint=True)
        case "b":
            return generator.integers(0, 2, shape).astype(first.dtype)
        case _:
            return _change_text(np.resize(first, shape), _scramble)


def _raise_case(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    return _change_text(first, str.upper) if first.dtype.kind == "O" else first


def _punctuate(first: NDArray[Any], rows: NDArray[Any], generator: np.random.Generator, has_rows: bool) -> NDArray[Any]:
    # A letter between words, marks, and letters beyond ASCII: where tokenizers differ.
    if first.dtype.kind != "O":
        return first
    return _change_text(first, lambda text: f"É a {' the '.join(text.title().split())}  x, (don't) naïve!\tß 7")


def _change_text(array: NDArray[Any], change: Callable[[str], str]) -> NDArray[Any]:
    out = np.empty(array.shape, object)
    out.ravel()[:] = [change(_decode(item)).encode() for item in array.ravel().tolist()]
    return out


def _decode(item: bytes | str) -> str:
    return item.decode(errors="replace") if isinstance(item, bytes) else item


def _shuffle(text: str) -> str:
    words = text.split()
    np.random.default_rng(0).shuffle(words)
    return " ".join([*words, *words[:1]])


def _scramble(text: str) -> str:
    letters = list(text)
    np.random.default_rng(0).shuffle(letters)
    return "".join(letters)


_FAR: Final = ("sign", "small", "large", "zero", "ones", "random")
"""Kinds whose numbers are not the sample's own."""

_ONE_BY_ONE: Final = ("sign", "zero")
"""Kinds that each of several inputs is tried with alone, too: a model may look at one of them."""

_CHANGES: Final[dict[str, _Change]] = {
    "spread": _mix,
    "ends": _take_ends,
    "permuted": _permute,
    "sign": _negate,
    "small": _shrink,
    "large": _grow,
    "zero": _clear,
    "ones": _fill,
    "random": _draw,
    "upper case": _raise_case,
    "marks": _punctuate,
}
