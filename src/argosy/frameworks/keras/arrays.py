"""Keras' variables by name, and its tensors as arrays."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.trees import list_leaves, map_tree

__all__ = ["name_weights", "narrow_integers", "to_numpy", "to_tensors"]

keras: Any = importlib.import_module("keras")


def name_weights(model: Any) -> dict[str, Any]:
    """Give the variables of a model by name, such as `dense/kernel`, in the model's order.

    Parts of a class of the user's own have the names of its attributes. Keras numbers other layers by what was made in the
    process before; here they are numbered within the model.
    """
    paths: dict[int, str] = {}
    _walk(model, "", paths, set())
    named: dict[str, Any] = {}
    known: dict[tuple[str, str], str] = {}
    for variable in model.weights:
        name = paths.get(id(variable), "")
        if not name:
            for part in variable.path.removeprefix(f"{model.name}/").split("/"):
                if (name, part) not in known:
                    siblings = [after for (before, _), after in known.items() if before == name]
                    known[name, part] = _make_unique(_join(name, _cut_number(part)), siblings)
                name = known[name, part]
        named[_make_unique(name, named)] = variable
    return named


def _walk(layer: Any, path: str, paths: dict[int, str], seen: set[int]) -> None:
    """Note the paths of the variables below a layer."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        paths.setdefault(id(variable), _join(path, variable.name))
    taken: list[str] = []
    given = {} if isinstance(layer, keras.Sequential | keras.src.models.functional.Functional) else _name_attributes(layer)
    for child in layer._layers:
        taken.append(_make_unique(given.get(id(child)) or _cut_number(child.name), taken))
        _walk(child, _join(path, taken[-1]), paths, seen)


def _name_attributes(layer: Any) -> dict[int, str]:
    """Name the layers that another keeps, by its attributes, by the identities of them."""
    if type(layer).__module__.startswith("keras."):
        return {}
    named: dict[int, str] = {}
    own: dict[str, Any] = layer.__dict__
    # On torch, a layer is a module, which keeps its parts there.
    for name, value in {**own, **own.get("_modules", {})}.items():
        if name in _list_own() or name.startswith(("_self_", "_obj_")):
            continue
        parts: Any = [(name, value)]
        if isinstance(value, list | tuple):
            parts = [(f"{name}/{index}", part) for index, part in enumerate(cast("list[Any]", value))]
        elif isinstance(value, dict):
            parts = [(f"{name}/{key}", part) for key, part in cast("dict[Any, Any]", value).items()]
        for shown, part in parts:
            if isinstance(part, keras.layers.Layer):
                named.setdefault(id(part), shown)
    return named


def _list_own() -> set[str]:
    """Name what Keras and its backend keep in a model themselves."""
    if not _OWN:
        blank: dict[str, Any] = keras.Model().__dict__
        _OWN.update(blank, ("_functional",))
    return _OWN


_OWN: Final[set[str]] = set()


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _cut_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _make_unique(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}_{number}" if number > 1 else name for number in range(1, len(taken) + 2))
    return next(free for free in numbered if free not in taken)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Give a tensor or variable of the backend as an array of its own; bfloat16, which NumPy has not, as float32."""
    if isinstance(tensor, keras.Variable):
        # NumPy warns of the way in which Keras converts TensorFlow's variables, not of that for tensors.
        tensor = keras.ops.copy(tensor)
    is_array = hasattr(tensor, "__array_interface__")  # Keras would have TensorFlow make a tensor of it first.
    array: NDArray[Any] = np.array(tensor if is_array else keras.ops.convert_to_numpy(tensor))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def narrow_integers(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array as the backend takes it: JAX would cut integers of 64 bits, unless it is told to keep them.

    Raises:
        InputError: `bad_data`, numbers would not stay what they are.
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8 or keras.backend.backend() != "jax":
        return array
    if importlib.import_module("jax").config.jax_enable_x64:
        return array
    try:
        return importlib.import_module("argosy.runtimes.jax").narrow(array, f"{array.dtype.kind}4")
    except ValueError as error:
        raise InputError("bad_data", detail=str(error)) from error


def to_tensors(tree: Any) -> Any:
    """Give the same with its arrays as tensors; what holds none is given back as it is, whatever it is."""
    if isinstance(tree, np.ndarray):
        return keras.ops.convert_to_tensor(narrow_integers(cast("NDArray[Any]", tree)))
    if tree is None or keras.ops.is_tensor(tree) or not any(isinstance(leaf, np.ndarray) for leaf in list_leaves(tree)):
        return tree
    return map_tree(lambda leaf: to_tensors(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
