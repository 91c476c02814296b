"""Weights in float16: half the file; ONNX Runtime's CPU computes in float32 all the same, and converts."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Final

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model

__all__ = ["Float16"]

_QUANTISED: Final = (
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QuantizeLinear",
)
"""Operators of versions that are partly in 8 bits already, whose scales ONNX Runtime takes in float32 alone."""


class Float16(Step, frozen=True, kw_only=True):
    """Weights and operators in float16; inputs and outputs as they were."""

    name: ClassVar[str] = "float16"

    @property
    def precision(self) -> str:
        """Of the weights."""
        return "float16"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_model(artifact, self.name)
        with blame_library(self.name):
            converter: Any = importlib.import_module("onnxruntime.transformers.float16")
            blocked = [*converter.DEFAULT_OP_BLOCK_LIST, *_QUANTISED]
            halved = converter.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
        return write_model(halved, artifact, workshop)
