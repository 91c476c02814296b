"""Static int8 quantisation by ONNX Runtime's quantizer. The card is `int8.md`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal, NamedTuple

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import (
    HEAVY,
    LayerStep,
    Workshop,
    blame_library,
    check_excluded,
    join_alike,
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

_WIDE_OUTPUTS: Final = ("Gemm", "MatMul")
"""Operators whose integer kernels give float32: what comes out is rounded only where another one takes it as int8. So a layer
that is left out gets numbers that were never rounded, and sums, normalisation and softmax do, too. Convolutions have no such
kernel: theirs is rounded, or they run in float32."""

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
    changes the distribution least (`entropy`), or at the 99.999th percentile."""
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
        model = read_model(prepared, self.name)
        layers = list_heavy(model)
        check_excluded(self.exclude, layers, self.name)
        plan = _plan(model, set(layers) - set(self.exclude))
        rows = _CalibrationReader(workshop.calibration, self.max_calibration_rows, is_batched=artifact.signature.is_batched)
        with blame_library(self.name):
            quantization: Any = importlib.import_module("onnxruntime.quantization")
            quantization.quantize_static(
                str(prepared.path),
                str(folder / prepared.entry),
                rows,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=self.per_channel,
                # Unsigned: ONNX Runtime's kernels on x86 take no other, and turn only some signed ones into them.
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, _CALIBRATORS[self.ranges]),
                op_types_to_quantize=[*HEAVY, *_PASSING],
                nodes_to_exclude=[
                    node.name
                    for node in model.graph.node
                    if node.op_type in (*HEAVY, *_PASSING) and node.name not in plan.integer
                ],
                extra_options={
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": list(_WIDE_OUTPUTS),
                    # A chunk at a time: what collects histograms takes no two of different shapes, and would hold them all.
                    "CalibStridedMinMax": 1,
                },
            )
        made = replace(prepared, folder=folder)
        whole = read_model(made, self.name)
        _take_unrounded(whole, {node.name for node in model.graph.node} - set(plan.integer), plan.rounded)
        return write_model(whole, made, workshop)

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


class _Plan(NamedTuple):
    """What becomes of a graph."""

    integer: set[str]
    """Names of operators that work on int8."""
    rounded: set[str]
    """Tensors that come out of such an operator as int8."""


def _plan(model: Any, layers: set[str]) -> _Plan:
    """Choose the operators that work on int8: some layers, and what passes int8 on between them.

    Products of two activations are not among them, as they lose more than they gain; the quantizer's own option for that misses
    those whose shape is computed.
    """
    # Going down, what is rounded already; going up, what an integer kernel takes.
    rounded, wanted = set[str](), set[str]()
    for node in model.graph.node:
        is_rounding = node.name in layers and node.op_type not in _WIDE_OUTPUTS
        if is_rounding or (node.op_type in _PASSING and node.input[0] in rounded):
            rounded.update(node.output)
    for node in reversed(model.graph.node):
        if node.name in layers or (node.op_type in _PASSING and wanted & set(node.output)):
            wanted.add(node.input[0])
    passed = rounded | wanted
    passing = {node.name for node in model.graph.node if node.op_type in _PASSING and passed & set(node.output)}
    return _Plan(layers | passing, rounded)


def _take_unrounded(model: Any, floats: set[str], rounded: set[str]) -> None:
    """Give float32 operators, such as residual sums, tensors as they were before they were rounded for a layer.

    Args:
        model: quantised.
        floats: names of the operators that stayed float32.
        rounded: tensors of which there is nothing but the rounded one.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    originals: dict[str, str] = {}
    integers = set[str]()
    for node in model.graph.node:
        rounding = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounding is not None and rounding.op_type == "QuantizeLinear" and rounding.input[0] not in rounded:
            originals[node.output[0]] = rounding.input[0]
        elif node.op_type == "DequantizeLinear":
            integers.update(node.output)
    for node in model.graph.node:
        # The sum of two that are rounded is one of integers at run time.
        if node.name in floats and not integers & set(node.input):
            for place, name in enumerate(node.input):
                node.input[place] = originals.get(name, name)


class _CalibrationReader:
    """Hands calibration rows to the quantizer, a chunk of rows of one shape at a time; its methods are what that calls."""

    def __init__(self, rows: Rows, max_rows: int, *, is_batched: bool) -> None:
        picked = thin_rows(rows, max_rows)
        self._chunks: list[Arrays] = join_alike(picked) if is_batched else list(picked)
        self._left: Iterator[Arrays] = iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._chunks[start_index:end_index])

    def get_next(self) -> Arrays | None:
        return next(self._left, None)
