"""Weights in int8, activations quantised as they come, by ONNX Runtime's quantizer."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, ClassVar

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

__all__ = ["DynamicInt8"]


class DynamicInt8(LayerStep, frozen=True, kw_only=True):
    """No calibration; the scale of activations is taken from each batch, so that rows of a batch depend on one another.

    A worker finds that out and runs each request by itself: good for one request at a time, not for many at once.
    """

    per_channel: bool = True
    """One scale for each output channel of a weight, else one for the whole weight."""
    operators: tuple[str, ...] = ("MatMul", "Gemm")
    """Kinds that are quantised; ONNX Runtime's convolutions of this kind are slow."""

    name: ClassVar[str] = "dynamic-int8"

    @property
    def precision(self) -> str:
        """Of the weights."""
        return "int8"

    keeps_rows: ClassVar[bool] = False

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        model = read_model(artifact, self.name)
        name_nodes(model)
        return list_heavy(model, self.operators)

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        # The quantizer's shape inference imports it on the way, and without it says nothing that helps.
        import_extra("sympy", feature="Compression dynamic-int8", extra="compress")
        model = read_model(artifact, self.name)
        name_nodes(model)
        layers = list_heavy(model, self.operators)
        if not layers:
            raise InputError("nothing_to_compress", method=self.name, what=f"an operator of {', '.join(self.operators)}")
        check_excluded(self.exclude, layers, self.name)
        named, folder = write_model(model, artifact, workshop), workshop.make_folder()
        with blame_library(self.name):
            quantization: Any = importlib.import_module("onnxruntime.quantization")
            quantization.quantize_dynamic(
                str(named.path),
                str(folder / named.entry),
                op_types_to_quantize=list(self.operators),
                per_channel=self.per_channel,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=list(self.exclude),
                extra_options={"MatMulConstBOnly": True},
            )
        return replace(named, folder=folder)
