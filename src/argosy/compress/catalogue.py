"""Which recipes suit a model: what is tried, in this order, when the best is looked for."""

from __future__ import annotations

import importlib.util
from collections import Counter

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.recipe import Recipe
from argosy.compress.retrain import LEAST_ROWS
from argosy.compress.steps.base import HEAVY, Step, Workshop
from argosy.compress.steps.distill import Distill, take_student
from argosy.compress.steps.dynamic import DynamicInt8
from argosy.compress.steps.half import Float16
from argosy.compress.steps.int8 import Int8
from argosy.compress.steps.merge_lora import MergeLora
from argosy.compress.steps.native import KerasInt8, TorchInt8
from argosy.compress.steps.nncf import NncfInt8, NncfWeights
from argosy.compress.steps.openvino import Bfloat16, OpenVino
from argosy.compress.steps.prune import Prune
from argosy.compress.steps.simplify import Simplify
from argosy.compress.steps.trees import FewerTrees, ShallowTrees
from argosy.compress.steps.weights import Weights
from argosy.compress.student import Student

__all__ = ["list_recipes"]


class _Looked(msgspec.Struct, frozen=True):
    """What the process in which files are read says of one."""

    kinds: dict[str, int]
    has_adapters: bool


_NATIVE = {"keras": KerasInt8, "torch": TorchInt8}
"""Runtime -> what its framework has for versions that have no ONNX form."""


def list_recipes(artifact: Artifact, workshop: Workshop) -> list[Recipe]:
    """List the recipes that may suit an artifact, the least invasive first.

    Args:
        artifact: the original.
        workshop: has the rows to calibrate with.

    Raises:
        InputError: `step_failed`, its file cannot be read.
    """
    if artifact.path.suffix != ".onnx":
        found: list[Recipe] = [(_NATIVE[artifact.runtime](),)] if artifact.runtime in _NATIVE else []
        if artifact.runtime == "openvino":
            found = _list_for_openvino(is_transformer=False)
        return found + _list_with_training(Counter(), workshop)
    kinds, has_adapters = _look(artifact, workshop)
    if kinds["TreeEnsembleClassifier"] or kinds["TreeEnsembleRegressor"]:
        return _list_for_trees()
    if artifact.options.get("device", "cpu") != "cpu":
        # On a GPU integers are no gain without TensorRT, and OpenVINO's recipes are for CPUs.
        return [(Simplify(),), (Float16(),), *_list_with_training(kinds, workshop)]
    is_transformer = kinds["Softmax"] > 0 and kinds["MatMul"] > 2 * kinds["Softmax"]
    recipes: list[Recipe] = [(Simplify(),), (Float16(),)]
    if _is_here("openvino"):
        recipes += _list_for_openvino(is_transformer=is_transformer)
    if any(kinds[kind] for kind in HEAVY):
        recipes.append((Int8(),))
        if kinds["Conv"]:
            recipes.append((Int8(ranges="percentile"),))
    if kinds["MatMul"] or kinds["Gemm"]:
        recipes += [(DynamicInt8(),)]
    if kinds["MatMul"]:
        recipes += [(Weights(),), (Weights(bits=4, block_size=32),)]
    recipes += _list_with_training(kinds, workshop)
    # What was trained beside a matrix is computed beside it, too, whatever else is done.
    return [(MergeLora(), *recipe) for recipe in recipes] if has_adapters else recipes


def _list_with_training(kinds: Counter[str], workshop: Workshop) -> list[Recipe]:
    """List what takes longest: a given student, or else the model with fewer channels, alone and in 8 bits."""
    whole: list[Recipe] = []
    if isinstance(workshop.student, Student):
        whole = [take_student((Distill(),), workshop.student)]
    elif any(kinds[kind] for kind in HEAVY) and _is_here("torch"):
        if len(workshop.training) < LEAST_ROWS:
            workshop.say(f"prune and distill are not tried: they need {LEAST_ROWS} training rows, not {len(workshop.training)}")
            return []
        whole = [(Prune(keep=0.5),), (Prune(),), (Distill(keep=0.1),)]
    after: list[Step] = [Int8(), NncfInt8()] if _is_here("nncf") else [Int8()]
    return whole + [(*recipe, step) for recipe in whole[:2] for step in after]


def _list_for_trees() -> list[Recipe]:
    fewer: list[Recipe] = [
        (FewerTrees(part=part, is_mean=is_mean),) for is_mean in (True, False) for part in (0.75, 0.5, 0.25, 0.1)
    ]
    shallow: list[Recipe] = [(ShallowTrees(depth=depth),) for depth in (12, 8, 6, 4)]
    return fewer + shallow + [(*one, *other) for one in fewer[:3] for other in shallow[:3]]


def _list_for_openvino(*, is_transformer: bool) -> list[Recipe]:
    recipes: list[Recipe] = [(OpenVino(half_weights=True),), (Bfloat16(),)]
    if _is_here("nncf"):
        recipes += [
            (NncfInt8(is_transformer=is_transformer),),
            (NncfInt8(is_transformer=is_transformer, compute="bfloat16"),),
            (NncfWeights(compute="bfloat16"),),
            (NncfWeights(bits=4, compute="bfloat16"),),
        ]
    return recipes


def _is_here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _look(artifact: Artifact, workshop: Workshop) -> tuple[Counter[str], bool]:
    """Count the operators of an ONNX file by kind, and say whether it has adapters to merge."""
    looked = workshop.process.ask("look", artifact, workshop.folder, _Looked, method="search", limit_s=workshop.step_s)
    return Counter(looked.kinds), looked.has_adapters
