"""Run ONNX files with ONNX Runtime: on the CPU, or (untested) on a GPU by CUDA."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import find_bfloat16, is_bfloat16
from argosy.runtimes.base import BadInput, blame_input

__all__ = ["RUNTIME", "OnnxRuntime", "check_session", "run_session"]

ort: Any = importlib.import_module("onnxruntime")
_state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TEXT: Final = "tensor(string)"
_BFLOAT16: Final = "tensor(bfloat16)"
_BFLOAT16_ELEMENT: Final = 16  # TensorProto.BFLOAT16
_ERRORS: Final = (_state.InvalidArgument, _state.Fail, _state.RuntimeException)
"""What operators raise of their inputs; the choice among them is each operator's own."""


class OnnxRuntime:
    """One ONNX Runtime session.

    Options: `threads` (of one operator; default 1), `share_weights` (true: weights that stand in files
    of their own are mapped and not packed anew, so that replicas share their pages; multiplication is
    slower on large batches), `device` (`cpu`, the default, or `cuda`: operators that CUDA does not have run on the CPU).
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Open the session.

        Raises:
            RuntimeError: there is no such device here.
        """
        providers = _find_providers(str(options.get("device", "cpu")))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = int(options.get("threads", 1))
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # A thread pool that spins between batches would take the fronts' core.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.get("share_weights"):
            settings.add_session_config_entry("session.disable_prepacking", "1")
        self._session = ort.InferenceSession(str(folder / entry), settings, providers=providers)
        if self._session.get_providers()[0] != providers[0]:
            # It goes on without, and would not say so.
            raise RuntimeError(
                f"ONNX Runtime has {providers[0]}, which did not start: {', '.join(self._session.get_providers())}"
            )
        self._outputs = [output.name for output in self._session.get_outputs()]
        check_session(self._session)
        types = {node.type for node in self._session.get_inputs() + self._session.get_outputs()}
        self._is_plain = types.isdisjoint((_TEXT, _BFLOAT16))

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """Each model has threads of its own."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: a string is no text, or an operator cannot compute with what it gets.
        """
        try:
            if self._is_plain:
                return dict(zip(self._outputs, self._session.run(None, inputs), strict=True))
            return dict(zip(self._outputs, run_session(self._session, self._outputs, inputs), strict=True))
        except _ERRORS as error:
            raise blame_input(error) from error


def _find_providers(device: str) -> list[str]:
    if device not in _PROVIDERS:
        raise RuntimeError(f"device is {device!r}, expected one of {', '.join(_PROVIDERS)}")
    name, cpu = _PROVIDERS[device], _PROVIDERS["cpu"]
    if name not in ort.get_available_providers():
        raise RuntimeError(f"the installed ONNX Runtime has no {name}; the package onnxruntime-gpu in its place has it")
    return list(dict.fromkeys((name, cpu)))


def check_session(session: Any) -> None:
    """Refuse what `run_session` cannot run.

    Raises:
        TypeError: inputs of text and outputs of bfloat16 in one model: no interface of ONNX Runtime for Python takes both.
    """
    inputs, outputs = ({node.type for node in nodes} for nodes in (session.get_inputs(), session.get_outputs()))
    if _TEXT in inputs and _BFLOAT16 in outputs:
        raise TypeError("ONNX Runtime's Python interface gives no bfloat16 output to a model that has inputs of text")


def run_session(session: Any, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a session whose tensors may be BYTES or bfloat16, which ONNX Runtime does not take from NumPy as they are.

    Args:
        session: an `onnxruntime.InferenceSession` on the CPU.
        names: of the outputs.
        inputs: name -> array; BYTES as object arrays of `bytes`. Bfloat16 arrays must be contiguous.

    """
    feed = {name: _to_value(array) for name, array in inputs.items()}
    if _BFLOAT16 not in {node.type for node in session.get_outputs()}:
        return [_map_text(array, _to_bytes) for array in session.run(names, feed)]
    make = ort.OrtValue.ortvalue_from_numpy
    values = {name: each if isinstance(each, ort.OrtValue) else make(each) for name, each in feed.items()}
    return [_map_text(_read_value(value), _to_bytes) for value in session.run_with_ort_values(names, values)]


def _to_value(array: NDArray[Any]) -> Any:
    if not is_bfloat16(array.dtype):
        return _map_text(array, _to_text)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(array).view(np.uint16), _BFLOAT16_ELEMENT)


def _read_value(value: Any) -> NDArray[Any]:
    if value.data_type() != _BFLOAT16:
        return value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, find_bfloat16()).reshape(value.shape())


def _to_text(item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        # ONNX Runtime takes no other bytes.
        raise BadInput(f"an element is not UTF-8: {error.reason} at byte {error.start}") from error


def _to_bytes(item: str) -> bytes:
    return item.encode()


def _map_text(array: NDArray[Any], function: Callable[[Any], bytes | str]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    out = np.empty(array.shape, dtype=object)
    out.ravel()[:] = [function(item) for item in array.ravel().tolist()]
    return out


RUNTIME: Final = OnnxRuntime
