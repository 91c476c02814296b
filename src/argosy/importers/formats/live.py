"""A live model of a training framework with one input and one output, as what a file gave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework, framework_of
from argosy.importers.formats.base import ForeignModel, Source, refuse_weights
from argosy.importers.formats.code import refuse_model
from argosy.signature import Arrays, TensorSpec

__all__ = ["LiveModel", "load_weights", "refuse_names"]

_OUTPUT: Final = "output"


class LiveModel(ForeignModel):
    """A model as its framework's object. See `base.ForeignModel`."""

    def __init__(self, framework: Framework, model: Any, inputs: tuple[TensorSpec, ...] = (), output_name: str = _OUTPUT) -> None:
        """Take a model.

        Args:
            framework: its.
            model: with one input and one output.
            inputs: what is known of its input; () if nothing is.
            output_name: what its output is called.
        """
        self.framework = framework.name
        self.packages = framework.packages
        self.runtime = framework.name
        self.inputs = inputs
        self.input_names = (inputs[0].name,) if inputs else ("input",)
        self._framework, self._model, self._output_name = framework, model, output_name

    def arrange(self, inputs: Arrays) -> Arrays:
        if self.inputs:
            return super().arrange(inputs)
        (name,) = self.input_names
        array = inputs[name]
        return {name: array.astype(self._framework.float_dtype(self._model)) if array.dtype.kind == "f" else array}

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            return {self._output_name: np.ascontiguousarray(self._framework.predict(self._model, *inputs.values()))}
        except InputError as error:
            raise InputError("bad_sample", detail=error.fields.get("detail", error.message)) from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        ((name, rows),) = inputs.items()
        names = {"input_name": name, "output_name": self._output_name}
        self._framework.export_onnx(self._model, rows, path, **names, free=self.free_axes[name])

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        ((name, rows),) = inputs.items()
        return self._framework.save_native(self._model, rows, folder, self.free_axes[name]).entry


def load_weights(source: Source, model: Any, weights: Arrays) -> LiveModel:
    """Put weights into a model that the user's code built: all that the file has, into all that the model has.

    Raises:
        InputError: `weights_differ`, in names, shapes or types; `bad_code`, it is a model of no framework.
    """
    try:
        framework = framework_of(model)
    except InputError as error:
        raise refuse_model(source, model, "a model of a framework") from error
    known = framework.get_weights(model)
    if known.keys() != weights.keys():
        raise refuse_names(known.keys() - weights.keys(), weights.keys() - known.keys())
    for name, array in known.items():
        if array.shape != weights[name].shape:
            raise refuse_weights(f"{name} has shape {weights[name].shape}, in the model {array.shape}")
    try:
        framework.set_weights(model, weights)
    except InputError as error:
        raise refuse_weights(error.message) from error
    return LiveModel(framework, model)


def refuse_names(missing: Iterable[str], unknown: Iterable[str]) -> InputError:
    """Make the error of weights whose names are not those of the model that the user's code builds."""
    return refuse_weights(f"missing {list_choices(missing, 5)}; unknown {list_choices(unknown, 5)}")
