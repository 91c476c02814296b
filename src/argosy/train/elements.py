"""What users hand over, arrays and the elements of loaders, as inputs, targets and weights of rows.

An element is `x`, `(x, y)` or `(x, y, w)`; x and y may be trees; or a dict by column, of which `targets` and `weights` name the
columns that the model is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Batch, name_kind
from argosy.frameworks.trees import Tree, count_rows, is_array, is_named, is_ordered, list_leaves, map_tree

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
        given: dict[str, object] = {"targets": self.targets, "weights": self.weights}
        for option, value in given.items():
            names = value if is_ordered(value) and option == "targets" else () if value is None else (value,)
            if not all(isinstance(name, str) for name in names):
                expected = "the name of a column" + (", or several" if option == "targets" else "")
                raise InputError("bad_option", option=option, got=value, expected=expected)

    @classmethod
    def read(cls, targets: Any, weights: Any) -> Columns:
        """Take what a user names.

        Raises:
            InputError: `bad_option`, these are no names.
        """
        return cls(tuple(targets) if is_ordered(targets) else targets, weights)

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
    if is_named(element):
        named = {str(name): part for name, part in element.items()}
        return columns.part(named) if columns.are_named else Batch(named)
    if columns.are_named and columns.is_strict:
        got = describe_form(element)
        raise InputError(
            "bad_data", detail=f"{source} gives {got}, expected a dict by column, as `targets` or `weights` is given"
        )
    if not is_ordered(element):
        return Batch(element)
    if 1 <= len(element) <= 3:
        return Batch(*element)
    raise InputError("bad_data", detail=f"{source} gives {len(element)} parts, expected x, (x, y) or (x, y, weights)")


def make_array(given: object, what: str) -> NDArray[Any]:
    """Make an array of what a caller gave.

    Raises:
        InputError: `bad_data`, NumPy makes none of it, such as of lists of several lengths.
    """
    try:
        return np.asarray(given)
    except Exception as error:  # Rows of several lengths are a ValueError; tensors raise what their framework does.
        raise InputError("bad_data", detail=f"{what}: no array can be made of them: {str(error)[:200]}") from error


def to_arrays(tree: Tree, what: str = "data", *, is_given: bool = False) -> Tree:
    """Give a tree whose leaves are NumPy arrays; of tensors on the processor they are views.

    Args:
        tree: of arrays, tensors, or what NumPy makes arrays of.
        what: it is, for messages.
        is_given: by a user as a whole: lists, and tuples of anything but arrays, are rows, not parts.
    """
    if is_array(tree):
        return tree
    for convert in ("numpy", "asnumpy"):
        if callable(method := getattr(tree, convert, None)):
            detach = getattr(tree, "detach", None)
            return np.asarray(method() if detach is None else detach().numpy())
    if is_named(tree):
        return {str(name): to_arrays(item, what, is_given=is_given) for name, item in tree.items()}
    if is_ordered(tree) and _holds_parts(tree, is_given=is_given):
        return tuple(to_arrays(item, what, is_given=is_given) for item in tree)
    return make_array(tree, what)


def _holds_parts(parts: Sequence[Any], *, is_given: bool) -> bool:
    """Whether a list or tuple is a tree, and no array that is written out."""
    if is_given and not isinstance(parts, tuple):
        return False
    if not any(hasattr(item, "shape") or isinstance(item, Mapping | tuple) for item in parts):
        return False
    # Tuples of numbers alone are rows.
    return not is_given or not all(isinstance(item, tuple) and _holds_no_array(item) for item in parts)


def _holds_no_array(parts: Any) -> bool:
    return not any(hasattr(part, "shape") for part in parts)


def check_inputs(inputs: Tree, dtype: np.dtype[Any], *, source: str) -> Tree:
    """Bring inputs into the types that the model takes: fractions in its own, whole numbers as they are.

    Raises:
        InputError: `bad_data`, something is no number.
    """

    def check(leaf: NDArray[Any]) -> NDArray[Any]:
        if leaf.dtype.kind not in _NUMBERS:
            raise InputError("bad_data", detail=f"{source} gives inputs of type {leaf.dtype}, expected numbers")
        return np.ascontiguousarray(leaf, dtype if leaf.dtype.kind == "f" else None)

    return check(inputs) if is_array(inputs) else map_tree(check, inputs)


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
    if is_array(inputs) and is_array(targets):
        if inputs.ndim and inputs.shape[:1] == targets.shape[:1]:
            return
        detail = f"a batch has x of shape {inputs.shape} and y of shape {targets.shape}, expected as many rows"
        raise InputError("bad_data", detail=detail)
    count_rows(tuple(part for part in (inputs, targets, weights) if part is not None))


def describe_form(value: Any) -> str:
    """Say what something is, for a message: a tensor by its shape, a tree by its parts."""
    if hasattr(value, "shape"):
        return f"one tensor of shape {tuple(value.shape)}"
    if is_named(value):
        return f"a dict of {list_choices(map(str, value))}"
    if is_ordered(value):
        return f"a {type(value).__name__} of {len(value)}"
    return name_kind(value)


def name_schema(batch: Batch) -> tuple[Any, ...]:
    """Give what all batches of a source have in common: form, types, and how many axes; lengths may differ."""
    return tuple(None if part is None else _name_part(part) for part in batch)


def _name_part(part: Tree) -> Any:
    if is_array(part):
        return part.dtype, part.ndim
    if is_named(part):
        return tuple((name, _name_part(item)) for name, item in part.items())
    if is_ordered(part):
        return tuple(_name_part(item) for item in part)
    return name_kind(part)


def describe_schema(batch: Batch) -> str:
    """Say it for a message."""
    names = ("inputs", "targets", "weights")
    shown = [
        f"{name} {' and '.join(f'{leaf.dtype} of {leaf.ndim} axes' for leaf in list_leaves(part))}"
        for name, part in zip(names, batch, strict=True)
        if part is not None
    ]
    return "; ".join(shown)
