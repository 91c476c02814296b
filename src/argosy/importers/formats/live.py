"""A live model of a training framework, as what a file gave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework, framework_of
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, name_tree, pack, unpack
from argosy.importers.formats.base import ForeignModel, Source, refuse_weights
from argosy.importers.formats.code import refuse_model
from argosy.signature import Arrays, TensorSpec

__all__ = ["LiveModel", "load_weights", "refuse_names"]

_INPUT: Final = "input"
_OUTPUT: Final = "output"


class LiveModel(ForeignModel):
    """A model as its framework's object. See `base.ForeignModel`."""

    def __init__(self, framework: Framework, model: Any, inputs: tuple[TensorSpec, ...] = ()) -> None:
        """Take a model.

        Args:
            framework: its.
            model: of any inputs and outputs of rows.
            inputs: what is known of its inputs; () if nothing is.
        """
        self.framework = framework.name
        self.packages = framework.packages
        self.runtime = framework.name
        self.inputs = inputs
        self.input_names = tuple(spec.name for spec in inputs) or (_INPUT,)
        self._framework, self._model = framework, model
        self._outputs: Tree = None

    def take_names(self, names: Sequence[str]) -> tuple[str, ...]:
        if self.inputs:
            return self.input_names
        if [*names] == [_INPUT]:
            return (_INPUT,)
        known = self._framework.list_arguments(self._model)
        if not {*names} <= {*known}:
            detail = f"it has {list_choices(names)}, expected {_INPUT}, or names of the model's arguments: {list_choices(known)}"
            raise InputError("bad_sample", detail=detail)
        # In the order in which the model takes them.
        self.input_names = tuple(name for name in known if name in names)
        return self.input_names

    def arrange(self, inputs: Arrays) -> Arrays:
        if self.inputs:
            return super().arrange(inputs)
        dtype = self._framework.float_dtype(self._model)
        return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in inputs.items()}

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            outputs = self._framework.predict(self._model, pack(inputs, self._name_inputs()))
            if self._outputs is None:
                self._outputs = name_tree(outputs, "output_name", _OUTPUT)
            return {name: np.ascontiguousarray(array) for name, array in unpack(outputs, self._outputs).items()}
        except InputError as error:
            raise InputError("bad_sample", detail=error.fields.get("detail", error.message)) from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        self._framework.export_onnx(self._model, inputs, path, self._describe(inputs))

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        return self._framework.save_native(self._model, inputs, folder, self._describe(inputs)).entry

    def _name_inputs(self) -> Tree:
        """Give the form in which the model is called: with one tensor, or several by the names of its arguments."""
        return self.input_names[0] if len(self.input_names) == 1 else {name: name for name in self.input_names}

    def _describe(self, inputs: Arrays) -> Ports:
        if self._outputs is None:
            self.predict(inputs)
        return Ports(inputs=self._name_inputs(), outputs=self._outputs, free=self.free_axes)


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
