"""Intervals hold what they claim, and are never of no width where nothing was seen to differ."""

from __future__ import annotations

import numpy as np
import pytest

from argosy.compress.interval import find_interval
from argosy.compress.judge import Evidence, Guard, judge_outputs
from argosy.compress.kind import Meaning
from argosy.compress.sample import group_rows
from argosy.errors import InputError

NUM_SAMPLES = 200


def count_holding(draw, truth, *, is_rate):
    held = 0
    for seed in range(NUM_SAMPLES):
        interval = find_interval(draw(np.random.default_rng(seed)), is_rate=is_rate)
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    return held / NUM_SAMPLES


@pytest.mark.parametrize(
    ("lost", "won", "rows"),
    [pytest.param(0.02, 0.01, 400, id="few"), pytest.param(0.2, 0.1, 300, id="many"), pytest.param(0.005, 0.0, 500, id="rare")],
)
def test_interval_of_a_rate_holds_the_truth_in_19_of_20_samples(lost, won, rows):
    def draw(random):
        return random.choice([1.0, -1.0, 0.0], size=rows, p=[lost, won, 1 - lost - won])

    # Of 200 samples 190 on average; 3 standard deviations of that are 9. Rare losses make it wider than it need be.
    assert count_holding(draw, lost - won, is_rate=True) >= 0.905


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_interval_of_numbers_holds_the_truth_in_19_of_20_samples(kind):
    def draw(random):
        return random.normal(0.1, 1.0, 150) if kind == "normal" else random.exponential(0.1, 150)

    # The bootstrap is a little too narrow for a skewed sample.
    assert 0.88 <= count_holding(draw, 0.1, is_rate=False) <= 0.995


def test_rate_without_any_difference_may_still_lose():
    low, high = find_interval(np.zeros(300), is_rate=True)
    assert low < 0 < high < 0.01
    wide = find_interval(np.zeros(30), is_rate=True)
    assert wide[1] > 0.03  # Ten times fewer rows say less.


def test_interval_narrows_with_rows_and_is_repeatable():
    widths = []
    for rows in (50, 500, 5000):
        losses = np.random.default_rng(1).normal(0.0, 1.0, rows)
        low, high = find_interval(losses, is_rate=False)
        assert (low, high) == find_interval(losses, is_rate=False)
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize(
    "losses",
    [np.array([1.0]), np.array([]), np.array([0.0, np.nan, 0.0]), np.array([0.0, np.inf])],
    ids=["one", "none", "nan", "inf"],
)
def test_interval_that_cannot_be_told_is_none(losses):
    assert find_interval(losses, is_rate=True) is None
    assert find_interval(losses, is_rate=False) is None


@pytest.mark.parametrize("metric", ["agreement", "cosine"])
def test_copies_of_rows_make_nothing_surer(metric: str):
    random = np.random.default_rng(2)
    old = random.normal(size=(100, 4)).astype(np.float32)
    moved = old + random.normal(size=old.shape).astype(np.float32) * 0.2

    def judge(times: int):
        answers = [[{"y": row[None]} for row in np.repeat(scores, times, axis=0)] for scores in (old, moved)]
        evidence = Evidence(*answers, {}, "evaluation", groups=group_rows(answers[0]))
        return judge_outputs(evidence, Meaning("unknown", "it is a test"), Guard(metric, 0.1))

    once, often = judge(1), judge(50)
    assert once.interval is not None and once.loss == pytest.approx(often.loss)
    assert often.interval == pytest.approx(once.interval)
    copies = [{"y": row[None]} for row in np.repeat(old, 50, axis=0)]
    evidence = Evidence(copies, copies, {}, "evaluation", groups=group_rows(copies))
    with pytest.raises(InputError, match="agreement on 100 rows says nothing finer"):
        judge_outputs(evidence, Meaning("unknown", "it is a test"), Guard("agreement", 0.001))
