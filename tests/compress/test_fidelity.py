"""Each measure of fidelity against a value found by hand, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from argosy.compress.fidelity import FIDELITIES
from argosy.compress.judge import Evidence, Guard, judge_outputs
from argosy.compress.kind import Meaning
from argosy.errors import InputError


def compute(name, before, after):
    return FIDELITIES[name].compute(np.asarray(before, np.float32), np.asarray(after, np.float32))


# Of three steps each, the first symbol is the blank: "1 1", "1 2", "2".
SYMBOLS = np.eye(3)
TEXTS = SYMBOLS[[[1, 0, 1], [1, 1, 2], [0, 2, 2]]]


@pytest.mark.parametrize(
    ("name", "before", "after", "expected"),
    [
        pytest.param("cosine", [[1, 0], [1, 1], [0, 0]], [[0, 2], [3, 3], [0, 0]], [0, 1, 1], id="cosine"),
        pytest.param("cosine", [[3, 4]], [[4, 3]], [24 / 25], id="cosine-of-an-angle"),
        pytest.param("cosine", [[0, 0]], [[1, 0]], [0], id="cosine-of-zeros"),
        pytest.param("agreement", [[1, 2], [5, 4]], [[3, 9], [4, 5]], [1, 0], id="agreement"),
        pytest.param("agreement", [[[1, 2], [2, 1]]], [[[1, 2], [1, 2]]], [0.5], id="agreement-of-steps"),
        pytest.param(
            "neighbours",
            [[1, 0], [1, 0.1], [0, 1], [0.1, 1]],
            [[1, 0], [1, 0.1], [0, 1], [1, -1]],
            [1, 1, 0, 0],
            id="neighbours",
        ),
        pytest.param("kl", [[0.5, 0.5]], [[0.25, 0.75]], [0.5 * math.log(2) + 0.5 * math.log(2 / 3)], id="kl-of-probabilities"),
        pytest.param("kl", [[0, 0]], [[5, 5 + math.log(3)]], [0.5 * math.log(2) + 0.5 * math.log(2 / 3)], id="kl-of-scores"),
        pytest.param("max_difference", [[1, -4], [2, 2]], [[1, -3], [2, 2.5]], [0.25, 0.125], id="largest"),
        pytest.param("iou", [[0.9, 0.6, 0.1], [0, 0, 0]], [[0.9, 0.2, 0.7], [0, 0, 0]], [1 / 3, 1], id="overlap"),
        pytest.param("text", TEXTS, TEXTS[[0, 0, 2]], [1, 1 / 2, 1], id="text"),
        pytest.param("text", TEXTS[[2]], SYMBOLS[[[0, 0, 0]]], [0], id="text-that-is-gone"),
    ],
)
def test_measure_equals_the_value_by_hand(name, before, after, expected):
    np.testing.assert_allclose(compute(name, before, after), expected, atol=1e-6)


@pytest.mark.parametrize("name", FIDELITIES)
def test_equal_answers_are_the_best(name):
    answers = np.random.default_rng(0).random((6, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(compute(name, answers, answers), FIDELITIES[name].best, atol=1e-6)


def test_answers_of_different_lengths_are_compared_row_by_row():
    before, after = np.empty(2, object), np.empty(2, object)
    before[:] = [np.array([3.0, 4.0]), np.array([1.0, 0.0, 0.0])]
    after[:] = [np.array([4.0, 3.0]), np.array([1.0, 0.0, 0.4])]
    np.testing.assert_allclose(FIDELITIES["cosine"].compute(before, after), [0.96, 1 / math.sqrt(1.16)])
    np.testing.assert_allclose(FIDELITIES["max_difference"].compute(before, after), [0.25, 0.1])


def judge_uneven(metric, before, after):
    cut = [[{"y": np.asarray(row)[None]} for row in answers] for answers in (before, after)]
    return judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard(metric))


@pytest.mark.parametrize(
    ("metric", "changed", "value"),
    [
        pytest.param("text", SYMBOLS[[0, 1, 1, 0]], 0.75, id="text"),
        pytest.param("agreement", SYMBOLS[[0, 1, 1, 0]], 0.75, id="agreement"),
        pytest.param("iou", SYMBOLS[[0, 1, 1, 0]], 2 / 3, id="overlap"),
        pytest.param("cosine", -SYMBOLS[[0, 1, 0, 1]], 0.0, id="cosine"),
        pytest.param("max_difference", SYMBOLS[[0, 1, 0, 0]] * 0.5 + SYMBOLS[[0, 1, 0, 1]] * 0.5, 0.5, id="largest"),
        pytest.param("fidelity", SYMBOLS[[0, 1, 0, 1]] * 0.99, None, id="fidelity"),
    ],
)
def test_every_measure_but_of_neighbours_takes_answers_of_different_lengths(metric, changed, value):
    before = [SYMBOLS[[1, 0, 2]], SYMBOLS[[0, 1, 0, 1]]]
    guard = Guard(metric, 0.99) if metric == "agreement" else Guard(metric)
    cut = [[{"y": np.asarray(row, np.float32)[None]} for row in answers] for answers in (before, [before[0], changed])]
    score = judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), guard)
    assert score.metric == metric and (value is None or score.after == pytest.approx(value, abs=1e-6))
    assert judge_uneven("text", before, before).loss == 0.0


def test_answers_of_different_lengths_that_are_no_fractions_are_labels():
    before, after = [np.array([1, 2, 3]), np.array([4, 5])], [np.array([1, 2, 3]), np.array([4, 6])]
    score = judge_uneven(None, before, after)
    assert (score.metric, score.after) == ("agreement", 0.75)


@pytest.mark.parametrize(
    ("metric", "changed", "said"),
    [
        pytest.param("text", np.full((4, 3), np.nan), "answers to 1 of 2 rows are no numbers", id="no-numbers"),
        pytest.param("agreement", SYMBOLS[[0, 1, 0, 1]] * 9, "far from the original's", id="scores-too-large"),
    ],
)
def test_ruined_answers_of_different_lengths_are_found_whatever_the_measure(metric, changed, said):
    before = [SYMBOLS[[1, 0, 2]], SYMBOLS[[0, 1, 0, 1]]]
    cut = [[{"y": np.asarray(row, np.float32)[None]} for row in answers] for answers in (before, [before[0], changed])]
    score = judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard(metric, 0.5))
    assert said in score.ruin and not Guard(metric, 0.5).accepts(score)


@pytest.mark.parametrize(
    ("metric", "answers", "said"),
    [
        pytest.param("iou", np.random.default_rng(0).normal(size=(9, 8)), "iou of answers from -", id="vectors-are-no-maps"),
        pytest.param("iou", np.full((9, 8), 0.2), "nowhere exceed 0.5", id="maps-of-nothing"),
        pytest.param("text", np.tile([1.0, 0, 0], (9, 4, 1)), "no symbol is the likeliest", id="no-text"),
        pytest.param("neighbours", np.eye(2), "neighbours of 2 rows", id="two-rows"),
        pytest.param("cosine", np.ones((9, 1)), r"cosine of answers of shape \('rows', 1\)", id="no-direction"),
    ],
)
def test_measure_of_what_is_not_there_is_refused(metric, answers, said):
    with pytest.raises(InputError, match=said):
        judge_outputs(
            Evidence(*[[{"y": row[None].astype(np.float32)} for row in answers]] * 2, {}, "evaluation"),
            Meaning("unknown", "it is a test"),
            Guard(metric, 0.5),
        )


def judge(metric, before, after):
    cut = [[{"y": row[None]} for row in np.asarray(answers, np.float32)] for answers in (before, after)]
    return judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard(metric))


@pytest.mark.parametrize(
    ("metric", "shape", "takes"),
    [
        pytest.param("agreement", (200, 1), "scores of classes", id="one-number"),
        pytest.param("kl", (200,), "scores or probabilities", id="no-axis"),
        pytest.param("iou", (200,), "maps of 0 to 1", id="no-map"),
        pytest.param("neighbours", (200,), "vectors", id="no-vector"),
        pytest.param("text", (200, 5), "scores of symbols", id="no-steps"),
    ],
)
def test_measure_that_does_not_suit_the_answers_is_refused(metric, shape, takes):
    answers = np.random.default_rng(0).random(shape)
    with pytest.raises(InputError, match=takes) as caught:
        judge(metric, answers, answers)
    assert caught.value.key == "bad_option" and metric in caught.value.message


def test_score_of_a_named_measure_has_its_own_sense_of_better():
    random = np.random.default_rng(0)
    before = random.normal(size=(300, 6))
    after = before + random.normal(size=before.shape) * 0.05
    cosine, largest = judge("cosine", before, after), judge("max_difference", before, after)
    assert (cosine.before, cosine.metric) == (1.0, "cosine") and 0 < cosine.loss == 1.0 - cosine.after < 0.01
    assert (largest.before, largest.interval) == (0.0, None) and largest.loss == largest.after > 0.02
    assert cosine.interval is not None and cosine.interval[0] < cosine.loss < cosine.interval[1]


def test_rate_on_too_few_rows_is_refused_with_the_number_that_it_takes():
    answers = np.random.default_rng(0).random((40, 5))
    with pytest.raises(InputError, match=r"agreement on 40 rows says nothing finer than one row in 40; .* takes 100 rows"):
        judge("agreement", answers, answers)


@pytest.mark.parametrize("metric", ["cosine", "r2", "mae", "fidelity", "kl"])
def test_measure_of_numbers_is_refused_for_labels_and_looks_at_the_first_output_of_numbers(metric: str):
    random = np.random.default_rng(1)
    scores = random.normal(size=(200, 4)).astype(np.float32)
    labels = [{"label": row.argmax(keepdims=True)} for row in scores]
    guard = Guard(metric, 0.05)
    with pytest.raises(InputError, match=f"{metric} of answers that are int64, no fractions.*accuracy or agreement"):
        judge_outputs(Evidence(labels, labels, {}, "evaluation"), Meaning("unknown", "it is a test"), guard)
    before = [label | {"scores": row[None]} for label, row in zip(labels, scores, strict=True)]
    after = [label | {"scores": row[None] * np.float32(1.01)} for label, row in zip(labels, scores, strict=True)]
    score = judge_outputs(Evidence(before, after, {}, "evaluation"), Meaning("unknown", "it is a test"), guard)
    told = {"r2": "fidelity"}.get(metric, metric)
    assert guard.accepts(score) and score.metric in (told, "agreement") and (score.output == "scores" or score.loss == 0)
