"""Run models in Keras' own format on the backend that they were made with, on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import blame_input

__all__ = ["BACKEND_FILE", "RUNTIME", "KerasRuntime", "read_model"]

BACKEND_FILE: Final = "backend.json"
"""Beside the model: {"backend": "tensorflow"}, "jax" or "torch"."""

_REFUSED: Final = frozenset({"FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"})
"""Keras' own, but made of foreign code or files."""

_MAX_CONFIG_BYTES: Final = 64 << 20
"""Of a model's description; a file may say that it unpacks to more than there is memory."""


class KerasRuntime:
    """One Keras model.

    Options: `threads` (of one operator; default 1), `inputs` and `outputs` (names of the version's tensors, in the order of
    the model's own), `has_rows` (default true: the first axis of every tensor counts rows). On JAX, which compiles for each
    number of rows, these are filled up to a power of two with copies of the last.
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Choose the backend, start it with as many threads as asked for, and load the model."""
        backend = _read_backend(folder)
        os.environ["KERAS_BACKEND"] = backend
        _set_threads(backend, int(options.get("threads", 1)))
        has_rows = bool(options.get("has_rows", True))
        self.open(folder, entry, options["inputs"], options["outputs"], has_rows=has_rows)

    def open(self, folder: Path, entry: str, inputs: list[str], outputs: list[str], *, has_rows: bool = True) -> None:
        """Load the model with the threads that there are.

        Raises:
            RuntimeError: Keras runs on another backend in this process, or the model has layers that are not Keras' own.
            ValueError: Keras finds the file damaged, or code in it.
        """
        model = read_model(folder, entry)
        keras: Any = importlib.import_module("keras")
        backend = keras.backend.backend()
        if (len(model.inputs), len(model.outputs)) != (len(inputs), len(outputs)):
            detail = f"{len(inputs)} inputs and {len(outputs)} outputs, the model {len(model.inputs)} and {len(model.outputs)}"
            raise RuntimeError(f"The version has {detail}")
        self._inputs, self._outputs = inputs, outputs
        # With one input it is that; only a functional model has more, and then tells how it wants them.
        self._structure = model.input if len(inputs) > 1 else None
        self._tree: Any = keras.tree
        self._call = _CALLS[backend](model, has_rows)
        self._errors = (ValueError, *_list_errors(backend))

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """As the backend does; it is imported."""
        backend = _read_backend(folder)
        os.environ["KERAS_BACKEND"] = backend
        importlib.import_module("keras")
        return backend != "torch"

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: a layer cannot compute with what it gets.
        """
        given: Any = [inputs[name] for name in self._inputs]
        given = given[0] if self._structure is None else self._tree.pack_sequence_as(self._structure, given)
        try:
            answers = zip(self._outputs, self._tree.flatten(self._call(given)), strict=True)
        except self._errors as error:
            raise blame_input(error) from error
        return {name: _make_plain(answer) for name, answer in answers}


def read_model(folder: Path, entry: str) -> Any:
    """Read a model with Keras, on the backend that it was made with.

    Raises:
        RuntimeError: Keras runs on another backend in this process, or the model has layers that are not Keras' own.
        ValueError: Keras finds the file damaged, or code in it.
    """
    backend = _read_backend(folder)
    os.environ.setdefault("KERAS_BACKEND", backend)
    keras: Any = importlib.import_module("keras")
    if keras.backend.backend() != backend:
        got = keras.backend.backend()
        raise RuntimeError(f"The model was made on Keras' backend {backend}, and this process has started with {got}")
    _check_config(folder / entry)
    return keras.saving.load_model(folder / entry, compile=False, safe_mode=True)


def _read_backend(folder: Path) -> str:
    backend = str(json.loads((folder / BACKEND_FILE).read_text())["backend"])
    if backend not in _CALLS:
        raise RuntimeError(f"{BACKEND_FILE} names the backend {backend[:200]!r}; known: {', '.join(_CALLS)}")
    return backend


def _set_threads(backend: str, num_threads: int) -> None:
    if backend == "torch":
        importlib.import_module("torch").set_num_threads(num_threads)
    elif backend == "tensorflow":
        importlib.import_module("argosy.runtimes.tensorflow").set_threads(num_threads)
    else:
        importlib.import_module("argosy.runtimes.jax").begin(num_threads)


def _list_errors(backend: str) -> tuple[type[Exception], ...]:
    """What the backend's operators raise of their inputs; Keras' layers raise ValueError."""
    return () if backend == "jax" else importlib.import_module(f"argosy.runtimes.{backend}").INPUT_ERRORS


def _check_config(path: Path) -> None:
    """Refuse a model with code that is not Keras' own: its file says what to import."""
    with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise RuntimeError(f"The model's description has more than {_MAX_CONFIG_BYTES} bytes")
    for kind, module, registered in _list_classes(json.loads(data)):
        is_foreign = module.partition(".")[0] not in ("", "keras") or ">" in registered
        if is_foreign or kind in _REFUSED:
            where = f" of {module}" if module else ""
            raise RuntimeError(
                f"The model has {kind}{where}, whose code a file cannot bring; a runtime takes layers of Keras' own"
            )


