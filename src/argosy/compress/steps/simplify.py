"""The same graph with fewer operators: constants folded, shapes resolved, what does nothing removed, by onnxslim."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model
from argosy.frameworks.base import import_extra

__all__ = ["Simplify"]


class Simplify(Step, frozen=True, kw_only=True):
    """Fold constants and remove operators that do nothing. Answers stay what they are, but for rounding."""

    name: ClassVar[str] = "simplify"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        import_extra("onnxslim", feature="Compression simplify", extra="compress")
        onnxslim: Any = importlib.import_module("onnxslim")
        model = read_model(artifact, self.name)
        with blame_library(self.name):
            slimmed = onnxslim.slim(model)
        return write_model(slimmed, artifact, workshop)
