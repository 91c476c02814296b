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
    """A function of one array as StableHLO. See `base.ForeignModel`."""

    framework = "jax"
    packages = ("jax", "jaxlib")
    input_names = (_INPUT,)
    runtime = "jax"

    def __init__(self, program: Any) -> None:
        """Take a program.

        Raises:
            InputError: `bad_model_file`, it does not give one array for one, of any number of rows; or it reaches out of itself.
        """
        if len(program.in_avals) != 1 or len(program.out_avals) != 1:
            got = f"{len(program.out_avals)} arrays for {len(program.in_avals)}"
            raise refuse(_TITLE, f"it gives {got}, expected one for one, with the weights inside")
        (rows,) = program.in_avals
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in rows.shape)
        if shape[:1] != (-1,) or -1 in shape[1:]:
            raise refuse(
                _TITLE, f"it takes shape {rows.shape}, expected any number of rows alone: jax.export.symbolic_shape('b, ...')"
            )
        self.inputs = (TensorSpec(_INPUT, datatype_of(np.dtype(rows.dtype)), shape),)
        self._program = program
        self._is_wide = any(np.dtype(aval.dtype).itemsize == 8 for aval in (*program.in_avals, *program.out_avals))
        with tempfile.TemporaryDirectory() as folder:
            # The runtime looks at every operation, before one is run.
            self._save(Path(folder))
            try:
                JaxRuntime().load(Path(folder), _FILE, {"inputs": [_INPUT], "outputs": [_OUTPUT]})
            except ValueError as error:
                raise refuse(_TITLE, str(error)) from error

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            with jax.enable_x64(self._is_wide):
                return {_OUTPUT: np.asarray(self._call(inputs[_INPUT]))}
        except _FAULTS as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {str(error).strip()[:400]}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        raise ModelError("export_failed", detail="a program of jax.export is StableHLO, which no converter reads")

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        self._save(folder)
        return _FILE

    def _call(self, rows: Any) -> Any:
        positional, named = jax.tree.unflatten(self._program.in_tree, [rows])
        (answer,) = jax.tree.leaves(self._program.call(*positional, **named))
        return answer

    def _call_weighted(self, weights: list[Any], rows: Any) -> Any:
        del weights  # They are inside.
        return self._call(rows)

    def _save(self, folder: Path) -> None:
        """Write the program as the runtime takes it: a function of weights, here none, and rows."""
        (any_number,) = export.symbolic_shape("B")
        (spec,) = self.inputs
        with jax.enable_x64(self._is_wide):
            rows = jax.ShapeDtypeStruct((any_number, *spec.shape[1:]), spec.dtype)
            written = export.export(jax.jit(self._call_weighted), platforms=["cpu"])([], rows)
        (folder / _FILE).write_bytes(written.serialize())
        np.savez(folder / f"{_FILE}{WEIGHTS_SUFFIX}")


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

        def __call__(self, rows: Any) -> Any:
            return model.apply(self.variables.get_value(), rows, **arguments)

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
