"""Static int8 quantisation by ONNX Runtime's quantizer. The card is `int8.md`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows, stack_answers
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import (
    HEAVY,
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
from argosy.signature import Arrays

__all__ = ["Int8"]

_PASSING: Final = ("Flatten", "MaxPool", "Relu", "Reshape", "Transpose")
"""Operators that take int8 as it is, so that it stays int8 between two heavy ones. All others stay float32:
quantising softmax, normalisation and sums too turned a sentence encoder into noise (cosine 0.36)."""

_CHUNK_ROWS: Final = 64
"""Rows of one calibration run; bounds its memory."""
_PER_CHANNEL_OPSET: Final = 13
"""In which QuantizeLinear has learnt to take a scale for each channel."""

_CALIBRATORS: Final = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


class Int8(LayerStep, frozen=True, kw_only=True):
    """Weights and activations as 8-bit integers, with scales fixed beforehand from calibration rows.

    Because the scales are fixed, a row's answer does not depend on its batch mates, so that requests can be
    joined; dynamic quantisation takes them from the batch and fails that.

    Source: Jacob et al. 2018, arXiv:1712.05877.
    """

    per_channel: bool = True
    """One scale for each output channel of a weight, else one for the whole weight."""
    ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the range of an activation is found: the smallest and the largest value; or with outliers cut off, where that
    changes the distribution least (`entropy`), or at the 99.999th percentile. The latter two need rows of one shape."""
    max_calibration_rows: int = 512
    """More are not looked at: the ranges hardly grow, the time does."""

    def __post_init__(self) -> None:
        if self.max_calibration_rows < 1:
            got = self.max_calibration_rows
            raise InputError("bad_option", option="int8.max_calibration_rows", got=got, expected="at least 1")

    name: ClassVar[str] = "int8"

    @property
    def precision(self) -> str:
        """Of weights and activations."""
        return "int8"

    needs_calibration: ClassVar[bool] = True

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        return list_heavy(read_model(self._prepare(artifact, workshop), self.name))

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        prepared, folder = self._prepare(artifact, workshop), workshop.make_folder()
        check_excluded(self.exclude, list_heavy(read_model(prepared, self.name)), self.name)
        rows = _CalibrationReader(workshop.calibration, self.max_calibration_rows, is_batched=artifact.signature.is_batched)
        with blame_library(self.name):
            quantization: Any = importlib.import_module("onnxruntime.quantization")
            quantization.quantize_static(
                str(prepared.path),
                str(folder / prepared.entry),
                rows,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=self.per_channel,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, _CALIBRATORS[self.ranges]),
                op_types_to_quantize=[*HEAVY, *_PASSING],
                nodes_to_exclude=list(self.exclude),
                extra_options={"MatMulConstBOnly": True},
            )
        return replace(prepared, folder=folder)

    def _prepare(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """Fold constants and normalisation into the weights, which must be final when they are rounded; name what is left."""
        model = read_model(artifact, self.name)
        if not any(node.op_type in HEAVY for node in model.graph.node):
            raise InputError("nothing_to_compress", method="int8", what=f"an operator of {', '.join(HEAVY)}")
        # The quantizer's shape inference imports it on the way, and without it says nothing that helps.
        import_extra("sympy", feature="Compression int8", extra="compress")
        with blame_library(self.name):
            model = _raise_opset(model)
        name_nodes(model)
        given, folder = write_model(model, artifact, workshop), workshop.make_folder()
        with blame_library(self.name):
            shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
            shapes.quant_pre_process(str(given.path), str(folder / given.entry), skip_symbolic_shape=True)
        prepared = read_model(replace(given, folder=folder), self.name)
        name_nodes(prepared)
        return write_model(prepared, given, workshop)


def _raise_opset(model: Any) -> Any:
    """Give the model in an opset in which channels have scales of their own."""
    if any(opset.domain in ("", "ai.onnx") and opset.version < _PER_CHANNEL_OPSET for opset in model.opset_import):
        converter: Any = importlib.import_module("onnx.version_converter")
        return converter.convert_version(model, _PER_CHANNEL_OPSET)
    return model


class _CalibrationReader:
    """Hands calibration rows to the quantizer, a chunk of rows of one shape at a time."""

    def __init__(self, rows: Rows, max_rows: int, *, is_batched: bool) -> None:
        picked = thin_rows(rows, max_rows)
        self._chunks: Iterator[Arrays] = iter(_join(picked) if is_batched else picked)

    def get_next(self) -> Arrays | None:
        return next(self._chunks, None)


def _join(rows: Rows) -> list[Arrays]:
    """Put neighbours of one shape into chunks."""
    chunks: list[Arrays] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = rows[start : start + _CHUNK_ROWS]
        joined = stack_answers(part)
        chunks += part if joined is None else [joined]
    return chunks
