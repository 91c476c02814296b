"""A flax.nnx model taken apart into arrays, and put together again: compiled functions take and give arrays alone."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import name_kind
from argosy.frameworks.trees import Tree, map_tree, spread
from argosy.runtimes.jax import narrow
from argosy.signature import Arrays

__all__ = [
    "Leaves",
    "Parts",
    "Structure",
    "follow",
    "is_key",
    "list_trained",
    "name_leaves",
    "open_precision",
    "pack",
    "prepare",
    "set_weights",
    "show",
    "take_apart",
    "unpack",
]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")

Leaves = list[Any]
"""JAX arrays in the order in which `jax.tree` flattens what they stand in."""


def _is_trained(path: object, value: Any) -> bool:
    if not isinstance(value, nnx.Param):
        return False
    dtype = getattr(value.get_value(), "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


class _Trained(NamedTuple):
    """What an optimizer changes, beside what is frozen."""

    frozen: frozenset[str]

    def __call__(self, path: Any, value: Any) -> bool:
        return _is_trained(path, value) and not (self.frozen and ".".join(map(str, path)) in self.frozen)


class Structure(NamedTuple):
    """All of a model but its arrays. It can be hashed: a compiled function is found again by it."""

    graph: Any
    trees: tuple[Any, Any, Any]
    """How the arrays of each group stand in the model: trained, random, rest (see `Parts`)."""
    frozen: frozenset[str] = frozenset()
    """Weights that belong to the rest."""

    def build(self, trained: Leaves, random: Leaves, rest: Leaves) -> Any:
        """Make a model of arrays. Within a traced function its variables belong to that trace, and may change."""
        groups = zip(self.trees, (trained, random, rest), strict=True)
        return nnx.merge(self.graph, *(jax.tree.unflatten(tree, leaves) for tree, leaves in groups))

    def run(self, trained: Leaves, random: Leaves, rest: Leaves, inputs: Tree) -> tuple[Tree, Leaves]:
        """Answer rows; give the outputs, and the arrays of `rest` as the forward pass leaves them."""
        model = self.build(trained, random, rest)
        given, named = spread(inputs)
        outputs = model(*given, **named)
        return map_tree(_widen, outputs), self.read(model, rest)[1]

    def read(self, model: Any, rest: Leaves) -> tuple[Leaves, Leaves]:
        """Give trained weights and the rest of a model that was built, and has been run since; `rest` is what it was built of."""
        _, trained, _, after = nnx.split(model, *group_arrays(self.frozen))
        return jax.tree.leaves(trained), follow(jax.tree.unflatten(self.trees[2], rest), after)


def group_arrays(frozen: frozenset[str]) -> tuple[Any, Any, Any]:
    """Give the filters of a model's arrays; see `Parts`."""
    return _Trained(frozen), nnx.RngState, ...


def follow(before: Any, after: Any) -> Leaves:
    """Give what has become of arrays of a state.

    What a pass adds to the model, such as values that a layer sows, is dropped: the next step finds what this one found.
    """
    found = dict(_flatten_with_path(after))
    return [
        found[path] if is_key(leaf) else jnp.asarray(found[path]).astype(leaf.dtype) for path, leaf in _flatten_with_path(before)
    ]


def _widen(leaf: Any) -> Any:
    """Give float32 for bfloat16, which NumPy has not and no client takes."""
    return leaf.astype(jnp.float32) if getattr(leaf, "dtype", None) == jnp.bfloat16 else leaf


class Parts(NamedTuple):
    """A model's structure, and its arrays."""

    structure: Structure
    trained: Leaves
    """What an optimizer changes: every `nnx.Param` of a floating type."""
    random: Leaves
    """Keys and counters of random streams."""
    rest: Leaves
    """Everything else, such as running means."""
    trained_names: list[str]
    rest_names: list[str]

    @property
    def is_double(self) -> bool:
        """Whether some number of it is a float64."""
        return any(leaf.dtype == np.float64 for leaf in self.trained + self.rest)

    def items(self) -> list[tuple[str, Any]]:
        """Give the names and arrays of all that training may change."""
        names, leaves = self.trained_names + self.rest_names, self.trained + self.rest
        return list(zip(names, leaves, strict=True))

    def write(self, model: Any, trained: Leaves, rest: Leaves) -> None:
        """Set the arrays of the model that was taken apart."""
        trees = self.structure.trees
        nnx.update(model, jax.tree.unflatten(trees[0], trained), jax.tree.unflatten(trees[2], rest))


