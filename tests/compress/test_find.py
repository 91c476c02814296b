"""The search: the best within the guard is chosen and published, or nothing is, and how near each came is told."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from argosy.bench.artifact import Artifact
from argosy.compress import Budget, Guard, compress
from argosy.compress.steps.base import Step, Workshop, blame_library, read_model, write_model
from argosy.errors import ConflictError, FaultError, InputError
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store
from tests.compress.artifacts import answer, make_perceptron

find = importlib.import_module("argosy.compress.find")
ROWS = np.random.default_rng(2).normal(size=(240, 16)).astype(np.float32)
PADDING = 200_000


class Made(Step, frozen=True, kw_only=True):
    """A file of a given size whose weights are a given amount off."""

    name: ClassVar[str] = "made"

    size: float = 1.0
    noise: float = 0.0
    problem: str = ""

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        model = read_model(artifact, self.name)
        with blame_library(self.name):
            if self.problem == "raises":
                raise KeyError("no such node")
        random = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            array = (array * (1 + self.noise * random.normal(size=array.shape))).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        if self.problem == "shape":
            model.graph.node[-1].op_type = "Gemm"
            model.graph.node[-1].input[:] = ["r", "second", "missing"]
        del model.metadata_props[:]
        pad(model, self.size)
        return write_model(model, artifact, workshop)


def pad(model: Any, size: float) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "padding", "x" * int(size * PADDING)


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Any:
    artifact = make_perceptron(tmp_path / "perceptron")
    model = onnx.load(str(artifact.path))
    pad(model, 1.0)
    onnx.save(model, str(artifact.path))
    return import_onnx(store, artifact.path, "small"), artifact


@pytest.fixture
def search(store: Store, parent: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Search among given steps, with hardly any time for timing."""
    monkeypatch.setattr(find, "_QUICK_S", 0.02)
    monkeypatch.setattr(find, "_CAREFUL_S", 0.02)

    def run(*steps: Any, **options: Any) -> Any:
        monkeypatch.setattr(find, "list_recipes", lambda artifact, workshop: [(step,) for step in steps])
        settings: dict[str, Any] = {"objective": "size", "data": ROWS, "store": store, **options}
        return compress(parent[0], **settings)

    return run


def test_best_within_the_guard_is_chosen_and_published(search: Any, store: Store) -> None:
    steps = (Made(size=0.8), Made(size=0.5, noise=0.001), Made(size=0.1, noise=1.0), Made(size=0.02, problem="raises"))
    said: list[str] = []
    result = search(*steps, say=said.append)
    assert result.recipe == (Made(size=0.5, noise=0.001),) and result.objective == "size"
    assert [bool(one.problem) for one in result.tried] == [False, False, True, True]
    assert "fidelity loses" in result.tried[2].problem and result.tried[2].score.ruin
    assert "Compression method made cannot do this model: KeyError" in result.tried[3].problem
    assert (result.version.number, result.score.metric, result.score.num_rows) == (2, "fidelity", 180)
    assert result.after.size_bytes < 0.55 * result.before.size_bytes and 0 < result.score.loss < 0.01
    lineage = store.get_version("small@2").manifest.lineage["compression"]
    assert lineage["objective"] == "size" and lineage["recipe"][0]["size"] == 0.5
    assert any(line.startswith("made(size=0.1, noise=1.0): fidelity ") for line in said)
    places = [example.row for example in result.examples]
    assert len(places) == 8 and all(0 <= place < 240 for place in places)


def test_of_recipes_that_are_equally_good_the_one_that_loses_least_is_chosen(search: Any) -> None:
    result = search(Made(size=0.50, noise=0.003), Made(size=0.51), Made(size=0.6), publish=False)
    assert result.recipe == (Made(size=0.51),) and result.score.loss == 0 and result.version is None


