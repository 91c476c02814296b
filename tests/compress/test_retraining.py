"""Steps that train: networks with fewer channels or weights, students, and what they refuse."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import helper

from argosy.bench.artifact import open_version
from argosy.compress.catalogue import list_recipes
from argosy.compress.judge import Evidence, Guard, judge_outputs
from argosy.compress.kind import Meaning
from argosy.compress.recipe import describe_recipe, read_recipe, run_recipe
from argosy.compress.retrain import LEAST_ROWS, make_answers
from argosy.compress.run import compress
from argosy.compress.steps.base import Workshop
from argosy.compress.steps.distill import Distill
from argosy.compress.steps.int8 import Int8
from argosy.compress.steps.prune import Prune
from argosy.errors import InputError
from tests.compress.artifacts import answer, make_artifact, read_constants

torch = pytest.importorskip("torch")

RANDOM = np.random.default_rng(3)
PICTURES = RANDOM.normal(size=(256, 3, 8, 8)).astype(np.float32)
ROWS = [{"x": row[None]} for row in PICTURES]

STUDENT = """
import torch

def make_student():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))

def make_narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
"""


def draw(*shape):
    return (RANDOM.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


@pytest.fixture
def residual(tmp_path):
    """Convolutions with a sum around one, one for each channel, a concatenation, a mean, and a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["a"], ["ar"], name="relu1"),
        helper.make_node("Conv", ["ar", "w2"], ["b"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Add", ["ar", "b"], ["sum"], name="add"),
        helper.make_node("Conv", ["sum", "w3"], ["deep"], pads=[1, 1, 1, 1], group=16, name="each"),
        helper.make_node("Concat", ["deep", "ar"], ["both"], axis=1, name="concat"),
        helper.make_node("MaxPool", ["both"], ["small"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Reshape", ["small", "shape"], ["flat"], name="reshape"),
        helper.make_node("MatMul", ["flat", "w4"], ["z"], name="dense"),
        helper.make_node("Add", ["z", "b4"], ["y"], name="bias"),
    ]
    weights = {
        "w1": draw(16, 3, 3, 3),
        "b1": draw(16),
        "w2": draw(16, 16, 3, 3),
        "w3": draw(16, 1, 3, 3),
        "shape": np.array([-1, 32 * 16], np.int64),
        "w4": draw(32 * 16, 5) / 10,
        "b4": draw(5),
    }
    rows = [("x", "FP32", ("rows", 3, 8, 8))], [("y", "FP32", ("rows", 5))]
    return make_artifact(tmp_path / "residual", nodes, *rows, weights)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path / "made", ROWS, ROWS)


def count_weights(artifact):
    return sum(array.size for name, array in read_constants(artifact).items() if name != "shape")


def measure_r2(got, want):
    return 1 - float(np.mean(np.square(got - want)) / np.var(want))


def test_channels_go_together_through_sums_concatenations_and_shapes(residual, workshop):
    made = Prune(keep=0.4, rounds=1, epochs=12, learning_rate=0.003).apply(residual, workshop)
    onnx.checker.check_model(onnx.load(str(made.path)), full_check=True)
    assert made.signature == residual.signature
    assert count_weights(made) <= 0.4 * count_weights(residual)
    channels = {len(array) for name, array in read_constants(made).items() if name in ("w1", "b1", "w2", "w3")}
    assert len(channels) == 1 and channels.pop() < 16
    got, want = (answer(artifact, x=PICTURES)["y"] for artifact in (made, residual))
    assert got.shape == want.shape
    assert measure_r2(got, want) > 0.3  # What is taken away, on rows without structure, cannot be learnt wholly.


def test_single_weights_become_zeros_and_stay_so(residual, workshop):
    made = Prune(keep=0.3, structured=False, rounds=2, epochs=4).apply(residual, workshop)
    constants = {name: array for name, array in read_constants(made).items() if array.ndim > 1}
    zeros = sum(int((array == 0).sum()) for array in constants.values())
    assert zeros == pytest.approx(0.7 * sum(array.size for array in constants.values()), rel=0.02)
    assert measure_r2(answer(made, x=PICTURES)["y"], answer(residual, x=PICTURES)["y"]) > 0.8


def test_same_recipe_gives_the_same_weights_and_is_trained_once_for_several_recipes(residual, workshop, tmp_path):
    step = Distill(keep=0.5, epochs=2)
    first = run_recipe((step,), residual, workshop)
    assert run_recipe((step, Int8()), residual, workshop).size_bytes > 0
    assert workshop.made == {(residual.folder, step): first}
    second = run_recipe((step,), residual, Workshop(tmp_path / "other", ROWS, ROWS, process=workshop.process))
    for name, array in read_constants(first).items():
        np.testing.assert_array_equal(array, read_constants(second)[name])


def test_training_ends_in_time_or_is_refused_at_once(residual, workshop):
    started = time.monotonic()
    with pytest.raises(InputError, match="training would take"):
        Prune(epochs=100_000, max_seconds=2.0).apply(residual, workshop)
    assert time.monotonic() - started < 20
    Prune(epochs=40, rounds=1, max_seconds=5.0).apply(residual, workshop)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: Prune(keep=1.0), "prune.keep", id="keep"),
        pytest.param(lambda: Prune(rounds=0), "prune.rounds", id="rounds"),
        pytest.param(lambda: Prune(epochs=0), "prune.epochs", id="epochs"),
        pytest.param(lambda: Distill(max_seconds=float("nan")), "distill.max_seconds", id="seconds"),
        pytest.param(lambda: Distill(keep=-1.0), "distill.keep", id="distill"),
    ],
)
def test_parameters_out_of_range_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_what_cannot_be_trained_is_refused_with_the_reason(residual, workshop, tmp_path):
    few = Workshop(tmp_path / "few", ROWS[:5], ROWS[:5])
    with pytest.raises(InputError, match=f"at least {LEAST_ROWS} rows to train on, and there are 5"):
        Prune().apply(residual, few)
    with pytest.raises(InputError, match=r"of .* weights .* stay at least"):
        Prune(keep=0.001).apply(residual, workshop)
    with pytest.raises(InputError, match=r"The recipe teaches the student net\.py:make"):
        Distill(student="net.py:make", digest="sha256:0").apply(residual, workshop)
    odd = make_artifact(
        tmp_path / "odd",
        [helper.make_node("Hardmax", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        [("x", "FP32", ("rows", 6))],
        [("y", "FP32", ("rows", 2))],
        {"w": draw(6, 2)},
    )
    rows = [{"x": draw(1, 6)} for _ in range(LEAST_ROWS)]
    with pytest.raises(InputError, match="operators that cannot be trained here: Hardmax"):
        Prune().apply(odd, Workshop(tmp_path / "rows", rows, rows))


def test_targets_mend_what_the_original_has_wrong():
    scores = [{"y": np.array([[3.0, 1.0, 0.0]], np.float32)}, {"y": np.array([[0.0, 2.0, 1.0]], np.float32)}]
    classes = make_answers(scores, {"y": np.array([1, 1])}, Meaning("classes", ""))
    assert classes[0]["y"].tolist() == [[1.0, 3.0, 0.0]]
    assert classes[1]["y"].tolist() == [[0.0, 2.0, 1.0]]
    yes = [{"y": np.array([[0.9]], np.float32)}, {"y": np.array([[0.2]], np.float32)}]
    mended = make_answers(yes, {"y": np.array([0, 0])}, Meaning("yes_no", "", threshold=0.5))
    assert [float(one["y"][0, 0]) for one in mended] == pytest.approx([0.1, 0.2])
    values = make_answers([{"y": np.array([[4.0]], np.float32)}], {"y": np.array([2.0])}, Meaning("values", ""))
    assert float(values[0]["y"][0, 0]) == 3.0
    assert make_answers(scores, {}, Meaning("classes", "")) == scores


def test_one_that_has_learnt_may_differ_where_the_original_is_wrong_and_nowhere_else():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    right = 4.0 * np.eye(4)[labels] + random.normal(size=(400, 4)) / 4
    wrong = right.copy()
    wrong[:160] = np.roll(wrong[:160], 1, axis=1)

    def judge(before, after, *, is_retrained):
        pair = ([{"y": row[None].astype(np.float32)} for row in rows] for rows in (before, after))
        return judge_outputs(Evidence(*pair, {"y": labels}, "evaluation", is_retrained), Meaning("classes", ""), Guard())

    assert "far from the original's" in judge(wrong, right, is_retrained=False).ruin
    assert judge(wrong, right, is_retrained=True).ruin == ""
    assert "far from the original's" in judge(wrong, 3 * right, is_retrained=True).ruin


def test_catalogue_tries_training_last_where_there_are_rows(residual, workshop, tmp_path):
    names = [[step.name for step in recipe] for recipe in list_recipes(residual, workshop)]
    first = next(place for place, recipe in enumerate(names) if {"prune", "distill"} & set(recipe))
    assert all({"prune", "distill"} & set(recipe) for recipe in names[first:])
    said: list[str] = []
    few = Workshop(tmp_path / "few", ROWS[:5], ROWS[:5], say=said.append)
    assert not any({"prune", "distill"} & {step.name for step in recipe} for recipe in list_recipes(residual, few))
    assert f"they need {LEAST_ROWS} training rows, not 5" in said[0]


@pytest.mark.slow
def test_pruned_and_quantised_version_keeps_its_recipe_and_says_what_it_learnt_from(digits):
    recipe = (Prune(keep=0.25, epochs=10, learning_rate=0.002), Int8())
    result = compress(
        digits.version,
        method=recipe,
        calibration=tuple(digits.training),
        evaluation=digits.testing,
        guard=Guard(max_loss=0.03),
        needs_gain=False,
        store=digits.store,
    )
    assert result.version is not None
    lineage = result.version.manifest.lineage
    assert lineage["retraining"]["rows"] == len(digits.training.x)
    assert read_recipe(lineage["compression"]["recipe"]) == recipe
    assert result.after.size_bytes < 0.15 * result.before.size_bytes


@pytest.mark.slow
def test_given_student_is_taught_published_and_named_without_its_path(digits, tmp_path):
    program = tmp_path / "net.py"
    program.write_text(STUDENT)
    result = compress(
        digits.version,
        method=(Distill(epochs=25, learning_rate=0.005),),
        student=f"{program}:make_student",
        calibration=tuple(digits.training),
        evaluation=digits.testing,
        guard=Guard(max_loss=0.05),
        store=digits.store,
    )
    assert result.version is not None
    assert result.version.manifest.signature == digits.version.manifest.signature
    described = describe_recipe(result.recipe)[0]
    assert described["student"] == "net.py:make_student" and described["digest"].startswith("sha256:")
    assert str(tmp_path) not in str(result.version.manifest.lineage["compression"])
    made = open_version(digits.store, result.version)
    assert made.size_bytes < 0.05 * result.before.size_bytes


def test_student_that_does_not_fit_is_refused(digits, tmp_path):
    program = tmp_path / "net.py"
    program.write_text(STUDENT)
    rows = {"calibration": tuple(digits.training), "evaluation": digits.testing, "store": digits.store}
    with pytest.raises(InputError, match="cannot take the version's place: it gives"):
        compress(digits.version, method="distill", student=f"{program}:make_narrow", **rows)
    with pytest.raises(InputError, match="none without the step distill"):
        compress(digits.version, method="int8", student=f"{program}:make_narrow", **rows)
    with pytest.raises(InputError, match="defines no function make"):
        compress(digits.version, method="distill", student=f"{program}:make", **rows)
