"""ONNX files: what every framework exports to; run here by ONNX Runtime, alone, to check and to measure."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ModelError, list_choices
from argosy.frameworks.agreement import Differs, Evidence, Fails, hold_against
from argosy.frameworks.trials import draw_trials
from argosy.signature import Arrays

__all__ = ["EXPORT_TOLERANCE", "OnnxModel", "check_export", "declare_shapes"]

EXPORT_TOLERANCE: Final = 1e-4
"""Largest difference from the framework's own outputs, relative to their largest magnitude.

float32 kernels that sum in another order differ by 1e-7 to 1e-6; a wrong operator by 1e-2 and more."""

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


def check_export(
    model: OnnxModel, predict: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any], free: Sequence[int] = ()
) -> Evidence:
    """Hold an exported model against the framework's own answers, on the sample and on rows that take other ways.

    Args:
        model: with one input and one output.
        predict: the framework's answers.
        rows: real inputs.
        free: axes of the rows whose length is free.

    Raises:
        ModelError: `export_differs`, by more than `EXPORT_TOLERANCE`; `export_failed`, no answer to some rows.
        InputError: `bad_data`, the model takes no other length along the free axes.
    """
    if len(model.input_names) != 1 or len(model.output_names) != 1:
        sides = f"takes {list_choices(model.input_names)} and gives {list_choices(model.output_names)}"
        raise ModelError("export_failed", detail=f"what was written {sides}, expected one tensor each")
    (given,), (made,) = model.input_names, model.output_names
    trials = draw_trials({given: rows}, {given: free})
    try:
        return hold_against(model.run, lambda inputs: {made: predict(inputs[given])}, trials, EXPORT_TOLERANCE)
    except Differs as error:
        raise ModelError("export_differs", rows=error.kind, got=error.difference, allowed=error.allowed) from error
    except Fails as error:
        raise ModelError("export_failed", detail=f"of what was written, {error}") from error


def declare_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the lengths of the outputs' axes as they were seen: a tracer declares those of its sample, and some exporters none.

    Args:
        path: of an ONNX file; its external data stays as it is.
        shapes: by output; -1 stands for any length.
    """
    onnx: Any = importlib.import_module("onnx")
    written = onnx.load(str(path), load_external_data=False)
    for tensor in written.graph.output:
        described = onnx.helper.make_tensor_value_info(
            tensor.name, tensor.type.tensor_type.elem_type, [None if length < 0 else length for length in shapes[tensor.name]]
        )
        tensor.type.CopyFrom(described.type)
    onnx.save(written, str(path))