def test_nothing_found_tells_how_near_each_came_and_publishes_nothing(search: Any, store: Store, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(ConflictError) as caught:
        search(Made(size=0.5, noise=0.5), Made(size=1.2), Made(size=0.99), Made(size=0.3, problem="raises"), report=page)
    assert caught.value.key == "nothing_found"
    for words in ("improves its size within a loss of 0.01", "made(size=0.5, noise=0.5): fidelity 0.", "1.2", "KeyError"):
        assert words in caught.value.message
    assert "nothing was published" in caught.value.hint
    assert len(store.list_versions("small")) == 1
    told = page.read_text()
    for words in ("None of 4 recipes improves its size", "made(size=0.5, noise=0.5)", "KeyError", "<svg"):
        assert words in told
    assert not list((store.home / "search").iterdir())


def test_page_of_a_search_in_which_nothing_could_be_judged(search: Any, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="KeyError"):
        search(Made(problem="raises"), report=tmp_path / "page.html")
    assert "None of 1 recipes" in (tmp_path / "page.html").read_text()


def test_candidate_that_does_not_load_is_told_and_the_others_are_tried(search: Any) -> None:
    result = search(Made(size=0.1, problem="shape"), Made(size=0.5), publish=False)
    assert result.recipe == (Made(size=0.5),)
    assert result.tried[0].score is None and "made" in result.tried[0].problem
    with pytest.raises(FaultError) as caught:
        search(method=Made(problem="shape"))
    assert caught.value.key == "engine_failed"


def test_budget_ends_the_search_with_what_was_found(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, *[100.0] * 50])
    monkeypatch.setattr(find, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    said: list[str] = []
    result = search(Made(size=0.5), Made(size=0.1), budget=Budget(max_s=10.0), publish=False, say=said.append)
    assert result.recipe == (Made(size=0.5),) and len(result.tried) == 1
    assert "10 s are over: of 2 recipes 1 was tried" in said


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        pytest.param(Budget(max_s=10.0), "not all was tried: 10 s are over: of 3 recipes 1 was tried", id="time"),
        pytest.param(
            Budget(trials=2), "not all was tried: the budget of 2 recipes is spent: of 3 recipes 2 were tried", id="trials"
        ),
    ],
)
def test_nothing_found_says_which_budget_ended_before_all_was_tried(
    budget: Budget, left: str, search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, *[100.0 if budget.max_s == 10.0 else 1.0] * 50])
    monkeypatch.setattr(find, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    page = tmp_path / "page.html"
    steps = [Made(size=1.2), Made(size=1.3), Made(size=0.1)]
    with pytest.raises(ConflictError) as caught:
        search(*steps, budget=budget, report=page)
    assert caught.value.key == "nothing_found" and left in caught.value.message
    assert "Not all was tried, as " in page.read_text()
    with pytest.raises(ConflictError) as caught:
        search(Made(size=1.2), budget=Budget(trials=1))
    assert "not all" not in caught.value.message


def test_guard_and_objective_are_checked_before_anything_is_made(search: Any) -> None:
    with pytest.raises(InputError, match="Unknown objective 'speed'; known: latency, memory, size, throughput"):
        search(Made(), objective="speed")
    with pytest.raises(InputError, match="Unknown search 'grid'; known: genetic, gradient, random, tpe"):
        search(Made(), search="grid")
    with pytest.raises(InputError, match=r"budget\.max_s"):
        Budget(max_s=0.0)
    with pytest.raises(InputError, match=r"budget\.trials"):
        Budget(trials=0)
    with pytest.raises(InputError, match="either data, or calibration and evaluation"):
        search(Made(), calibration=ROWS)
    # Said of the guard, and not of each candidate.
    with pytest.raises(InputError, match="agreement on 38 rows says nothing finer"):
        search(Made(), data=ROWS[:50], guard=Guard("agreement"))
    with pytest.raises(InputError, match="scores of symbols"):
        search(Made(), data=None, calibration=ROWS[:60], evaluation=(ROWS, ROWS[:, :4]), guard=Guard("text"))


def test_search_needs_rows_and_made_up_golden_examples_are_none(search: Any, parent: Any) -> None:
    assert parent[0].manifest.golden_is_synthetic
    with pytest.raises(InputError, match="needs calibration rows of model 'small'"):
        search(Made(size=0.5), data=None)
    with pytest.raises(InputError, match="needs evaluation rows of model 'small'"):
        search(Made(size=0.5), data=None, calibration=ROWS)


def test_real_golden_examples_are_a_basis(search: Any, store: Store, parent: Any, tmp_path: Path) -> None:
    _, artifact = parent
    golden = {"x": ROWS[:6]}
    version = import_onnx(store, artifact.path, "real", golden_inputs=golden)
    assert not version.manifest.golden_is_synthetic
    result = compress(version, method=Made(size=0.5), store=store)
    assert (result.score.basis, result.score.num_rows, result.score.loss) == ("golden", 6, 0.0)
    assert result.version is not None
    child = store.load_golden(result.version)
    np.testing.assert_allclose(child.outputs["y"], answer(artifact, x=ROWS[:6])["y"], rtol=1e-5)


def test_search_tries_no_more_recipes_than_allowed_and_none_twice(search: Any) -> None:
    result = search(Made(size=0.5), Made(size=0.4), Made(size=0.3), search="random", budget=Budget(trials=2), publish=False)
    assert [one.recipe for one in result.tried] == [(Made(size=0.5),), (Made(size=0.4),)]
    result = search(Made(size=0.5), Made(size=0.4), search="tpe", budget=Budget(trials=5), publish=False)
    assert len(result.tried) == 2 and result.recipe == (Made(size=0.4),) and result.search == "tpe"
