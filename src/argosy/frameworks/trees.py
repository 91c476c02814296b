"""Tensors as a model takes and gives them: one, several in order, or by name; each may hold more of the same.

A *tree* is an array or tensor, a tuple or list of trees, or a dict of trees by name. Functions here know no framework: a leaf
is whatever is none of these. None is a tree without leaves: an optional input that is not given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.signature import Arrays

__all__ = [
    "Tree",
    "check_answer",
    "count_rows",
    "fail_rows",
    "is_array",
    "is_named",
    "is_ordered",
    "join_rows",
    "list_leaves",
    "map_tree",
    "name_arguments",
    "name_tree",
    "pack",
    "predict_rows",
    "spread",
    "take_rows",
    "unpack",
]

Tree = Any
"""See above."""

_MAX_NAME: Final = 128
_PREDICT_ROWS: Final = 256
"""Rows of one forward pass of `predict_rows`: bounds its memory, and is large enough to be fast."""


def is_array(tree: object) -> TypeGuard[NDArray[Any]]:
    """Whether a tree is an array of NumPy's."""
    return isinstance(tree, np.ndarray)


def is_named(tree: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a tree is a dict of trees by name."""
    return isinstance(tree, Mapping)


def is_ordered(tree: object) -> TypeGuard[Sequence[Any]]:
    """Whether a tree is several trees in order."""
    return isinstance(tree, tuple | list)


def map_tree(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Give a tree of the same form, whose leaves are what a function makes of them; lists become tuples."""
    if is_named(tree):
        return {str(name): map_tree(function, item) for name, item in tree.items()}
    if is_ordered(tree):
        return tuple(map_tree(function, item) for item in tree)
    return None if tree is None else function(tree)


def list_leaves(tree: Tree) -> list[Any]:
    """List the leaves of a tree in its order, which is that of `map_tree`."""
    leaves: list[Any] = []
    map_tree(leaves.append, tree)
    return leaves


def name_tree(tree: Tree, option: str, stem: str, names: Sequence[str] | None = None) -> Tree:
    """Give a tree of the same form whose leaves are names, each another.

    Args:
        tree: of tensors.
        option: by which a user gives names, for messages.
        stem: the name of a single leaf; several in order are `stem_0`, `stem_1` and so on, those by name have their own.
        names: of all leaves in their order, instead.

    Raises:
        InputError: `bad_option`, as many names are not given, two are alike, or one is no name.
    """
    leaves = list_leaves(tree)
    if names is None:
        paths = list(_name_leaves(tree, ""))
        only = len(leaves) == 1
        names = [path if path and not path[0].isdigit() else stem if only else f"{stem}_{path}" for path in paths]
    if len(names) != len(leaves) or len(set(names)) != len(names) or not all(map(_is_name, names)):
        several = f"{len(leaves)} different names, one for each tensor in order," if len(leaves) > 1 else "a name"
        expected = f"{several} of 1 to {_MAX_NAME} printable characters"
        raise InputError("bad_option", option=option, got=[str(name)[: 2 * _MAX_NAME] for name in names], expected=expected)
    left = iter(names)
    return map_tree(lambda leaf: next(left), tree)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable()


def _name_leaves(tree: Tree, path: str) -> Iterator[str]:
    items: Any = ()
    if is_named(tree):
        items = tree.items()
    elif is_ordered(tree):
        items = enumerate(tree)
    elif tree is not None:
        yield path
    for name, item in items:
        yield from _name_leaves(item, f"{path}_{name}" if path else str(name))


def unpack(tree: Tree, names: Tree) -> Arrays:
    """Give the leaves of a tree by the names that stand at their places in another of the same form.

    Raises:
        InputError: `bad_data`, the tree has another form.
    """
    arrays: Arrays = {}
    _unpack(tree, names, arrays)
    return arrays


def _unpack(tree: Tree, names: Tree, arrays: Arrays) -> None:
    if is_named(names):
        found = {str(key): item for key, item in tree.items()} if is_named(tree) else {}
        if found.keys() != names.keys():
            raise _fail_form(tree, f"the names {list_choices(names)}")
        for key, item in names.items():
            _unpack(found[key], item, arrays)
    elif is_ordered(names):
        if not is_ordered(tree) or len(tree) != len(names):
            raise _fail_form(tree, f"{len(names)} in order")
        for found, item in zip(tree, names, strict=True):
            _unpack(found, item, arrays)
    elif names is None:
        if tree is not None:
            raise _fail_form(tree, "nothing")
    elif tree is None or is_named(tree) or is_ordered(tree):
        raise _fail_form(tree, "a tensor")
    else:
        arrays[names] = tree


def _fail_form(tree: Tree, expected: str) -> InputError:
    got = "nothing" if tree is None else type(tree).__qualname__
    if is_named(tree):
        got = f"the names {list_choices(map(str, tree))}"
    elif is_ordered(tree):
        got = f"{len(tree)} in order"
    return InputError("bad_data", detail=f"tensors have another form than in the sample: {got}, expected {expected}")


def pack(arrays: Mapping[str, Any], names: Tree) -> Tree:
    """Give a tree of the same form as one of names, with what has these names as leaves."""
    return map_tree(lambda name: arrays[name], names)


def spread(tree: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the arguments that a call takes a tree as: several in order as they are, by name as keywords, else the only one."""
    if is_named(tree):
        return (), {str(name): item for name, item in tree.items()}
    if is_ordered(tree):
        return tuple(tree), {}
    return (tree,), {}


def name_arguments(call: Callable[..., Any], *, but: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the arguments that a function takes in order; `but` are none of its tensors."""
    try:
        known = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # A builtin, or what a compiler left.
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(argument.name for argument in known if argument.kind in kinds and argument.name not in but)


def count_rows(tree: Tree) -> int:
    """Count the rows: the length of the first axis, which all leaves have in common.

    Raises:
        InputError: `bad_data`, they have not, or a leaf has no axis.
    """
    shapes = [tuple(np.shape(leaf)) for leaf in list_leaves(tree)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        shown = ", ".join(map(str, shapes)) or "nothing"
        raise InputError("bad_data", detail=f"the first axes count no rows that all have in common: shapes are {shown}")
    return int(shapes[0][0])


def take_rows(tree: Tree, rows: slice | NDArray[Any]) -> Tree:
    """Give some rows of every leaf."""
    return map_tree(lambda leaf: leaf[rows], tree)


def join_rows(trees: Sequence[Tree]) -> Tree:
    """Put the rows of trees of one form, whose leaves are arrays, behind one another."""
    if len(trees) == 1:
        return trees[0]
    columns = zip(*(list_leaves(tree) for tree in trees), strict=True)
    joined = iter([np.concatenate(column) for column in columns])
    return map_tree(lambda leaf: next(joined), trees[0])


def predict_rows(inputs: Tree, answer: Callable[[Tree], Tree]) -> Tree:
    """Answer rows in pieces of a bounded size.

    Args:
        inputs: arrays.
        answer: gives the answers to a piece, as arrays; what it raises is raised.

    Raises:
        InputError: `bad_data`, the inputs have not as many rows, or an answer has not as many as its piece.
    """
    num_rows = count_rows(inputs)
    parts: list[Tree] = []
    for start in range(0, max(num_rows, 1), _PREDICT_ROWS):
        piece = take_rows(inputs, slice(start, start + _PREDICT_ROWS))
        parts.append(answer(piece))
        check_answer(parts[-1], count_rows(piece))
    return join_rows(parts)


def check_answer(outputs: Tree, num_rows: int | None = None) -> None:
    """Refuse answers other than tensors; of as many rows as went in, if that is told.

    Raises:
        InputError: `bad_data`.
    """
    leaves = list_leaves(outputs)
    got = None if leaves else "nothing"
    for leaf in leaves:
        shape = np.shape(leaf) if hasattr(leaf, "__array_interface__") else None
        if shape is None:
            got = type(leaf).__qualname__
        elif num_rows is not None and shape[:1] != (num_rows,):
            got = f"a tensor of shape {shape}"
    if got is not None and num_rows is None:
        raise InputError("bad_data", detail=f"the model gives {got}, expected tensors")
    if got is not None:
        detail = f"for {num_rows} rows the model gives {got}, expected tensors of as many rows"
        raise InputError("bad_data", detail=detail)


def fail_rows(rows: Tree, error: object) -> InputError:
    """Make the error of a model that fails on rows; `error` is what it raised, or says it."""
    shown = " and ".join(f"of shape {leaf.shape} and type {leaf.dtype}" for leaf in list_leaves(rows))
    told = str(error).strip() or type(error).__qualname__
    return InputError("bad_data", detail=f"the model fails on rows {shown}: {told}")
