"""Quantisation by NNCF for the runtime OpenVINO: weights and activations in int8, or weights alone in 8 or 4 bits."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from argosy.bench.artifact import Artifact
from argosy.compress.sample import thin_rows
from argosy.compress.steps.base import LayerStep, Workshop, blame_library, check_excluded, join_alike
from argosy.compress.steps.openvino import read_ir, write_ir
from argosy.errors import InputError
from argosy.frameworks.base import import_extra

__all__ = ["NncfInt8", "NncfWeights"]


def _import_nncf(step: str) -> Any:
    return import_extra("nncf", feature=f"Compression {step}", extra="compress")


_LAYERS = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul")


def _list_layers(model: Any) -> list[str]:
    """Names of OpenVINO's operators with weights: those that multiply by a constant, whatever it is converted by first."""
    return [
        operator.get_friendly_name()
        for operator in model.get_ordered_ops()
        if operator.get_type_name() in _LAYERS and any(_is_constant(source.get_node()) for source in operator.input_values())
    ]


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Reshape", "Transpose", "Multiply") and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


class NncfInt8(LayerStep, frozen=True, kw_only=True):
    """Weights and activations in int8, with scales fixed beforehand from calibration rows, by NNCF's post-training quantisation.

    Source: github.com/openvinotoolkit/nncf.
    """

    preset: Literal["performance", "mixed"] = "mixed"
    """`mixed` has zero points for activations, `performance` has none."""
    is_transformer: bool = False
    """Leave out what suffers in transformers, and smooth outliers of activations into the weights."""
    max_calibration_rows: int = 300
    compute: Literal["float32", "bfloat16"] = "float32"
    """In which what is left is computed."""

    name: ClassVar[str] = "nncf-int8"

    @property
    def precision(self) -> str:
        """Of weights and activations."""
        return "int8"

    needs_calibration: ClassVar[bool] = True

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        return _list_layers(read_ir(artifact, self.name))

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        nncf, model = _import_nncf(self.name), read_ir(artifact, self.name)
        check_excluded(self.exclude, _list_layers(model), self.name)
        picked = thin_rows(workshop.calibration, self.max_calibration_rows)
        # Of each run NNCF takes the smallest and the largest value, and of these the means: of runs of one row they cut off much.
        runs = join_alike(picked) if artifact.signature.is_batched else list(picked)
        with blame_library(self.name):
            quantized = nncf.quantize(
                model,
                nncf.Dataset(runs),
                preset=nncf.QuantizationPreset(self.preset),
                model_type=nncf.ModelType.TRANSFORMER if self.is_transformer else None,
                subset_size=len(runs),
                ignored_scope=nncf.IgnoredScope(names=list(self.exclude), validate=False) if self.exclude else None,
            )
        if not any(operator.get_type_name() == "FakeQuantize" for operator in quantized.get_ops()):
            raise InputError("nothing_to_compress", method=self.name, what="an operator with weights that NNCF quantises")
        return write_ir(quantized, artifact, workshop, self.name, is_half=True, precision=self.compute)


class NncfWeights(LayerStep, frozen=True, kw_only=True):
    """Weights alone in 8 or 4 bits, activations as they are. No calibration."""

    bits: Literal[4, 8] = 8
    group_size: int = 64
    """Numbers that share a scale, with 4 bits; with 8 it is one a channel."""
    ratio: float = 1.0
    """Part of the weights that is in 4 bits; the rest, which would suffer most, in 8."""
    compute: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio <= 1.0:
            raise InputError("bad_option", option="nncf-weights.ratio", got=self.ratio, expected="above 0, and at most 1")

    name: ClassVar[str] = "nncf-weights"

    @property
    def precision(self) -> str:
        """Of the weights."""
        return f"int{self.bits}"

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """See `LayerStep`."""
        return _list_layers(read_ir(artifact, self.name))

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        nncf, model = _import_nncf(self.name), read_ir(artifact, self.name)
        check_excluded(self.exclude, _list_layers(model), self.name)
        options: dict[str, Any] = {}
        if self.bits == 4:
            # Where the group does not divide a layer's inputs it is halved until it does; what no group divides gets 8 bits.
            fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
            options = {"ratio": self.ratio, "group_size": self.group_size, "advanced_parameters": fallback}
        mode = nncf.CompressWeightsMode.INT8_ASYM if self.bits == 8 else nncf.CompressWeightsMode.INT4_ASYM
        if self.exclude:
            options["ignored_scope"] = nncf.IgnoredScope(names=list(self.exclude), validate=False)
        with blame_library(self.name):
            compressed = nncf.compress_weights(model, mode=mode, **options)
        return write_ir(compressed, artifact, workshop, self.name, is_half=True, precision=self.compute)
