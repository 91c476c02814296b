"""Tensors as a model takes and gives them: one, several in order, or by name; each may hold more of the same.

A *tree* is an array or tensor, a tuple or list of trees, or a dict of trees by name. Functions here know no framework: a leaf
is whatever is none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.signature import Arrays

__all__ = [
    "Tree",
    "count_rows",
    "fail_rows",
    "join_rows",
    "list_leaves",
    "map_tree",
    "name_tree",
    "pack",
    "predict_rows",
    "spread",
    "take_rows",
    "unpack",
]

Tree = Any
"""See above."""

_PREDICT_ROWS: Final = 256
"""Rows of one forward pass of `predict_rows`: bounds its memory, and is large enough to be fast."""


def map_tree(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Give a tree of the same form, whose leaves are what a function makes of them; lists become tuples."""
    if isinstance(tree, Mapping):
        return {str(name): map_tree(function, item) for name, item in cast("Mapping[Any, Any]", tree).items()}
    if isinstance(tree, tuple | list):
        return tuple(map_tree(function, item) for item in cast("Sequence[Any]", tree))
    return function(tree)


def list_leaves(tree: Tree) -> list[Any]:
    """List the leaves of a tree in its order, which is that of `map_tree`."""
    leaves: list[Any] = []
    map_tree(leaves.append, tree)
    return leaves


def name_tree(tree: Tree, stem: str, names: Sequence[str] | None = None) -> Tree:
    """Give a tree of the same form whose leaves are names, each another.

    Args:
        tree: of tensors.
        stem: the name of a single leaf; several in order are `stem_0`, `stem_1` and so on, those by name have their own.
        names: of all leaves in their order, instead.

    Raises:
        InputError: `bad_option`, as many names are not given, or two are alike.
    """
    leaves = list_leaves(tree)
    if names is None:
        names = list(_name_leaves(tree, ""))
        names = [stem if not name else f"{stem}_{name}" if name[0].isdigit() else name for name in names]
    if len(names) != len(leaves) or len(set(names)) != len(names):
        expected = f"{len(leaves)} different names"
        raise InputError("bad_option", option=f"{stem}_names", got=list(names), expected=expected)
    left = iter(names)
    return map_tree(lambda leaf: next(left), tree)


def _name_leaves(tree: Tree, path: str) -> Iterator[str]:
    items: Any = ()
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree).items()
    elif isinstance(tree, tuple | list):
        items = enumerate(cast("Sequence[Any]", tree))
    else:
        yield path
    for name, item in items:
        yield from _name_leaves(item, f"{path}_{name}" if path else str(name))


def unpack(tree: Tree, names: Tree) -> Arrays:
    """Give the leaves of a tree by the names that stand at their places in another of the same form."""
    return dict(zip(list_leaves(names), list_leaves(tree), strict=True))


def pack(arrays: Mapping[str, Any], names: Tree) -> Tree:
    """Give a tree of the same form as one of names, with what has these names as leaves."""
    return map_tree(lambda name: arrays[name], names)


def spread(tree: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the arguments that a call takes a tree as: several in order as they are, by name as keywords, else the only one."""
    if isinstance(tree, Mapping):
        return (), {str(name): item for name, item in cast("Mapping[Any, Any]", tree).items()}
    if isinstance(tree, tuple | list):
        return tuple(cast("Sequence[Any]", tree)), {}
    return (tree,), {}


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
        _check_answer(parts[-1], count_rows(piece))
    return join_rows(parts)


def _check_answer(outputs: Tree, num_rows: int) -> None:
    """Refuse answers other than tensors of as many rows as went in.

    Raises:
        InputError: `bad_data`.
    """
    leaves = list_leaves(outputs)
    got = None if leaves else "nothing"
    for leaf in leaves:
        shape = np.shape(leaf) if hasattr(leaf, "__array_interface__") else None
        if shape is None:
            got = type(leaf).__qualname__
        elif shape[:1] != (num_rows,):
            got = f"a tensor of shape {shape}"
    if got is not None:
        detail = f"for {num_rows} rows the model gives {got}, expected tensors of as many rows"
        raise InputError("bad_data", detail=detail)


def fail_rows(rows: Tree, error: object) -> InputError:
    """Make the error of a model that fails on rows; `error` is what it raised, or says it."""
    shown = " and ".join(f"of shape {leaf.shape} and type {leaf.dtype}" for leaf in list_leaves(rows))
    return InputError("bad_data", detail=f"the model fails on rows {shown}: {error}")
