"""Models of scikit-learn: pickles (which may hold those of XGBoost and LightGBM, too), and skops archives."""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.base import import_extra, name_kind
from argosy.importers.formats.base import ForeignModel, Source, fit_to_specs, refuse
from argosy.importers.formats.graph import ML_DOMAIN, ML_OPSET, OPSET, Output, finish_outputs
from argosy.importers.formats.sklearn_text import choose_text_options, list_words, takes_text
from argosy.importers.formats.sklearn_trees import draw_edges, end_at_infinity, floor_thresholds, widen_thresholds
from argosy.importers.formats.trees import INPUT
from argosy.signature import Arrays, TensorSpec, datatype_of

__all__ = ["SklearnModel", "load"]

_TYPES: Final = {
    "FP32": "FloatTensorType",
    "FP64": "DoubleTensorType",
    "INT64": "Int64TensorType",
    "BOOL": "BooleanTensorType",
    "BYTES": "StringTensorType",
}
"""Of what an estimator takes, as skl2onnx calls it."""

_TRUSTED: Final = ("sklearn.", "lightgbm.", "xgboost.", "collections.OrderedDict")
"""Beginnings of the names of types that an archive may ask for, beside those that skops itself trusts. They hold no code."""


_ROUNDING: Final = 2.0**-24
"""The largest relative difference between a number and its float32."""
_NUM_ROUNDINGS: Final = 3


