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
from argosy.frameworks.jax.predict import TRACE_ERRORS, predict
from argosy.frameworks.jax.state import Leaves, Parts, is_key, open_precision, pack, take_apart
from argosy.frameworks.trials import draw_trials
from argosy.runtimes.jax import WEIGHTS_SUFFIX, JaxRuntime

__all__ = ["export_onnx", "save_native"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
jax_export: Any = importlib.import_module("jax.export")

_OPSET: Final = 21
"""Of the ONNX files: the newest that the oldest ONNX Runtime which Argosy takes, 1.20, can read."""

_CONVERTER_DEPRECATION: Final = "'.value' access is now deprecated"

_PROGRAM_FILE: Final = "model.stablehlo"
_TOLERANCE: Final = 1e-5
"""Largest difference of a saved program's answers, relative to their largest magnitude: the same compiler made both."""


def export_onnx(
    model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str, free: Sequence[int] = ()
) -> None:
    """See `base.Framework.export_onnx`; jax2onnx converts."""
    jax2onnx: Any = importlib.import_module("jax2onnx")
    onnx: Any = importlib.import_module("onnx")
    parts = take_apart(model, is_training=False)
    answer, weights = _close_over(parts)
    with open_precision(is_double=parts.is_double), _keep_quiet():
        try:
            written = jax2onnx.to_onnx(
                partial(answer, weights), [_describe(rows, free)], opset=_OPSET, enable_double_precision=parts.is_double
            )
        except TRACE_ERRORS as error:
            raise ModelError("export_failed", detail=str(error).strip()) from error
    # The shapes that it notes of what lies between are wrong around some transpositions, and nothing needs them.
    del written.graph.value_info[:]
    onnx.save(_name_tensors(written, rows.dtype, input_name, output_name), str(path))


def save_native(model: Any, rows: NDArray[Any], folder: Path, free: Sequence[int] = ()) -> Saved:
    """See `base.Framework.save_native`."""
    parts = take_apart(model, is_training=False)
    answer, weights = _close_over(parts)
    with open_precision(is_double=parts.is_double):
        try:
            shapes = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in weights]
            program = jax_export.export(jax.jit(answer), platforms=["cpu"])(shapes, _describe(rows, free))
            (folder / _PROGRAM_FILE).write_bytes(program.serialize())
        except TRACE_ERRORS as error:
            raise ModelError("save_failed", detail=str(error).strip()) from error
    write: Any = np.savez  # Its stub takes every array for the option `allow_pickle`.
    write(folder / f"{_PROGRAM_FILE}{WEIGHTS_SUFFIX}", *(pack(weight) for weight in weights))
    return _check_saved(model, rows, folder, free)


def _close_over(parts: Parts) -> tuple[Callable[[Leaves, Any], Any], Leaves]:
    """Give a model as a function of weights and rows, and the weights; keys are integers to both."""
    # What random numbers are drawn from is no weight, and small: the program holds it.
    drawn = [np.asarray(_open_key(leaf)) for leaf in parts.random]
    num_trained = len(parts.trained)

    def answer(weights: Leaves, x: Any) -> Any:
        trained, rest = weights[:num_trained], _close_keys(weights[num_trained:], parts.rest)
        return parts.structure.run(trained, _close_keys(drawn, parts.random), rest, x)[0]

    return answer, [_open_key(leaf) for leaf in parts.trained + parts.rest]


def _open_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _close_keys(leaves: Leaves, likes: Leaves) -> Leaves:
    pairs = [(jnp.asarray(leaf), like) for leaf, like in zip(leaves, likes, strict=True)]
    return [jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if is_key(like) else leaf for leaf, like in pairs]


def _describe(rows: NDArray[Any], free: Sequence[int]) -> Any:
    """Give the type and shape of any number of such rows, of any length along their free axes."""
    names = ["B", *(f"L{axis}" if axis in free else str(length) for axis, length in list(enumerate(rows.shape))[1:])]
    shape = jax_export.symbolic_shape(", ".join(names))
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(rows.dtype))


def _name_tensors(model: Any, dtype: np.dtype[Any], input_name: str, output_name: str) -> Any:
    """Give a model's input and output the names asked for, and the input the type of real rows.

    Every name within gets a prefix first: one of them may be the same as one that is asked for.
    """
    compose: Any = importlib.import_module("onnx.compose")
    helper: Any = importlib.import_module("onnx.helper")
    model = compose.add_prefix(model, f"{input_name}.{output_name}.")
    (given,), (answer,) = model.graph.input, model.graph.output
    wanted = helper.np_dtype_to_tensor_dtype(dtype)
    # JAX takes integers of 32 bits where clients and NumPy have 64.
    begin = helper.make_node("Cast", [input_name], [given.name], to=given.type.tensor_type.elem_type)
    if given.type.tensor_type.elem_type == wanted:
        begin = helper.make_node("Identity", [input_name], [given.name])
    model.graph.node.insert(0, begin)
    model.graph.node.append(helper.make_node("Identity", [answer.name], [output_name]))
    given.name, answer.name = input_name, output_name
    given.type.tensor_type.elem_type = wanted
    return model


@contextmanager
def _keep_quiet() -> Generator[None]:
    """Keep jax2onnx from setting up logging for the whole process, as its first message would, and from warning of itself."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_CONVERTER_DEPRECATION, category=DeprecationWarning)
            yield
    finally:
        logging.root.removeHandler(handler)


def _check_saved(model: Any, rows: NDArray[Any], folder: Path, free: Sequence[int]) -> Saved:
    """Hold the saved program against the model, run as a worker runs it.

    Raises:
        ModelError: `save_failed`, it is refused, fails, or answers differently, as it does if rows change each other's answers.
    """
    runtime = JaxRuntime()
    try:
        runtime.load(folder, _PROGRAM_FILE, {"inputs": ["x"], "outputs": ["y"]})
    except TRACE_ERRORS as error:
        raise ModelError("save_failed", detail=str(error).strip()) from error
    trials = draw_trials({"x": rows}, {"x": free})
    return check_saved(_PROGRAM_FILE, runtime.infer, lambda inputs: {"y": predict(model, inputs["x"])}, trials, _TOLERANCE)
