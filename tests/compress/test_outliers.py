"""Large outliers of activations: what int8 ruins is caught by the guard, and the sensitive layers stay in float by themselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from argosy.bench.artifact import Artifact
from argosy.compress import Guard, compress
from argosy.compress.jury import Jury
from argosy.compress.kind import Meaning
from argosy.compress.layers import list_layers, measure_sensitivity
from argosy.compress.recipe import Recipe
from argosy.compress.sample import Sample
from argosy.compress.steps.base import Step, Workshop, read_model, write_model
from argosy.compress.steps.int8 import Int8
from argosy.compress.steps.nncf import NncfInt8
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store
from tests.compress.artifacts import answer
from tests.compress.outliers import NETWORKS

find = importlib.import_module("argosy.compress.find")
slow = pytest.mark.slow

CASES = [
    pytest.param("layers", "channel", {"layer2"}, id="layers-channel", marks=slow),
    pytest.param("layers", "layer", {"layer2"}, id="layers-layer", marks=slow),
    pytest.param("convolutions", "channel", {"layer1", "layer2"}, id="convolutions-channel", marks=slow),
    pytest.param("convolutions", "output", {"layer3"}, id="convolutions-output", marks=slow),
    pytest.param("block", "channel", {"layer_down"}, id="block-channel", marks=slow),
    pytest.param("block", "layer", {"layer_down"}, id="block-layer"),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_QUICK_S", 0.02)
    monkeypatch.setattr(find, "_CAREFUL_S", 0.02)


def measure_error(got: Any, expected: Any) -> float:
    """Relative root mean square, of each of the last or of the channels' axis by itself; the worst."""
    axes = (0, 2, 3) if expected.ndim == 4 else tuple(range(expected.ndim - 1))
    return float(np.sqrt(np.mean(np.square(got - expected), axis=axes) / np.var(expected, axis=axes)).max())


@pytest.mark.parametrize(("network", "where", "sensitive"), [case.values for case in CASES], ids=[case.id for case in CASES])
def test_layers_left_out_of_int8_save_what_outliers_ruin(network: str, where: str, sensitive: set[str], tmp_path: Path) -> None:
    artifact, rows = NETWORKS[network](tmp_path / "network", where)
    workshop = Workshop(tmp_path / "made", [{"x": row[None]} for row in rows])
    expected = answer(artifact, x=rows)["y"]
    assert measure_error(answer(Int8().apply(artifact, workshop), x=rows)["y"], expected) > 0.5
    made = Int8(exclude=tuple(sorted(sensitive))).apply(artifact, workshop)
    assert measure_error(answer(made, x=rows)["y"], expected) < 0.05


class Moved(Step, frozen=True, kw_only=True):
    """Answers that are far from the original's, as a pruned network's are."""

    name: ClassVar[str] = "moved"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        model = read_model(artifact, self.name)
        last = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[1])
        last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * np.float32(2), last.name))
        return write_model(model, artifact, workshop)


def test_layers_of_a_network_that_was_changed_before_are_told_apart(tmp_path: Path) -> None:
    artifact, rows = NETWORKS["layers"](tmp_path / "network", "layer")
    sample = Sample([{"x": row[None]} for row in rows])
    workshop = Workshop(tmp_path / "made", sample.rows)
    with Jury(artifact, Meaning("unknown", "it is a test"), Guard(), sample, tmp_path / "jury") as jury:
        layers = list_layers((Moved(), Int8()), artifact, workshop)
        groups = [(), *((layer,) for layer in layers)]
        found = measure_sensitivity((Moved(), Int8()), groups, jury, workshop, float("inf"))
    assert found[0].distance == 0.0
    worst = max(found, key=lambda one: one.distance)
    assert worst.layers == ("layer2",) and min(one.distance for one in found[1:]) < 0.01 * worst.distance


@pytest.mark.parametrize("network", ["layers", "block"])
def test_outlier_in_an_answer_is_not_rounded(network: str, tmp_path: Path) -> None:
    artifact, rows = NETWORKS[network](tmp_path / "network", "output")
    made = Int8().apply(artifact, Workshop(tmp_path / "made", [{"x": row[None]} for row in rows]))
    assert measure_error(answer(made, x=rows)["y"], answer(artifact, x=rows)["y"]) < 0.1


@pytest.mark.parametrize(("network", "where", "sensitive"), CASES)
def test_sensitive_layers_stay_in_float_within_the_guard(
    network: str,
    where: str,
    sensitive: set[str],
    quick: None,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(find, "list_recipes", lambda artifact, workshop: [(Int8(),)])
    artifact, rows = NETWORKS[network](tmp_path / "network", where)
    version = import_onnx(store, artifact.path, "ruined")
    result = compress(version, objective="size", data=rows, store=store)
    assert result.tried[0].recipe == (Int8(),) and "loses" in result.tried[0].problem
    (step,) = result.recipe
    assert isinstance(step, Int8) and sensitive <= set(step.exclude)
    assert result.score.loss < 0.01 and result.after.size_bytes < 0.97 * result.before.size_bytes
    assert result.version is not None
    ranked = [layer for one in result.sensitivity for layer in one.layers]
    assert sensitive & set(ranked[:2])


@slow
@pytest.mark.parametrize("search", ["gradient", "random", "genetic", "tpe"])
def test_every_method_finds_a_recipe_within_the_guard_for_a_ruined_network(
    search: str, quick: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    recipes: list[Recipe] = [(Int8(),), (NncfInt8(),)]
    monkeypatch.setattr(find, "list_recipes", lambda artifact, workshop: recipes)
    artifact, rows = NETWORKS["layers"](tmp_path / "network", "channel")
    version = import_onnx(store, artifact.path, "ruined")
    budget = find.Budget(trials=14)
    result = compress(version, objective="size", search=search, data=rows, budget=budget, store=store)
    assert result.score.loss < 0.01 and result.after.size_bytes < 0.97 * result.before.size_bytes
    assert result.search == search and len(result.tried) <= 14
    assert [one.recipe for one in result.tried[:2]] == recipes
