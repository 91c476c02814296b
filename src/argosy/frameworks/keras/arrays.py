"""Keras' variables by name, and its tensors as arrays."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError

__all__ = ["name_weights", "narrow_integers", "to_numpy"]

keras: Any = importlib.import_module("keras")


def name_weights(model: Any) -> dict[str, Any]:
    """Give the variables of a model by name, such as `dense/kernel`, in the model's order.

    Keras numbers layers by what was made in the process before; here they are numbered within the model.
    """
    named: dict[str, Any] = {}
    known: dict[tuple[str, str], str] = {}
    for variable in model.weights:
        name = ""
        for part in variable.path.removeprefix(f"{model.name}/").split("/"):
            if (name, part) not in known:
                plain = re.sub(r"_\d+$", "", part)
                siblings = [after for (before, _), after in known.items() if before == name]
                known[name, part] = _make_unique(f"{name}/{plain}" if name else plain, siblings)
            name = known[name, part]
        named[_make_unique(name, named)] = variable
    return named


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
