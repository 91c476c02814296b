"""What users hand over, arrays and the elements of loaders, as inputs, targets and weights of rows.

An element is `x`, `(x, y)` or `(x, y, w)`; x and y may be trees; or a dict by column, of which `targets` and `weights` name the
columns that the model is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Batch, name_kind
from argosy.frameworks.trees import Tree, count_rows, list_leaves, map_tree

__all__ = [
    "Columns",
    "check_counts",
    "check_inputs",
    "check_weights",
    "describe_form",
    "describe_schema",
    "make_array",
    "name_schema",
    "read_element",
    "to_arrays",
]

_NUMBERS: Final = "fiub"
"""Kinds of NumPy's types that are numbers."""


@dataclass(frozen=True)
class Columns:
    """Which columns of data by column are no inputs."""

    targets: str | tuple[str, ...] | None = None
    weights: str | None = None
    is_strict: bool = True
    """All data is by column; otherwise such data alone is looked at."""

    def __post_init__(self) -> None:
        for option, value in (("targets", self.targets), ("weights", self.weights)):
            names: tuple[object, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
            if (isinstance(value, tuple) and option == "weights") or not all(isinstance(name, str) for name in names):
                expected = "the name of a column" + (", or several" if option == "targets" else "")
                raise InputError("bad_option", option=option, got=value, expected=expected)

    @property
    def are_named(self) -> bool:
        """Whether any column is told apart."""
        return self.targets is not None or self.weights is not None

    def part(self, columns: Mapping[str, Any]) -> Batch:
        """Tell inputs, targets and weights apart.

        Raises:
            InputError: `bad_data`, there is no such column, or no other.
        """
        named = self.targets if isinstance(self.targets, tuple) else () if self.targets is None else (self.targets,)
        taken = {*named, *(() if self.weights is None else (self.weights,))}
        if missing := taken - columns.keys():
            detail = f"there is no column {list_choices(missing)}; there are {list_choices(columns)}"
            raise InputError("bad_data", detail=detail)
        inputs = {name: column for name, column in columns.items() if name not in taken}
        if not inputs:
            raise InputError("bad_data", detail=f"no column is left for the model: all of {list_choices(columns)} are others")
        targets = {name: columns[name] for name in named} if isinstance(self.targets, tuple) else None
        if isinstance(self.targets, str):
            targets = columns[self.targets]
        # A model of one input takes it by its place, whatever the column is called.
        given = next(iter(inputs.values())) if len(inputs) == 1 else inputs
        return Batch(given, targets, None if self.weights is None else columns[self.weights])


def read_element(element: Any, columns: Columns, *, source: str) -> Batch:
    """Tell the parts of an element apart; leaves stay what they are.

    Args:
        element: see above.
        columns: of data by column.
        source: what gave it, for messages.

    Raises:
        InputError: `bad_data`, it is something else.
    """
    if isinstance(element, tuple | list) and not columns.are_named and 1 <= len(parts := cast("Sequence[Any]", element)) <= 3:
        return Batch(*parts)
    if isinstance(element, Mapping):
        named = {str(name): part for name, part in cast("Mapping[Any, Any]", element).items()}
        return columns.part(named) if columns.are_named else Batch(named)
    if columns.are_named and columns.is_strict:
        got = describe_form(element)
        raise InputError(
            "bad_data", detail=f"{source} gives {got}, expected a dict by column, as `targets` or `weights` is given"
        )
    if not isinstance(element, tuple | list):
        return Batch(element)
    parts = cast("Sequence[Any]", element)
    if 1 <= len(parts) <= 3:
        return Batch(*parts)
    raise InputError("bad_data", detail=f"{source} gives {len(parts)} parts, expected x, (x, y) or (x, y, weights)")


def make_array(given: object, what: str) -> NDArray[Any]:
    """Make an array of what a caller gave.

    Raises:
        InputError: `bad_data`, NumPy makes none of it, such as of lists of several lengths.
    """
    try:
        return np.asarray(given)
    except Exception as error:  # Rows of several lengths are a ValueError; tensors raise what their framework does.
        raise InputError("bad_data", detail=f"{what}: no array can be made of them: {str(error)[:200]}") from error


def to_arrays(tree: Tree, *, is_given: bool = False) -> Tree:
    """Give a tree whose leaves are NumPy arrays; of tensors on the processor they are views.

    Args:
        tree: of arrays, tensors, or what NumPy makes arrays of.
        is_given: by a user as a whole: lists, and tuples of anything but arrays, are rows, not parts.
    """
    if isinstance(tree, np.ndarray):
        return cast("NDArray[Any]", tree)
    for convert in ("numpy", "asnumpy"):
        if callable(method := getattr(cast("Any", tree), convert, None)):
            detach = getattr(cast("Any", tree), "detach", None)
            return np.asarray(detach().numpy() if callable(detach) else method())
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree).items()
        return {str(name): to_arrays(item, is_given=is_given) for name, item in items}
    if isinstance(tree, tuple | list):
        parts = cast("Sequence[Any]", tree)
        if _holds_parts(tree, parts, is_given):
            return tuple(to_arrays(item, is_given=is_given) for item in parts)
        return make_array(parts, "data")
    return make_array(tree, "data")