def take_apart(model: Any, *, is_training: bool, frozen: frozenset[str] = frozenset()) -> Parts:
    """Take a model apart as it is while training, or as it is served.

    Args:
        model: any.
        is_training: as its layers run then; those all of whose own weights are frozen run as they are served all the same, so
            that their statistics stay, too.
        frozen: names of weights that are not trained.

    Raises:
        InputError: `bad_option`, two of its arrays would have one name.
    """
    if is_training:
        model.train()
    else:
        model.eval()
    if still := _list_still(model, frozen):

        def is_still(path: Any, module: object) -> bool:
            return tuple(path) in still

        model.set_attributes(is_still, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, *states = nnx.split(model, *group_arrays(frozen))
    (trained, trained_tree), (random, random_tree), (rest, rest_tree) = (jax.tree.flatten(state) for state in states)
    trained_names, rest_names = name_leaves(states[0]), name_leaves(states[2])
    if len({*trained_names, *rest_names}) < len(trained_names) + len(rest_names):
        raise InputError("bad_option", option="model", got=name_kind(model), expected="a model whose names hold no dots")
    structure = Structure(graph, (trained_tree, random_tree, rest_tree), frozen)
    return Parts(structure, trained, random, [jnp.asarray(leaf) for leaf in rest], trained_names, rest_names)


def _list_still(model: Any, frozen: frozenset[str]) -> set[tuple[Any, ...]]:
    """Give the paths of the layers that have weights of their own, all of which are frozen."""
    if not frozen:
        return set()
    owners: dict[tuple[Any, ...], list[str]] = {}
    for path, _ in nnx.to_flat_state(nnx.state(model, _is_trained)):
        owners.setdefault(tuple(path[:-1]), []).append(".".join(map(str, path)))
    return {path for path, names in owners.items() if frozen.issuperset(names)}


def list_trained(model: Any) -> tuple[str, ...]:
    """Name the weights that an optimizer changes, in the order in which the model's attributes were made."""
    state = nnx.state(model, _is_trained)
    ranks = [_rank(model, path) for path, _ in _flatten_with_path(state)]
    return tuple(name for _, name in sorted(zip(ranks, name_leaves(state), strict=True)))


def _flatten_with_path(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def name_leaves(state: Any) -> list[str]:
    """Name each array of a state by its path; a variable's ends in an attribute `value`, which is left out."""
    names: list[str] = []
    for path, _ in _flatten_with_path(state):
        shown = path[:-1] if isinstance(path[-1], jax.tree_util.GetAttrKey) else path
        names.append(jax.tree_util.keystr(shown, simple=True, separator="."))
    return names


def _rank(model: Any, path: Any) -> list[int]:
    """Give a weight's place among its siblings, at each level of the model."""
    ranks: list[int] = []
    node: Any = model
    for key in [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]:
        if isinstance(key, int):
            ranks.append(key)
            node = node[key]
        else:
            children: dict[str, Any] = getattr(node, "__dict__", node)
            ranks.append([*children].index(key))
            node = children[key]
    return ranks


def is_key(leaf: Any) -> bool:
    """Say whether an array holds keys of random numbers, which NumPy cannot."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def show(leaf: Any) -> NDArray[Any]:
    """Give a copy of an array for NumPy; keys as the integers that they are made of."""
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def pack(leaf: Any) -> NDArray[Any]:
    """Give a copy of an array in a type that a file of NumPy's can hold: bfloat16 and its like as integers."""
    array = show(leaf)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def unpack(array: NDArray[Any], like: Any) -> Any:
    """Give an array for JAX of what `show` or `pack` gave of one `like` it; a copy."""
    if is_key(like):
        return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
    return jnp.array(np.ascontiguousarray(array).reshape(array.shape).view(like.dtype))


def set_weights(model: Any, weights: Arrays) -> None:
    """Set some or all of a model's arrays by name.

    Raises:
        InputError: `bad_option`, no such name, or another shape or type: JAX would cut a float64 to float32 unasked.
    """
    parts = take_apart(model, is_training=False)
    own = dict(parts.items())
    with open_precision(is_double=parts.is_double):
        for name, array in weights.items():
            wanted = show(own[name]) if name in own else None
            if wanted is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
                expected = "a name of this model" if wanted is None else f"{wanted.dtype} of shape {wanted.shape}"
                got = f"{array.dtype} of shape {array.shape}"
                raise InputError("bad_option", option=f"weights[{name}]", got=got, expected=expected)
            own[name] = unpack(array, own[name])
        parts.write(model, [own[name] for name in parts.trained_names], [own[name] for name in parts.rest_names])


def open_precision(*, is_double: bool) -> AbstractContextManager[Any]:
    """Let JAX compute in float64 within the block, where a model does; otherwise it does as the caller has set it up."""
    return jax.enable_x64(True) if is_double else nullcontext()


def prepare(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Give rows or targets in a type that JAX takes as it is.

    Raises:
        InputError: `bad_data`, JAX would cut the numbers: float64 for a float32 model, integers beyond 32 bits.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    try:
        return narrow(array, dtype)
    except ValueError as error:
        raise InputError("bad_data", detail=f"{what}: {error}") from error
