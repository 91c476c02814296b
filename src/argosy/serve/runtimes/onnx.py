"""Run ONNX files with ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUNTIME", "OnnxRuntime"]

ort: Any = importlib.import_module("onnxruntime")


class OnnxRuntime:
    """One ONNX Runtime session.

    Options: `threads` (of one operator; default 1), `share_weights` (true: weights that stand in files
    of their own are mapped and not packed anew, so that replicas share their pages; multiplication is
    slower on large batches).
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Open the session."""
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = int(options.get("threads", 1))
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # A thread pool that spins between batches would take the fronts' core.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.get("share_weights"):
            settings.add_session_config_entry("session.disable_prepacking", "1")
        self._session = ort.InferenceSession(str(folder / entry), settings, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._has_text = "tensor(string)" in {node.type for node in self._session.get_inputs() + self._session.get_outputs()}

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch."""
        if not self._has_text:
            return dict(zip(self._outputs, self._session.run(None, inputs), strict=True))
        feed = {name: _map_text(array, _to_text) for name, array in inputs.items()}
        answers = dict(zip(self._outputs, self._session.run(None, feed), strict=True))
        return {name: _map_text(array, _to_bytes) for name, array in answers.items()}


def _to_text(item: bytes) -> str:
    # ONNX Runtime takes strings as text only; escapes carry bytes that are no UTF-8 as far as its encoder, which refuses them.
    return item.decode("utf-8", "surrogateescape")


def _to_bytes(item: str) -> bytes:
    return item.encode("utf-8", "surrogateescape")


def _map_text(array: NDArray[Any], function: Callable[[Any], bytes | str]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    out = np.empty(array.shape, dtype=object)
    out.ravel()[:] = [function(item) for item in array.ravel().tolist()]
    return out


RUNTIME: Final = OnnxRuntime