def _holds_parts(tree: object, parts: Sequence[Any], is_given: bool) -> bool:
    """Whether a list or tuple is a tree, and no array that is written out."""
    if is_given and not isinstance(tree, tuple):
        return False
    return any(hasattr(item, "shape") or isinstance(item, Mapping | tuple) for item in parts) and not (
        is_given and all(isinstance(item, tuple) and not any(hasattr(part, "shape") for part in item) for item in parts)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    )


def check_inputs(inputs: Tree, dtype: np.dtype[Any], *, source: str) -> Tree:
    """Bring inputs into the types that the model takes: fractions in its own, whole numbers as they are.

    Raises:
        InputError: `bad_data`, something is no number.
    """

    def check(leaf: NDArray[Any]) -> NDArray[Any]:
        if leaf.dtype.kind not in _NUMBERS:
            raise InputError("bad_data", detail=f"{source} gives inputs of type {leaf.dtype}, expected numbers")
        return np.ascontiguousarray(leaf, dtype if leaf.dtype.kind == "f" else None)

    return check(inputs) if isinstance(inputs, np.ndarray) else map_tree(check, inputs)


def check_weights(weights: Any, num_rows: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Check weights of rows.

    Raises:
        InputError: `bad_data`, not one number a row, negative or not finite.
    """
    array = np.asarray(weights)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (num_rows,) or array.dtype.kind not in _NUMBERS:
        detail = f"weights have type {array.dtype} and shape {array.shape}, expected one number for each of {num_rows} rows"
        raise InputError("bad_data", detail=detail)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise InputError("bad_data", detail="weights hold a number that is negative, NaN or infinite")
    return array.astype(dtype)


def check_counts(batch: Batch) -> None:
    """See that inputs, targets and weights have as many rows.

    Raises:
        InputError: `bad_data`.
    """
    inputs, targets, weights = batch
    if isinstance(inputs, np.ndarray) and isinstance(targets, np.ndarray):
        if inputs.ndim and inputs.shape[:1] == targets.shape[:1]:
            return
        detail = f"a batch has x of shape {inputs.shape} and y of shape {targets.shape}, expected as many rows"
        raise InputError("bad_data", detail=detail)
    count_rows(tuple(part for part in (inputs, targets, weights) if part is not None))


def describe_form(value: Any) -> str:
    """Say what something is, for a message: a tensor by its shape, a tree by its parts."""
    if hasattr(value, "shape"):
        return f"one tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {list_choices(map(str, cast('Mapping[Any, Any]', value)))}"
    if isinstance(value, tuple | list):
        return f"a {type(cast('object', value)).__name__} of {len(cast('Sequence[Any]', value))}"
    return name_kind(value)


def name_schema(batch: Batch) -> tuple[Any, ...]:
    """Give what all batches of a source have in common: form, types, and how many axes; lengths may differ."""
    return tuple(None if part is None else _name_part(part) for part in batch)


def _name_part(part: Tree) -> Any:
    if isinstance(part, np.ndarray):
        return part.dtype, part.ndim
    if isinstance(part, Mapping):
        return tuple((name, _name_part(item)) for name, item in cast("Mapping[str, Any]", part).items())
    if isinstance(part, tuple):
        return tuple(_name_part(item) for item in cast("tuple[Any, ...]", part))
    return type(part)


def describe_schema(batch: Batch) -> str:
    """Say it for a message."""
    names = ("inputs", "targets", "weights")
    shown = [
        f"{name} {' and '.join(f'{leaf.dtype} of {leaf.ndim} axes' for leaf in list_leaves(part))}"
        for name, part in zip(names, batch, strict=True)
        if part is not None
    ]
    return "; ".join(shown)
