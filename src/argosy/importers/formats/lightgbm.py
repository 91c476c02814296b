"""LightGBM's files (text), and its models inside of pickles."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.importers.formats.base import ForeignModel, Source, fit_to_specs, refuse
from argosy.importers.formats.trees import INPUT, Ensemble, Tree, label_rows, write_ensemble
from argosy.signature import Arrays, TensorSpec

__all__ = ["LightgbmModel", "load"]

lightgbm: Any = importlib.import_module("lightgbm")

_LINKS: Final = {
    "": "identity",
    **dict.fromkeys(
        ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"), "identity"
    ),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    "binary": "binary",
    "multiclass": "softmax",
    "multiclassova": "one_vs_all",
    "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "log1p_exp",
}
"""Of objectives; a model that was trained with a function of its user's names none."""


class LightgbmModel(ForeignModel):
    """A boosted ensemble of trees. See `base.ForeignModel`."""

    framework = "lightgbm"
    packages = ("lightgbm",)
    input_names = (INPUT,)

    def __init__(self, booster: Any, classes: NDArray[Any] | None = None) -> None:
        """Take a booster.

        Args:
            booster: LightGBM's.
            classes: labels of a classifier; None stands for 0, 1, 2 ...

        Raises:
            InputError: `bad_model_file`, it is no ensemble of trees that ONNX has words for.
        """
        self._booster = booster
        self._classes = classes
        self._ensemble = _read_ensemble(booster.dump_model())
        self.inputs = (TensorSpec(INPUT, "FP32", (-1, self._ensemble.num_features)),)

    def arrange(self, inputs: Arrays) -> Arrays:
        return fit_to_specs(inputs, self.inputs, keeps_doubles=True)

    def predict(self, inputs: Arrays) -> Arrays:
        return label_rows(self._ensemble, self._booster.predict(inputs[INPUT]), self._classes)

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        write_ensemble(self._ensemble, path, dtype=inputs[INPUT].dtype, classes=self._classes)


def load(source: Source) -> LightgbmModel:
    """Load a file."""
    return LightgbmModel(lightgbm.Booster(model_file=str(source.path)))


def _read_ensemble(description: dict[str, Any]) -> Ensemble:
    objective, *words = description.get("objective", "").split(" ")
    if objective not in _LINKS:
        raise _refuse(f"its objective {objective[:100]} is not known")
    options = dict(word.split(":", 1) for word in words if ":" in word)
    scale = float(options.get("sigmoid", 1.0)) if objective in ("binary", "multiclassova") else 1.0
    num_sums, trees = description["num_tree_per_iteration"], description["tree_info"]
    if description["average_output"]:
        scale *= num_sums / max(len(trees), 1)
    link = "signed_square" if "sqrt" in words else _LINKS[objective]
    reader = _Reader()
    return Ensemble(
        [reader.read(tree["tree_structure"], index % num_sums) for index, tree in enumerate(trees)],
        [0.0] * num_sums,
        description["max_feature_idx"] + 1,
        link,
        scale,
        categorical=tuple(sorted(reader.categorical)),
        cuts_to_zero=True,
        is_zero_missing="Zero" in reader.missing_types,
    )


class _Reader:
    """Reads trees, and remembers what the features are like."""

    def __init__(self) -> None:
        self.categorical: set[int] = set()
        self.missing_types: set[str] = set()

    def read(self, root: dict[str, Any], target: int) -> Tree:
        made = Tree(target)
        num_nodes = 1
        waiting = [(0, root)]
        while waiting:
            number, node = waiting.pop()
            if "split_feature" not in node:
                if node.get("leaf_coeff"):
                    raise _refuse("its leaves hold linear models (linear_tree), which ONNX has no word for")
                made.add_leaf(number, node["leaf_value"])
                continue
            children = (num_nodes, num_nodes + 1)
            num_nodes += 2
            self._add(made, number, node, children)
            waiting += zip(children, (node["left_child"], node["right_child"]), strict=True)
        return made

    def _add(self, tree: Tree, number: int, node: dict[str, Any], children: tuple[int, int]) -> None:
        feature, missing_type = node["split_feature"], node["missing_type"]
        if node["decision_type"] == "==":
            self.categorical.add(feature)
            members = [int(member) for member in node["threshold"].split("||")]
            tree.add_set_split(number, feature, members, children, missing=children[1])
            return
        self.missing_types.add(missing_type)
        if {"NaN", "Zero"} <= self.missing_types:
            raise _refuse("it takes zeros for missing values in some of its splits alone")
        # Where nothing was missing in training, what is missing counts as zero.
        is_left = node["default_left"] if missing_type != "None" else node["threshold"] >= 0.0
        tree.add_split(number, "BRANCH_LEQ", feature, node["threshold"], children, missing=children[0 if is_left else 1])


def _refuse(detail: str) -> InputError:
    return refuse("a LightGBM model", detail)
