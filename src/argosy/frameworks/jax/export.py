"""Write a flax.nnx model as ONNX, or as a StableHLO program for `runtimes/jax.py`."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.frameworks.agreement import Saved, check_saved
from argosy.frameworks.base import import_extra
from argosy.frameworks.jax.predict import TRACE_ERRORS, answer
from argosy.frameworks.jax.state import Leaves, Parts, is_key, open_precision, pack, take_apart
from argosy.frameworks.onnx import name_tensors
from argosy.frameworks.ports import Ports
from argosy.runtimes.jax import WEIGHTS_SUFFIX, JaxRuntime
from argosy.signature import Arrays

__all__ = ["convert", "export_onnx", "save_native"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
jax_export: Any = importlib.import_module("jax.export")

_OPSET: Final = 21
"""Of the ONNX files: the newest that the oldest ONNX Runtime which Argosy takes, 1.20, can read."""

_CONVERTER_DEPRECATION: Final = "'.value' access is now deprecated"

_PROGRAM_FILE: Final = "model.stablehlo"
_TOLERANCE: Final = 1e-5
"""Largest difference of a saved program's answers, relative to their largest magnitude: the same compiler made both."""


def export_onnx(model: Any, inputs: Arrays, path: Path, ports: Ports) -> None:
    """See `base.Framework.export_onnx`; jax2onnx converts."""
    onnx: Any = importlib.import_module("onnx")
    parts = take_apart(model, is_training=False)
    run, weights = _close_over(parts, ports)
    try:
        with open_precision(is_double=parts.is_double):
            written = convert(partial(run, weights), inputs, ports, is_double=parts.is_double)
    except TRACE_ERRORS as error:
        raise ModelError("export_failed", detail=str(error).strip()) from error
    onnx.save(written, str(path))


def convert(call: Callable[..., Any], inputs: Arrays, ports: Ports, *, is_double: bool) -> Any:
    """Make an ONNX model of a function of arrays in order that gives several, by jax2onnx.

    Args:
        call: to convert.
        inputs: real ones, by name, in the function's order.
        ports: whose names the tensors get.
        is_double: it computes in 64 bits.

    Raises:
        InputError: `missing_extra`, jax2onnx is not installed.
    """
    jax2onnx = import_extra("jax2onnx", feature="The export of models on JAX to ONNX", extra="jax")
    names = [f"argosy_in_{number}" for number in range(len(inputs))]
    with _keep_quiet():
        written = _try_lengths(
            lambda shapes: jax2onnx.to_onnx(
                call,
                [jax.ShapeDtypeStruct(shapes[name], _narrow(array.dtype)) for name, array in inputs.items()],
                opset=_OPSET,
                enable_double_precision=is_double,
                input_names=names,
            ),
            inputs,
            ports,
        )
    # The shapes that it notes of what lies between are wrong around some transpositions, and nothing needs them.
    del written.graph.value_info[:]
    name_tensors(written, inputs, names, ports)
    return written


def _try_lengths(write: Callable[[dict[str, Any]], Any], inputs: Arrays, ports: Ports) -> Any:
    """Write with every free length a name of its own; or else those that are alike in the sample one."""
    try:
        return write(ports.name_lengths(inputs, is_shared=False))
    except TRACE_ERRORS:
        if not any(ports.free.values()):
            raise
    return write(ports.name_lengths(inputs, is_shared=True))


def _narrow(dtype: np.dtype[Any]) -> Any:
    return jax.dtypes.canonicalize_dtype(dtype)


def save_native(model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
    """See `base.Framework.save_native`."""
    parts = take_apart(model, is_training=False)
    run, weights = _close_over(parts, ports)

    def write(shapes: dict[str, Any]) -> Any:
        scope = jax_export.SymbolicScope()
        given = [_describe(array, shapes[name], scope) for name, array in inputs.items()]
        return jax_export.export(jax.jit(run), platforms=["cpu"])(held, *given)

    with open_precision(is_double=parts.is_double):
        held = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in weights]
        try:
            (folder / _PROGRAM_FILE).write_bytes(_try_lengths(write, inputs, ports).serialize())
        except TRACE_ERRORS as error:
            raise ModelError("save_failed", detail=str(error).strip()) from error
    save: Any = np.savez  # Its stub takes every array for the option `allow_pickle`.
    save(folder / f"{_PROGRAM_FILE}{WEIGHTS_SUFFIX}", *(pack(weight) for weight in weights))
    return _check_saved(model, inputs, folder, ports)


def _close_over(parts: Parts, ports: Ports) -> tuple[Callable[..., Any], Leaves]:
    """Give a model as a function of weights and arrays in order, and the weights; keys are integers to both."""
    # What random numbers are drawn from is no weight, and small: the program holds it.
    drawn = [np.asarray(_open_key(leaf)) for leaf in parts.random]
    num_trained = len(parts.trained)

    def run(weights: Leaves, *arrays: Any) -> Any:
        trained, rest = weights[:num_trained], _close_keys(weights[num_trained:], parts.rest)
        keys = _close_keys(drawn, parts.random)
        return ports.flatten(lambda tree: parts.structure.run(trained, keys, rest, tree)[0])(*arrays)

    return run, [_open_key(leaf) for leaf in parts.trained + parts.rest]


def _open_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _close_keys(leaves: Leaves, likes: Leaves) -> Leaves:
    pairs = [(jnp.asarray(leaf), like) for leaf, like in zip(leaves, likes, strict=True)]
    return [jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if is_key(like) else leaf for leaf, like in pairs]


def _describe(array: NDArray[Any], lengths: Sequence[str | int], scope: Any) -> Any:
    shape = jax_export.symbolic_shape(", ".join(map(str, lengths)), scope=scope) if lengths else ()
    return jax.ShapeDtypeStruct(shape, _narrow(array.dtype))


@contextmanager
def _keep_quiet() -> Generator[None]:
    """Keep jax2onnx from setting up logging for the whole process, as its first message would, and from warning of itself."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_CONVERTER_DEPRECATION, category=DeprecationWarning)
            # The converter makes 32 bits of integers of 64.
            warnings.filterwarnings("ignore", message="(.|\\n)*Explicitly requested dtype", category=UserWarning)
            yield
    finally:
        logging.root.removeHandler(handler)


def _check_saved(model: Any, inputs: Arrays, folder: Path, ports: Ports) -> Saved:
    """Hold the saved program against the model, run as a worker runs it.

    Raises:
        ModelError: `save_failed`, it is refused, fails, or answers differently, as it does if rows change each other's answers.
    """
    runtime, options = JaxRuntime(), {"inputs": ports.input_names, "outputs": ports.output_names}
    options |= {} if ports.has_rows else {"has_rows": False}
    try:
        runtime.load(folder, _PROGRAM_FILE, options)
    except TRACE_ERRORS as error:
        raise ModelError("save_failed", detail=str(error).strip()) from error
    expect, trials = ports.run(partial(answer, model)), ports.draw_trials(inputs)
    return check_saved(_PROGRAM_FILE, options, runtime.infer, expect, trials, _TOLERANCE, has_rows=ports.has_rows)
