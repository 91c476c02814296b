"""XGBoost's files (.json, .ubj), and its models inside of pickles."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.importers.formats.base import ForeignModel, Source, refuse
from argosy.importers.formats.trees import INPUT, Ensemble, Tree, label_rows, write_ensemble
from argosy.signature import Arrays, TensorSpec

__all__ = ["XgboostModel", "load", "wrap_estimator"]

xgboost: Any = importlib.import_module("xgboost")

_LINKS: Final = {
    "binary:logistic": "binary",
    "binary:logitraw": "identity",
    "binary:hinge": "step",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:logistic": "sigmoid",
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), "exp"),
}
_IDENTITY_PREFIXES: Final = ("reg:", "rank:")
"""Of the objectives that are not among the links."""
_PROBABILITY: Final = ("binary:logistic", "reg:logistic")
"""Objectives whose `base_score` is kept as a probability; where the link is exp, it is kept as an answer."""


class XgboostModel(ForeignModel):
    """A boosted ensemble of trees. See `base.ForeignModel`."""

    framework = "xgboost"
    packages = ("xgboost",)
    input_names = (INPUT,)

    def __init__(self, booster: Any, *, num_rounds: int | None = None, missing: float = math.nan) -> None:
        """Take a booster.

        Args:
            booster: XGBoost's.
            num_rounds: of which trees are used; None stands for all, or for what the file's estimator uses.
            missing: what stands for a missing value, beside NaN.

        Raises:
            InputError: `bad_model_file`, it is no ensemble of trees that ONNX has words for.
        """
        description = json.loads(booster.save_raw("json"))["learner"]
        attributes = description["attributes"]
        if num_rounds is None and "best_iteration" in attributes and "scikit_learn" in attributes:
            # So answers the estimator that wrote the file; the bare booster would use all trees.
            num_rounds = int(attributes["best_iteration"]) + 1
        if num_rounds is not None:
            booster = booster[:num_rounds]
            description = json.loads(booster.save_raw("json"))["learner"]
        if description["objective"]["name"] == "multi:softmax":
            # Its answers would be labels alone.
            booster.set_param({"objective": "multi:softprob"})
        self._booster = booster
        self._missing = missing
        self._ensemble = _read_ensemble(description)._replace(missing=missing)
        self.inputs = (TensorSpec(INPUT, "FP32", (-1, self._ensemble.num_features)),)

    def predict(self, inputs: Arrays) -> Arrays:
        types = self._booster.feature_types
        is_categorical = types is not None
        data = xgboost.DMatrix(inputs[INPUT], missing=self._missing, feature_types=types, enable_categorical=is_categorical)
        return label_rows(self._ensemble, self._booster.predict(data, validate_features=False), None)

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        write_ensemble(self._ensemble, path, dtype=np.dtype(np.float32))


def wrap_estimator(model: Any) -> XgboostModel:
    """Take an estimator of XGBoost with what it knows beside its trees: where training was stopped, and what is missing."""
    # Its property raises where training was not stopped early.
    best: int | None = getattr(model, "best_iteration", None)
    missing: float | None = getattr(model, "missing", None)
    return XgboostModel(
        model.get_booster(),
        num_rounds=None if best is None else best + 1,
        missing=math.nan if missing is None else float(missing),
    )


def load(source: Source) -> XgboostModel:
    """Load a file."""
    # As content, of which XGBoost sees the kind; of a file it believes the suffix.
    return XgboostModel(xgboost.Booster(model_file=bytearray(source.path.read_bytes())))


def _read_ensemble(learner: dict[str, Any]) -> Ensemble:
    booster, objective = learner["gradient_booster"], learner["objective"]["name"]
    if booster["name"] not in ("gbtree", "dart"):
        raise _refuse(f"its booster is {booster['name']}, expected trees")
    if objective not in _LINKS and not objective.startswith(_IDENTITY_PREFIXES):
        raise _refuse(f"its objective {objective} is not known")
    link = _LINKS.get(objective, "identity")
    model = booster.get("gbtree", booster)["model"]
    drops: list[float] = booster.get("weight_drop", [1.0] * len(model["trees"]))
    trees = [_read_tree(tree, target, drop) for tree, target, drop in zip(model["trees"], model["tree_info"], drops, strict=True)]
    parameters = learner["learner_model_param"]
    num_sums = max(int(parameters["num_class"]), int(parameters.get("num_target", 1)), 1)
    base = np.array(json.loads(parameters["base_score"]), np.float64).reshape(-1)
    sums = _undo_link(np.broadcast_to(base, num_sums), objective, link)
    categorical = tuple(number for number, kind in enumerate(learner["feature_types"]) if kind == "c")
    return Ensemble(trees, sums.tolist(), int(parameters["num_feature"]), link, categorical=categorical)


def _undo_link(base: NDArray[Any], objective: str, link: str) -> NDArray[Any]:
    if objective in _PROBABILITY:
        return -np.log(1 / base - 1)
    return np.log(base) if link == "exp" else base


def _read_tree(tree: dict[str, Any], target: int, drop: float) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise _refuse("its leaves are vectors (multi_output_tree); train with one tree for each output")
    sets = {
        node: tree["categories"][start : start + size]
        for node, start, size in zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    }
    # The text of a number is the shortest that tells it among those of 32 bits.
    values: list[float] = np.array(tree["split_conditions"], np.float32).tolist()
    made = Tree(target)
    for number, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"], strict=True)):
        value, missing = values[number], left if tree["default_left"][number] else right
        if left < 0:
            made.add_leaf(number, value * drop)
        elif number in sets:
            # Members go right.
            made.add_set_split(number, tree["split_indices"][number], sets[number], (right, left), missing)
        else:
            made.add_split(number, "BRANCH_LT", tree["split_indices"][number], value, (left, right), missing)
    return made


def _refuse(detail: str) -> InputError:
    return refuse("an XGBoost model", detail)