class SklearnModel(ForeignModel):
    """A fitted estimator or pipeline. See `base.ForeignModel`.

    What predicts classes gives `label`, and `probabilities` if it has them; what finds outliers or clusters `label` and
    `scores`; what predicts or transforms numbers `output`. A pipeline that picks columns by name takes one input a column,
    one that begins with a vectorizer of texts one text a row. A sample of float64 is taken in float64.
    """

    framework = "scikit-learn"
    packages = ("scikit-learn", "skl2onnx")
    is_of_doubles = True

    def __init__(self, estimator: Any) -> None:
        """Take an estimator.

        Raises:
            InputError: `bad_model_file`, it was never fitted.
        """
        _check_fitted(estimator)
        names: list[str] = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
        num_features: object = getattr(estimator, "n_features_in_", None)
        self._estimator = estimator
        self._is_by_column = bool(names) and _picks_columns(estimator)
        self._is_of_text = takes_text(estimator)
        self.input_names = tuple(names) if self._is_by_column else (INPUT,)
        if self._is_of_text:
            self.inputs = (TensorSpec(INPUT, "BYTES", (-1,)),)
            self.words = list_words(estimator)
        elif isinstance(num_features, int) and not self._is_by_column:
            self.inputs = (TensorSpec(INPUT, "FP32", (-1, num_features)),)

    def arrange(self, inputs: Arrays) -> Arrays:
        if self._is_of_text:
            # One text a row, or a matrix with one column.
            texts = {name: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for name, array in inputs.items()}
            return fit_to_specs(texts, self.inputs)
        if not self._is_by_column:
            return self._arrange_matrix(inputs)
        # skl2onnx takes each column as a matrix.
        columns = {name: array.reshape(len(array), -1) if array.ndim else array for name, array in inputs.items()}
        for name, array in columns.items():
            if array.ndim != 2 or array.shape[1] != 1 or datatype_of(array.dtype) not in _TYPES:
                expected = f"one value a row, of {list_choices(_TYPES)}"
                raise InputError(
                    "bad_sample", detail=f"column {name!r} is {array.dtype} of shape {array.shape}, expected {expected}"
                )
        return columns

    def list_forms(self, inputs: Arrays) -> list[Arrays]:
        # What does not convert in doubles may in floats, and what loses too much in floats does not in doubles.
        other = {np.dtype(np.float64): np.float32, np.dtype(np.float32): np.float64}
        changed = {name: array.astype(other.get(array.dtype, array.dtype)) for name, array in inputs.items()}
        return [changed] if any(changed[name].dtype != array.dtype for name, array in inputs.items()) else []

    def draw_edges(self, inputs: Arrays) -> Arrays | None:
        edges = None if self._is_by_column or self._is_of_text else draw_edges(self._estimator, inputs[INPUT])
        return None if edges is None else {INPUT: edges}

    def draw_roundings(self) -> Iterator[Callable[[Arrays], Arrays]]:
        # ONNX holds them in float32: in the sum over a machine's support vectors, large terms of both signs leave little.
        for seed in range(_NUM_ROUNDINGS):
            rounded = copy.copy(self)
            rounded._estimator = copy.deepcopy(self._estimator)
            _round(rounded._estimator, np.random.default_rng(seed))
            yield rounded.predict

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            rows = self._join_columns(inputs)
            with warnings.catch_warnings():
                # A matrix has no feature names, which is said for each batch.
                warnings.simplefilter("ignore")
                return {name: _simplify(getattr(self._estimator, method)(rows)) for name, method in self._list_methods().items()}
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {error}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        skl2onnx: Any = importlib.import_module("skl2onnx")
        expected = self.predict(inputs)
        options = choose_text_options(self._estimator)
        is_double = any(array.dtype == np.float64 for array in inputs.values())
        try:
            with warnings.catch_warnings():
                # It reads attributes that scikit-learn means to drop.
                warnings.simplefilter("ignore")
                with floor_thresholds(self._estimator) if not is_double else end_at_infinity():
                    model = _convert(skl2onnx, self._estimator, inputs, options)
        except Exception as error:  # Each converter raises what it likes.
            raise ModelError("export_failed", detail=f"skl2onnx says: {str(error).strip() or type(error).__name__}") from error
        if is_double:
            widen_thresholds(model, self._estimator)
        sources = [output.name for output in model.graph.output]
        if len(sources) < len(expected):
            raise ModelError("export_failed", detail=f"skl2onnx gives {list_choices(sources)}, expected {list_choices(expected)}")
        outputs = {
            name: Output(source, array.dtype, array.shape[1:])
            for (name, array), source in zip(expected.items(), sources, strict=False)
        }
        finish_outputs(model, outputs)
        path.write_bytes(model.SerializeToString())

    def _list_methods(self) -> dict[str, str]:
        """Name the outputs, each with the method that gives it, in the order in which skl2onnx gives them."""
        base: Any = importlib.import_module("sklearn.base")
        estimator = self._estimator
        if hasattr(estimator, "predict_proba"):
            return {"label": "predict", "probabilities": "predict_proba"}
        if base.is_classifier(estimator):
            return {"label": "predict"}
        if base.is_outlier_detector(estimator):
            return {"label": "predict", "scores": "decision_function"}
        if base.is_clusterer(estimator) and hasattr(estimator, "predict") and hasattr(estimator, "transform"):
            return {"label": "predict", "scores": "transform"}
        method = next((method for method in ("predict", "transform") if hasattr(estimator, method)), None)
        if method is None:
            raise refuse("a model", f"its {type(estimator).__name__} predicts nothing")
        return {"label" if base.is_clusterer(estimator) and method == "predict" else "output": method}

    def _arrange_matrix(self, inputs: Arrays) -> Arrays:
        if self.inputs:
            return fit_to_specs(inputs, self.inputs, keeps_doubles=True)
        (array,) = inputs.values()
        if array.ndim != 2 or datatype_of(array.dtype) not in _TYPES:
            detail = f"they are {array.dtype} of shape {array.shape}, expected a matrix, a row each, of {list_choices(_TYPES)}"
            raise InputError("bad_sample", detail=detail)
        return inputs

    def _join_columns(self, inputs: Arrays) -> Any:
        if not self._is_by_column:
            rows = _to_text(inputs[INPUT])
            return rows.tolist() if self._is_of_text else rows
        pandas = import_extra("pandas", feature="A model that picks columns by name", extra="convert")
        columns = {name: _to_text(array).reshape(len(array)) for name, array in inputs.items()}
        return pandas.DataFrame(columns)


def load(source: Source) -> ForeignModel:
    """Load a pickle or a skops archive."""
    return wrap(_load_skops(source.path) if source.format == "skops" else importlib.import_module("joblib").load(source.path))


def wrap(model: Any) -> ForeignModel:
    """Take what a pickle held.

    Raises:
        InputError: `bad_model_file`, it is no model that is known here.
    """
    package = type(model).__module__.partition(".")[0]
    if package == "xgboost":
        from argosy.importers.formats.xgboost import XgboostModel, wrap_estimator

        return wrap_estimator(model) if hasattr(model, "get_booster") else XgboostModel(model)
    if package == "lightgbm":
        from argosy.importers.formats.lightgbm import LightgbmModel

        classes = getattr(model, "classes_", None)
        return LightgbmModel(getattr(model, "booster_", model), None if classes is None else _simplify(classes))
    if isinstance(model, importlib.import_module("sklearn.base").BaseEstimator):
        return SklearnModel(model)
    raise refuse("a model", f"it holds a {name_kind(model)}, expected a fitted estimator")


