"""JAX's files: programs of jax.export, and weights of Flax (msgpack), whose model the user's code builds."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import get_framework, name_kind
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse
from argosy.importers.formats.code import build_model
from argosy.importers.formats.live import LiveModel, load_weights
from argosy.runtimes.jax import WEIGHTS_SUFFIX, JaxRuntime
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["JaxProgram", "load", "wrap_linen"]

jax: Any = importlib.import_module("jax")
export: Any = importlib.import_module("jax.export")

_FILE: Final = "model.stablehlo"
_INPUT: Final = "input"
_OUTPUT: Final = "output"
_TITLE: Final = FORMATS["jax"].title
_FAULTS: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What JAX raises on inputs that it cannot take."""
_SERVING: Final = {"train": False, "training": False, "is_training": False, "deterministic": True}
"""Arguments by which modules are told that they do not train."""


class JaxProgram(ForeignModel):
    """A function of arrays as StableHLO. See `base.ForeignModel`."""

    framework = "jax"
    packages = ("jax", "jaxlib")
    runtime = "jax"

    def __init__(self, program: Any) -> None:
        """Take a program.

        Raises:
            InputError: `bad_model_file`, it does not take arrays of any number of rows; or it reaches out of itself.
        """
        if not program.in_avals or not program.out_avals:
            got = f"{len(program.out_avals)} arrays for {len(program.in_avals)}"
            raise refuse(_TITLE, f"it gives {got}, expected some for some, with the weights inside")
        shapes = [tuple(dim if isinstance(dim, int) else -1 for dim in aval.shape) for aval in program.in_avals]
        rows = {str(aval.shape[:1]) for aval in program.in_avals}
        if len(rows) > 1 or any(shape[:1] != (-1,) or -1 in shape[1:] for shape in shapes):
            got = ", ".join(str(aval.shape) for aval in program.in_avals)
            raise refuse(_TITLE, f"it takes shape {got}, expected any number of rows alone: jax.export.symbolic_shape('b, ...')")
        self.input_names = tuple(_name_leaves(program.in_tree, _INPUT, len(shapes)))
        self._output_names = _name_leaves(program.out_tree, _OUTPUT, len(program.out_avals))
        self.inputs = tuple(
            TensorSpec(name, datatype_of(np.dtype(aval.dtype)), shape)
            for name, aval, shape in zip(self.input_names, program.in_avals, shapes, strict=True)
        )
        self._program = program
        self._is_wide = any(np.dtype(aval.dtype).itemsize == 8 for aval in (*program.in_avals, *program.out_avals))
        with tempfile.TemporaryDirectory() as folder:
            # The runtime looks at every operation, before one is run.
            self._save(Path(folder))
            try:
                JaxRuntime().load(Path(folder), _FILE, {"inputs": list(self.input_names), "outputs": self._output_names})
            except ValueError as error:
                raise refuse(_TITLE, str(error)) from error

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            with jax.enable_x64(self._is_wide):
                answers = map(np.asarray, self._call(*inputs.values()))
                return dict(zip(self._output_names, answers, strict=True))
        except _FAULTS as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[:400]}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        raise ModelError("export_failed", detail="a program of jax.export is StableHLO, which no converter reads")

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        self._save(folder)
        return _FILE

    def _call(self, *arrays: Any) -> list[Any]:
        positional, named = jax.tree.unflatten(self._program.in_tree, arrays)
        return jax.tree.leaves(self._program.call(*positional, **named))

    def _call_weighted(self, weights: list[Any], *arrays: Any) -> list[Any]:
        del weights  # They are inside.
        return self._call(*arrays)

    def _save(self, folder: Path) -> None:
        """Write the program as the runtime takes it: a function of weights, here none, and arrays."""
        (any_number,) = export.symbolic_shape("B")
        with jax.enable_x64(self._is_wide):
            given = [jax.ShapeDtypeStruct((any_number, *spec.shape[1:]), spec.dtype) for spec in self.inputs]
            written = export.export(jax.jit(self._call_weighted), platforms=["cpu"])([], *given)
        (folder / _FILE).write_bytes(written.serialize())
        np.savez(folder / f"{_FILE}{WEIGHTS_SUFFIX}")


def _name_leaves(structure: Any, stem: str, num_leaves: int) -> list[str]:
    """Name arrays by their keys, or else by their places; a single one by the stem."""
    if num_leaves == 1:
        return [stem]
    paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(structure, range(num_leaves)))
    names: list[str] = []
    for path, _ in paths:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        # Arguments are a pair: those in order, and those by name.
        parts = parts[1:] if stem == _INPUT else parts
        names.append("_".join(parts if not parts[0].isdigit() else [stem, *parts]))
    return names


def load(source: Source) -> ForeignModel:
    """Load a program, or weights."""
    if source.format == "jax":
        return JaxProgram(export.deserialize(bytearray(source.path.read_bytes())))
    flax: Any = importlib.import_module("flax.serialization")
    weights = flax.msgpack_restore(source.path.read_bytes())
    if not isinstance(weights, Mapping):
        raise refuse(FORMATS["flax"].title, f"it holds a {name_kind(weights)}, expected weights by name")
    model = build_model(source)
    if (linen := wrap_linen(model, cast("Mapping[str, Any]", weights))) is not None:
        return linen
    return load_weights(source, model, _flatten(cast("Mapping[str, Any]", weights)))


def wrap_linen(model: Any, weights: Mapping[str, Any]) -> LiveModel | None:
    """Make a module of flax.linen and its weights a model that the framework knows; None if it is no such module.

    Args:
        model: what the user's code gave.
        weights: nested; what Flax calls variables, or the collection `params` alone.
    """
    linen: Any = importlib.import_module("flax.linen")
    nnx: Any = importlib.import_module("flax.nnx")
    if not isinstance(model, linen.Module):
        return None
    variables = dict(weights) if "params" in weights else {"params": dict(weights)}
    taken = inspect.signature(type(model).__call__).parameters
    arguments = {name: value for name, value in _SERVING.items() if name in taken}

    class Linen(nnx.Module):
        def __init__(self) -> None:
            self.variables = nnx.Variable(jax.tree.map(jax.numpy.asarray, variables))

        def __call__(self, *tensors: Any, **named: Any) -> Any:
            return model.apply(self.variables.get_value(), *tensors, **named, **arguments)

    # Its arguments are those of the module.
    told: Any = Linen.__call__
    told.__signature__ = inspect.signature(type(model).__call__)
    return LiveModel(get_framework("jax"), Linen())


def _flatten(weights: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Name each array by its place, with dots, as `Framework.get_weights` does."""
    arrays: Arrays = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            arrays |= _flatten(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            arrays[f"{prefix}{name}"] = np.asarray(value)
    return arrays
