"""Weights alone in 8 or 4 bits, by ONNX Runtime's MatMulNBits; what is multiplied with them is rounded to 8 bits as it comes."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Literal

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import (
    LayerStep,
    Workshop,
    blame_library,
    check_excluded,
    list_heavy,
    name_nodes,
    read_model,
    write_model,
)
from argosy.errors import InputError
from argosy.frameworks.base import import_extra

__all__ = ["Weights"]


class Weights(LayerStep, frozen=True, kw_only=True):
    """Matrices in blocks of 8 or 4 bits, each with a scale. Tables of embeddings stay as they are. No calibration."""

    bits: Literal[4, 8] = 8
    block_size: int = 128
    """Numbers that share a scale: a power of two from 16 on. Fewer are more exact, and larger."""

    def __post_init__(self) -> None:
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise InputError("bad_option", option="weights.block_size", got=self.block_size, expected="16, 32, 64, 128 ...")

    name: ClassVar[str] = "weights"

    @property
    def precision(self) -> str:
        """Of the weights."""
        return f"int{self.bits}"

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        model = read_model(artifact, self.name)
        name_nodes(model)
        return list_heavy(model, ("MatMul",))

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        import_extra("onnx_ir", feature="Compression weights", extra="compress")
        model = read_model(artifact, self.name)
        name_nodes(model)
        layers = list_heavy(model, ("MatMul",))
        if not layers:
            raise InputError("nothing_to_compress", method=self.name, what="an operator MatMul with a constant matrix")
        check_excluded(self.exclude, layers, self.name)
        with blame_library(self.name):
            quantizers: Any = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
            quantizer = quantizers.MatMulNBitsQuantizer(
                model,
                bits=self.bits,
                block_size=self.block_size,
                is_symmetric=True,
                accuracy_level=4,
                nodes_to_exclude=list(self.exclude),
            )
            quantizer.process()
            quantized = quantizer.model.model
        return write_model(quantized, artifact, workshop)