def _load_skops(path: Path) -> Any:
    io: Any = importlib.import_module("skops.io")
    named: list[str] = io.get_untrusted_types(file=path)
    if unknown := [name for name in named if not name.startswith(_TRUSTED)]:
        raise refuse("a skops archive", f"it names types that are not trusted: {list_choices(unknown)}")
    return io.load(path, trusted=named)


def _picks_columns(estimator: Any) -> bool:
    """Say whether an estimator, or the first step of a pipeline, picks columns."""
    steps = getattr(estimator, "steps", None)
    return hasattr(estimator, "transformers_") if steps is None else _picks_columns(steps[0][1])


def _check_fitted(estimator: Any) -> None:
    """See that an estimator was fitted, as it says itself: text vectorizers know of no number of features.

    Raises:
        InputError: `bad_model_file`.
    """
    validation: Any = importlib.import_module("sklearn.utils.validation")
    not_fitted: Any = importlib.import_module("sklearn.exceptions").NotFittedError
    try:
        validation.check_is_fitted(estimator)
    except not_fitted as error:
        raise refuse("a model", f"its {type(estimator).__name__} was never fitted") from error
    except TypeError as error:
        raise refuse("a model", f"its {type(estimator).__name__} cannot be fitted, and predicts nothing") from error


def _convert(skl2onnx: Any, estimator: Any, inputs: Arrays, text_options: dict[int, dict[str, object]]) -> Any:
    types: Any = importlib.import_module("skl2onnx.common.data_types")
    declared = [
        (name, getattr(types, _TYPES[datatype_of(array.dtype)])([None, *array.shape[1:]])) for name, array in inputs.items()
    ]
    opsets = {"": OPSET, ML_DOMAIN: ML_OPSET}
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    if hasattr(last, "flatten_transform"):
        # It changes nothing of what a vote predicts, and skl2onnx does not know the default.
        last.flatten_transform = False
    # Otherwise probabilities would be a list of dictionaries. Not everything has the option, nor can do without any.
    tried: list[dict[int, dict[str, object]]] = [{id(estimator): {"zipmap": False}}, {}, {id(last): {"raw_scores": True}}]
    for options in tried[:-1]:
        with contextlib.suppress(NameError):
            return skl2onnx.convert_sklearn(
                estimator, initial_types=declared, target_opset=opsets, options=options | text_options
            )
    return skl2onnx.convert_sklearn(estimator, initial_types=declared, target_opset=opsets, options=tried[-1] | text_options)


def _round(estimator: Any, generator: np.random.Generator) -> None:
    """Move the float64 numbers of an estimator, in place, to neighbours that float32 would not tell from them."""
    left: list[Any] = [estimator]
    seen: set[int] = set()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, np.ndarray):
            array = cast("NDArray[Any]", part)
            if array.dtype == np.float64 and array.flags.writeable:
                array *= 1 + _ROUNDING * generator.choice([-1.0, 1.0], array.shape)
        else:
            left.extend(_list_parts(part))


def _list_parts(part: Any) -> Iterable[Any]:
    """Give what an estimator or a container of Python holds."""
    if isinstance(part, importlib.import_module("sklearn.base").BaseEstimator):
        return cast("dict[str, Any]", part.__dict__).values()
    if isinstance(part, dict):
        return cast("dict[Any, Any]", part).values()
    return cast("Iterable[Any]", part) if isinstance(part, list | tuple) else ()


def _simplify(answer: Any) -> NDArray[Any]:
    """Give an answer in the types that are served: float32, int64, or text."""
    dense = answer.toarray() if hasattr(answer, "toarray") else answer
    if isinstance(dense, list):
        raise refuse("a model", "it gives a list of answers, one for each of several targets")
    array: NDArray[Any] = np.asarray(dense)
    if array.dtype.kind in "OUS":
        out = np.empty(array.shape, object)
        out.ravel()[:] = [str(item).encode() for item in array.ravel().tolist()]
        return out
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _to_text(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    out = np.empty(array.shape, object)
    out.ravel()[:] = [item.decode() for item in array.ravel().tolist()]
    return out
