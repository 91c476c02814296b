"""Programs as JSON data: for lineages, and to tell one program from another before a run goes on from its checkpoint.

Settings stand as they are, arrays by their digest, code by the digest of what Python compiled it to, so that comments and
line numbers do not count. Nothing depends on the process: no addresses, no counters of what was made before.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Describer", "digest_arrays", "find_difference", "is_library", "list_attributes"]

_MAX_DEPTH: Final = 32
"""Of things within things; deeper ones are named alone."""

_MAX_ITEMS: Final = 64
"""Of a list that is written out; of a longer one there is the digest."""

_LIBRARIES: Final = frozenset({*sys.stdlib_module_names, "argosy", "numpy", "ml_dtypes"})

_CLASS_PARTS: Final = frozenset({"__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__annotations__"})
"""Attributes of a class that say nothing of what it does, or of its name alone."""


_MAKERS: Final = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "build", "setup"})
"""Methods in which an object is made."""


def digest_arrays(*arrays: NDArray[Any]) -> str:
    """Name arrays by their content: `sha256:...` over each one's datatype, shape and elements in row-major order."""
    content = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        content.update(f"{little.dtype.str} {little.shape}\n".encode())
        content.update(little.data if little.size else b"")
    return f"sha256:{content.hexdigest()}"


def list_attributes(value: object) -> dict[str, Any]:
    """Give what an object keeps by the names that it has for it."""
    return dict(cast("dict[str, Any]", getattr(value, "__dict__", {})))


def is_library(module: str, packages: Sequence[str]) -> bool:
    """Say whether a module is Python's, NumPy's, ours, or of these packages: known by name and version."""
    return module.partition(".")[0] in _LIBRARIES or module.partition(".")[0] in packages


