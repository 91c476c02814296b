"""Static int8 quantisation by ONNX Runtime's quantizer. The card is `quantize.md`."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import import_extra
from argosy.signature import Arrays

__all__ = ["Int8"]

_HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights, which make the file and the time."""

_PASSING: Final = ("Flatten", "MaxPool", "Relu", "Reshape", "Transpose")
"""Operators that take int8 as it is, so that it stays int8 between two heavy ones. All others stay float32:
quantising softmax, normalisation and sums too turned a sentence encoder into noise (cosine 0.36)."""

_CHUNK_ROWS: Final = 64
"""Rows of one calibration run; bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Weights and activations as 8-bit integers, with scales fixed beforehand from calibration rows.

    Because the scales are fixed, a row's answer does not depend on its batch mates, so that requests can be
    joined; dynamic quantisation takes them from the batch and fails that.

    Source: Jacob et al. 2018, arXiv:1712.05877.
    """

    name: ClassVar[str] = "int8"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True

    per_channel: bool = True
    """One scale for each output channel of a weight, else one for the whole weight."""
    max_calibration_rows: int = 512
    """More are not looked at: the ranges hardly grow, the time does."""

    def __post_init__(self) -> None:
        if self.max_calibration_rows < 1:
            got = self.max_calibration_rows
            raise InputError("bad_option", option="int8.max_calibration_rows", got=got, expected="at least 1")

    def apply(self, model: bytes, calibration: Arrays) -> bytes:
        """Quantise an ONNX model; see `base.Method`."""
        _check_operators(model)
        # The quantizer's shape inference imports sympy on the way, and without it says nothing that helps.
        import_extra("sympy", feature="Compression int8", extra="compress")
        quantization: Any = importlib.import_module("onnxruntime.quantization")
        shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
        with tempfile.TemporaryDirectory(prefix="argosy-int8-") as folder:
            given, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("given", "prepared", "quantized"))
            given.write_bytes(model)
            # Folds constants and batch normalisation into the weights, which must be final when they are rounded.
            shapes.quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(quantized),
                _CalibrationReader(calibration, self.max_calibration_rows),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=self.per_channel,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                op_types_to_quantize=[*_HEAVY, *_PASSING],
                extra_options={"MatMulConstBOnly": True},
            )
            return quantized.read_bytes()


def _check_operators(model: bytes) -> None:
    onnx: Any = importlib.import_module("onnx")
    if not any(node.op_type in _HEAVY for node in onnx.load_model_from_string(model).graph.node):
        raise InputError("nothing_to_compress", method="int8", what=f"an operator of {', '.join(_HEAVY)}")


class _CalibrationReader:
    """Hands calibration rows to the quantizer, a chunk at a time."""

    def __init__(self, rows: Arrays, max_rows: int) -> None:
        num_rows = len(next(iter(rows.values())))
        # Evenly spaced, not the first: data is often sorted by class.
        picked = np.linspace(0, num_rows - 1, min(num_rows, max_rows)).round().astype(np.int64)
        starts = range(0, len(picked), _CHUNK_ROWS)
        self._chunks: Iterator[Arrays] = iter(
            [{name: array[picked[start : start + _CHUNK_ROWS]] for name, array in rows.items()} for start in starts]
        )

    def get_next(self) -> Arrays | None:
        return next(self._chunks, None)
