"""For the runtime OpenVINO: the file as its IR, computed in float32 or in bfloat16."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop, blame_library
from argosy.errors import InputError
from argosy.frameworks.base import import_extra

__all__ = ["Bfloat16", "OpenVino", "read_ir", "write_ir"]


def read_ir(artifact: Artifact, step: str) -> Any:
    """Read what OpenVINO can load: an ONNX file, or its own.

    Raises:
        InputError: `step_unfit`, `missing_extra`, `step_failed`.
    """
    if artifact.runtime not in ("onnx", "openvino"):
        raise InputError("step_unfit", method=step, runtime=artifact.runtime, expected="an ONNX file or OpenVINO's own")
    import_extra("openvino", feature=f"Compression {step}", extra="openvino")
    openvino: Any = importlib.import_module("openvino")
    with blame_library(step):
        return openvino.Core().read_model(str(artifact.path))


def write_ir(model: Any, artifact: Artifact, workshop: Workshop, step: str, *, is_half: bool, **options: Any) -> Artifact:
    """Write OpenVINO's IR, and give it as an artifact for that runtime.

    Args:
        model: of OpenVINO.
        artifact: that it was made of.
        workshop: has the folder.
        step: for messages.
        is_half: write weights in float16, and compute as before.
        options: of the runtime, beside those that the artifact has.
    """
    openvino: Any = importlib.import_module("openvino")
    folder, entry = workshop.make_folder(), f"{Path(artifact.entry).stem}.xml"
    signature = artifact.signature
    with blame_library(step):
        openvino.save_model(model, str(folder / entry), compress_to_fp16=is_half)
    names = {"inputs": [spec.name for spec in signature.inputs], "outputs": [spec.name for spec in signature.outputs]}
    return replace(artifact, folder=folder, entry=entry, runtime="openvino", options={**artifact.options, **names, **options})


class OpenVino(Step, frozen=True, kw_only=True):
    """The same model for the runtime OpenVINO, whose kernels suit some models and processors better; float32."""

    half_weights: bool = False
    """Write weights in float16: half the file. They are widened when the model is loaded."""

    name: ClassVar[str] = "openvino"

    @property
    def precision(self) -> str:
        """Of the weights in the file."""
        return "float16" if self.half_weights else ""

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_ir(artifact, self.name)
        return write_ir(model, artifact, workshop, self.name, is_half=self.half_weights)


class Bfloat16(Step, frozen=True, kw_only=True):
    """Matrix products and convolutions in bfloat16 by OpenVINO, on processors that have it; weights in float16 on disk.

    What goes in and comes out stays as it was.
    """

    name: ClassVar[str] = "bfloat16"

    @property
    def precision(self) -> str:
        """What is computed in."""
        return "bfloat16"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        model = read_ir(artifact, self.name)
        return write_ir(model, artifact, workshop, self.name, is_half=True, precision="bfloat16")
