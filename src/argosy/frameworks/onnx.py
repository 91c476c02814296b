"""ONNX files: what every framework exports to; run here by ONNX Runtime, alone, to check and to measure."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError
from argosy.signature import Arrays

__all__ = ["EXPORT_TOLERANCE", "OnnxModel", "check_export"]

EXPORT_TOLERANCE: Final = 1e-4
"""Largest difference from the framework's own outputs, relative to their largest magnitude.

float32 kernels that sum in another order differ by 1e-7 to 1e-6; a wrong operator by 1e-2 and more."""

_CHECKED_ROWS: Final = (1, 2, 7)
"""Batch sizes of the check: one, the traced one, and one that nothing was traced with."""

_SEVERITY_ERROR: Final = 3


class OnnxModel:
    """An ONNX file, loaded on one thread, so that its answers do not depend on the number of cores."""

    def __init__(self, source: Path | bytes) -> None:
        """Load a file or its content.

        Raises:
            ModelError: `export_failed`, ONNX Runtime refuses it.
        """
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERITY_ERROR
        model = source if isinstance(source, bytes) else str(source)
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base but this one.
            raise ModelError("export_failed", detail=str(error)) from error
        self.input_names: list[str] = [tensor.name for tensor in self._session.get_inputs()]
        self.output_names: list[str] = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Answer a batch; the first axis of every array is rows."""
        return dict(zip(self.output_names, self._session.run(None, inputs), strict=True))

    def run_alone(self, inputs: Arrays) -> Arrays:
        """Answer each row as a batch of its own, as golden examples are recorded."""
        num_rows = len(next(iter(inputs.values())))
        answers = [self.run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(num_rows)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self.output_names}


def check_export(model: OnnxModel, rows: NDArray[Any], expected: NDArray[Any]) -> float:
    """Hold an exported model against the framework's own answers, in batches of 1, 2 and 7.

    Args:
        model: with one input and one output.
        rows: real inputs; taken again from the start when fewer than 7.
        expected: what the framework answers to `rows`.

    Returns:
        The largest difference, relative to the largest magnitude of `expected`.

    Raises:
        ModelError: `export_differs`, larger than `EXPORT_TOLERANCE`; `export_failed`, no answer at one of the sizes.
    """
    scale = max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))
    worst = 0.0
    for num_rows in _CHECKED_ROWS:
        picked = np.arange(num_rows) % len(rows)
        try:
            (got,) = model.run({model.input_names[0]: rows[picked]}).values()
        except Exception as error:  # As above.
            detail = f"it does not run on {num_rows} rows, so some shape is fixed in it: {error}"
            raise ModelError("export_failed", detail=detail) from error
        if got.shape != expected[picked].shape:
            detail = f"for {num_rows} rows it answers with shape {got.shape}, expected {expected[picked].shape}"
            raise ModelError("export_failed", detail=detail)
        difference = float(np.max(np.abs(got - expected[picked]))) / scale
        if not difference <= EXPORT_TOLERANCE:
            raise ModelError("export_differs", got=difference, allowed=EXPORT_TOLERANCE)
        worst = max(worst, difference)
    return worst