def find_difference(one: object, other: object, path: str = "") -> tuple[str, object, object] | None:
    """Give where two pieces of JSON data differ first, and what stands there in each; None if they are equal."""
    left, right = _list_entries(one), _list_entries(other)
    if left is not None and right is not None:
        for key in [*left, *(key for key in right if key not in left)]:
            found = find_difference(left.get(key, "missing"), right.get(key, "missing"), f"{path}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if one == other else (path, one, other)


def _list_entries(value: object) -> dict[object, object] | None:
    if isinstance(value, list):
        return dict(enumerate(cast("list[object]", value)))
    return dict(cast("dict[object, object]", value)) if isinstance(value, dict) else None


@dataclass(frozen=True)
class Describer:
    """How the things of one framework become JSON data."""

    packages: tuple[str, ...]
    """Whose classes and functions are told by their name: their code has a version."""
    to_array: Callable[[Any], NDArray[Any] | None]
    """Gives a tensor as an array; None for what is none."""
    list_parts: Callable[[Any], Mapping[str, Any] | None]
    """Gives what an object of the framework is made of; None for what is to be taken as any object of Python."""
    is_weight: Callable[[Any], bool] = lambda value: False
    """Says what training changes: in a program that is shape and type alone."""

    def describe(self, value: object, *, is_program: bool = False) -> Any:
        """Describe anything.

        Args:
            value: a setting, a tensor, a function, an object ...
            is_program: what training changes counts by its shape alone, and what is met again is named by where it was first.
        """
        return _Walk(self, is_program).describe(value, "", 0)

    def find_array(self, value: Any) -> NDArray[Any] | None:
        """Give what is an array, or becomes one."""
        return cast("NDArray[Any]", value) if isinstance(value, np.ndarray) else self.to_array(value)

    def describe_settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Describe what was set; what is None was not."""
        return {str(key): self.describe(value) for key, value in values.items() if value is not None}

    def describe_named(self, value: Any) -> dict[str, Any]:
        """Describe something whose name is told apart: its settings, tensors and code, if it has any."""
        described = self.describe(value)
        if not isinstance(described, dict):
            return {}
        settings = cast("dict[str, Any]", described)
        if isinstance(settings.get("function"), str):
            del settings["function"]  # A partial of a library's.
        return {key: settings[key] for key in settings if key != "name" and settings[key] is not None}

    def describe_code(self, value: object) -> dict[str, Any]:
        """Describe the code of an object's class, if it is none of a library's."""
        described = self.describe(type(value))
        return {"code": described} if isinstance(described, dict) else {}


class _Walk:
    """One pass over a thing and what it is made of."""

    def __init__(self, describer: Describer, is_program: bool) -> None:
        self._describer = describer
        self._is_program = is_program
        self._seen: dict[int, tuple[str, object]] = {}
        """Where an object was met first; the object itself, too, so that its id stays its own."""

    def describe(self, value: Any, path: str, depth: int) -> Any:
        """Describe what is at a path, so many things deep."""
        simple = _describe_simple(value)
        if simple is not None or value is None:
            return simple
        if depth > _MAX_DEPTH:
            return _name(value)
        if self._is_program and self._describer.is_weight(value):
            return f"{getattr(value.dtype, 'name', value.dtype)} {tuple(value.shape)}".replace("torch.", "")
        array = self._describer.find_array(value)
        if array is not None:
            return _describe_array(array)
        if id(value) in self._seen:
            return f"that of {self._seen[id(value)][0] or 'the whole'}"
        if not isinstance(value, tuple | Set):
            self._seen[id(value)] = (path.lstrip("."), value)
        if isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value).items()
            return {str(key): self.describe(item, f"{path}.{key}", depth + 1) for key, item in items}
        if isinstance(value, list | tuple | Set):
            return self._describe_sequence(cast("Sequence[Any]", value), path, depth)
        if isinstance(value, functools.partial):
            made_of = {"function": value.func, **({"arguments": value.args} if value.args else {}), **value.keywords}
            return {"name": "partial", **self._describe_parts(made_of, path, depth)}
        described = self._describe_code(value, path, depth)
        if isinstance(described, str):
            del self._seen[id(value)]  # A library's, which its name tells wherever it is met.
        return described if described is not None else self._describe_object(value, path, depth)

    def _describe_code(self, value: Any, path: str, depth: int) -> Any:
        """Describe a class or a function; None for anything else."""
        if isinstance(value, type):
            return self._describe_class(value, path, depth)
        if isinstance(value, np.ufunc):  # No routine, and no attributes of its own before NumPy 2.2.
            return f"numpy.ufunc {value.__name__}"
        if inspect.isroutine(inspect.unwrap(value) if callable(value) else value) or hasattr(value, "__wrapped__"):
            return self._describe_function(value, path, depth)
        return None

    def _describe_sequence(self, values: Sequence[Any] | Set[Any], path: str, depth: int) -> Any:
        items = [self.describe(item, f"{path}.{index}", depth + 1) for index, item in enumerate(values)]
        if isinstance(values, Set):
            items.sort(key=repr)
        return items if len(items) <= _MAX_ITEMS else {"length": len(items), "digest": _digest(items)}

    def _describe_parts(self, parts: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        return {str(key): self.describe(part, f"{path}.{key}", depth + 1) for key, part in parts.items()}

    def _describe_object(self, value: Any, path: str, depth: int) -> Any:
        kind = _type_of(value)
        is_own = not is_library(kind.__module__, self._describer.packages)
        parts = self._describer.list_parts(value)
        if parts is None:
            attributes = list_attributes(value)
            # What libraries keep within their objects changes as these work.
            parts = attributes if is_own else {key: own for key, own in attributes.items() if _describe_simple(own) is not None}
        described = {"name": _name(value)}
        if is_own:
            state = _list_state(kind, self._describer.packages)
            parts = {key: part for key, part in parts.items() if key not in state or _describe_simple(part) is None}
            described |= {"code": self._describe_class(kind, f"{path}.code", depth + 1)}
        return described | self._describe_parts(parts, path, depth)

    def _describe_class(self, kind: type, path: str, depth: int) -> Any:
        """Describe what the user's own classes among its bases define."""
        parts: dict[str, Any] = {}
        for base in reversed(kind.__mro__):
            if is_library(base.__module__, self._describer.packages):
                parts |= {"base": f"{base.__module__}.{base.__qualname__}"} if base is not object else {}
                continue
            attributes: Mapping[str, Any] = vars(base)
            for key, value in attributes.items():
                function = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
                if key not in _CLASS_PARTS and callable(function):
                    parts[key] = self._describe_function(function, f"{path}.{key}", depth)
                elif key not in _CLASS_PARTS and not key.startswith("__") and _describe_simple(value) is not None:
                    parts[key] = _describe_simple(value)
        if not set(parts) - {"base"}:
            return f"{kind.__module__}.{kind.__qualname__}"
        return {"name": kind.__qualname__, "digest": _digest(parts)}

    def _describe_function(self, function: Any, path: str, depth: int) -> Any:
        bound = getattr(function, "__self__", None)
        plain = inspect.unwrap(getattr(function, "__func__", function))
        code = getattr(plain, "__code__", None)
        module = str(getattr(plain, "__module__", None) or "")
        name = str(getattr(plain, "__qualname__", None) or getattr(plain, "__name__", None) or _name(plain))
        if not isinstance(code, types.CodeType) or is_library(module, self._describer.packages):
            return f"{module}.{name}".lstrip(".")
        described: dict[str, Any] = {"name": name, "digest": f"sha256:{_digest_code(code)}"}
        if depth < _MAX_DEPTH:
            used = {key: value for key, value in _list_used(plain) if value is not plain}
            used |= {"self": bound} if bound is not None and not isinstance(bound, types.ModuleType) else {}
            used |= {"defaults": [plain.__defaults__, plain.__kwdefaults__]} if plain.__defaults__ or plain.__kwdefaults__ else {}
            described |= {"uses": self._describe_parts(used, f"{path}.uses", depth)} if used else {}
        return described


def _type_of(value: object) -> type:
    return type(value)


def _list_state(kind: type, packages: Sequence[str]) -> set[str]:
    """Name the attributes that methods set once the object is made, such as counters: what it is doing, not how it was set."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not is_library(base.__module__, packages):
            for name, method in vars(base).items():
                if name not in _MAKERS and isinstance(method, types.FunctionType):
                    found.update(step.argval for step in dis.get_instructions(method) if step.opname == "STORE_ATTR")
    return found


def _describe_simple(value: Any) -> Any:
    """Describe what is a value by itself; None for anything else."""
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, np.generic):
        return _describe_simple(value.item())
    if isinstance(value, os.PathLike | np.dtype | complex | type(...)):
        return str(cast("object", value))
    if isinstance(value, bytes | bytearray):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    # Types of tensors, and what else is a constant of a framework.
    return str(value) if type(value).__name__ in ("dtype", "DType", "device", "memory_format", "layout") else None


def _describe_array(array: NDArray[Any]) -> Any:
    if array.ndim == 0 and array.dtype.kind in "biuf":
        return _describe_simple(array.item())
    return {"digest": digest_arrays(array), "dtype": str(array.dtype), "shape": list(array.shape)}


def _list_used(function: Any) -> Iterator[tuple[str, Any]]:
    """Give what a function takes from around it: what it closes over, and of its module what is a setting or code."""
    try:
        found = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    yield from ((name, value) for name, value in found.nonlocals.items() if name != "__class__")
    for name, value in found.globals.items():
        if isinstance(value, type | types.FunctionType | functools.partial) or _describe_simple(value) is not None:
            yield name, value


def _digest_code(code: types.CodeType) -> str:
    """Digest what runs: instructions, names and constants, those of functions within it included."""
    constants = [_digest_code(c) if isinstance(c, types.CodeType) else _describe_constant(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, code.co_varnames, constants)).encode()).hexdigest()


def _describe_constant(value: Any) -> str:
    # The order of a set's strings is another one in every process.
    return repr(sorted(map(repr, cast("Set[object]", value)))) if isinstance(value, frozenset) else repr(value)


def _digest(described: object) -> str:
    return f"sha256:{hashlib.sha256(repr(described).encode()).hexdigest()}"


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "__main__" else f"{kind.__module__}.{kind.__qualname__}"