def _list_classes(value: Any) -> Iterator[tuple[str, str, str]]:
    """Give class, module and registered name of everything in a description that Keras makes an object of."""
    if isinstance(value, dict):
        found = cast(dict[str, Any], value)
        if "class_name" in found:
            yield str(found["class_name"]), str(found.get("module") or ""), str(found.get("registered_name") or "")
        for part in found.values():
            yield from _list_classes(part)
    elif isinstance(value, list):
        for part in cast(list[Any], value):
            yield from _list_classes(part)


def _call_in_tensorflow(model: Any, has_rows: bool) -> Callable[[Any], Any]:
    del has_rows  # It computes any shape.
    tf: Any = importlib.import_module("tensorflow")

    def call(x: Any) -> Any:
        return model(x, training=False)

    return tf.function(call, reduce_retracing=True, autograph=False)


def _call_in_jax(model: Any, has_rows: bool) -> Callable[[Any], Any]:
    jax: Any = importlib.import_module("jax")
    narrow: Any = importlib.import_module("argosy.runtimes.jax").narrow
    weights, buffers = ([v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables))

    @jax.jit
    def run(weights: list[Any], buffers: list[Any], x: Any) -> Any:
        return model.stateless_call(weights, buffers, x, training=False)[0]

    def call(x: Any) -> Any:
        num_rows = len(jax.tree.leaves(x)[0]) if has_rows else 0
        num_missing = (1 << (num_rows - 1).bit_length()) - num_rows if num_rows else 0

        def fill(part: NDArray[Any]) -> NDArray[Any]:
            if part.dtype.kind in "iu" and part.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
                part = narrow(part, f"{part.dtype.kind}4")
            return np.concatenate([part, np.repeat(part[-1:], num_missing, axis=0)]) if num_missing else part

        def cut(part: NDArray[Any]) -> NDArray[Any]:
            return part[:num_rows] if num_missing else part

        return jax.tree.map(cut, run(weights, buffers, jax.tree.map(fill, x)))

    return call


def _call_in_torch(model: Any, has_rows: bool) -> Callable[[Any], Any]:
    del has_rows  # As above.
    torch: Any = importlib.import_module("torch")

    def call(x: Any) -> Any:
        with torch.inference_mode():
            return model(x, training=False)

    return call


def _make_plain(answer: Any) -> NDArray[Any]:
    keras: Any = sys.modules["keras"]
    array: NDArray[Any] = np.asarray(keras.ops.convert_to_numpy(answer), order="C")
    # V2 has no bfloat16.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


_CALLS: Final = {"jax": _call_in_jax, "tensorflow": _call_in_tensorflow, "torch": _call_in_torch}

RUNTIME: Final = KerasRuntime
