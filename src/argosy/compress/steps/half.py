"""Weights in float16: half the file; ONNX Runtime's CPU computes in float32 all the same, and converts."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model

__all__ = ["Float16"]


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
            halved = converter.convert_float_to_float16(model, keep_io_types=True)
        return write_model(halved, artifact, workshop)
