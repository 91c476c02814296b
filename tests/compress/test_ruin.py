"""What ruins a version whatever its metric counts, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argosy.compress.judge import Evidence, Guard, judge_outputs
from argosy.compress.kind import Kind, Meaning
from argosy.errors import InputError


def judge(
    before: Any, after: Any, kind: Kind = "classes", targets: Any = None, guard: Guard | None = None, threshold: float = 0.0
):
    guard = guard or Guard()
    cut = [[{"y": row[None]} for row in np.asarray(answers, np.float32)] for answers in (before, after)]
    known = {} if targets is None else {"y": np.asarray(targets)}
    score = judge_outputs(
        Evidence(cut[0], cut[1], known, "evaluation"), Meaning(kind, "it is a test", threshold=threshold), guard
    )
    return score, guard.accepts(score)


def make_scores(count: int = 300, classes: int = 5):
    """Scores of classes that are far from one another, and the best class of each row."""
    random = np.random.default_rng(3)
    scores = random.normal(size=(count, classes)).astype(np.float32) * 2
    best = scores.argmax(axis=1)
    scores[np.arange(count), best] += 2
    return scores, best


def soften(scores: Any, factor: float = 1.0):
    powers = np.exp(scores * factor)
    return powers / powers.sum(axis=1, keepdims=True)


def test_scores_of_another_size_are_refused_though_no_class_changes():
    scores, best = make_scores()
    for factor in (0.1, 0.5, 2.0, 10.0):
        for targets in (best, None):
            score, is_accepted = judge(scores, scores * factor, targets=targets)
            assert score.loss == 0 and not is_accepted, factor
    assert "its answers are far from the original's: R2 is" in score.ruin
    assert judge(scores, scores * 1.02 + 0.01, targets=best)[1]


def test_probabilities_of_another_sharpness_are_refused():
    scores, best = make_scores()
    for factor in (0.3, 2.0):
        score, is_accepted = judge(soften(scores), soften(scores, factor), targets=best)
        assert score.loss == 0 and not is_accepted
    tripled = soften(scores)
    tripled[:, 2] *= 3
    assert "its probabilities miss a sum of 1 by up to" in judge(soften(scores), tripled)[0].ruin
    noisy = scores + np.random.default_rng(0).normal(size=scores.shape) * 0.05
    assert judge(soften(scores), soften(noisy).astype(np.float16), targets=best)[1]
    assert judge(soften(scores), np.round(soften(scores) * 255) / 255, targets=best)[1]
    assert "not as sure as the original's" in judge(soften(scores), soften(scores, 2.0))[0].ruin


def test_fewer_votes_are_no_ruin():
    random = np.random.default_rng(4)
    scores, best = make_scores()
    votes = [[random.multinomial(1, row / row.sum()) for _ in range(100)] for row in soften(scores, 0.8).astype(np.float64)]
    whole, half = np.mean(votes, axis=1), np.mean(np.asarray(votes)[:, :50], axis=1)
    assert judge(whole, half, targets=best)[0].ruin == ""


def test_scores_of_one_class_that_are_lost_are_named():
    scores, _ = make_scores(classes=40)
    lost = scores.copy()
    lost[:, 7] = lost[:, 7].mean()
    assert "entry 7 of axis 1 of its answers is the same for all" in judge(scores, lost, guard=Guard(max_loss=0.05))[0].ruin
    lost[:, 7] += (scores[:, 7] - lost[:, 7]) / 3
    assert "entry 7 of axis 1 of its answers is far" in judge(scores, lost, guard=Guard(max_loss=0.01))[0].ruin


def test_class_that_is_seldom_asked_for_is_missed():
    random = np.random.default_rng(1)
    scores = np.abs(random.normal(size=(400, 1))) * -5 - 1
    scores[:4] = 0.5
    always_no = np.minimum(scores, -0.2)
    # One row in a hundred: accuracy loses no more than is allowed.
    score, is_accepted = judge(scores, always_no, "yes_no", scores > 0)
    assert score.loss == pytest.approx(0.01) and not is_accepted
    assert score.ruin == "of 4 rows that the original gives the answer True, 4 get another one"
    moved = scores.copy()
    moved[0] = -0.2
    assert judge(scores, moved, "yes_no", scores > 0)[1]


def test_labels_that_are_lost_are_named():
    before = np.repeat(["cat", "dog", "emu"], [297, 200, 3])
    after = np.where(before == "emu", "dog", before)
    cut = [[{"y": answers[row : row + 1]} for row in range(500)] for answers in (before, after)]
    score = judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard())
    assert score.loss < 0.01 and "the answer emu, 3 get another one" in score.ruin


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "infinity"])
def test_one_answer_that_is_no_number_is_refused(value):
    scores, best = make_scores()
    spoilt = scores.copy()
    spoilt[17, 0] = value
    for kind, targets, guard in (
        ("classes", best, Guard()),
        ("classes", None, Guard(max_loss=0.99)),
        ("unknown", None, Guard("cosine")),
        ("values", scores, Guard("mae", 10.0)),
    ):
        score, is_accepted = judge(scores, spoilt, kind, targets, guard)
        assert not is_accepted and score.ruin == "the answers to 1 of 300 rows are no numbers"


def test_mask_that_is_the_same_in_both_is_nothing_lost():
    scores, _ = make_scores()
    masked = scores.copy()
    masked[::2, 0] = -np.inf
    score, is_accepted = judge(masked, np.where(np.isfinite(masked), masked * 1.001, masked), "unknown")
    assert is_accepted and 0 < score.loss < 1e-4
    assert not judge(masked, scores, "unknown")[1]


def test_guard_that_allows_more_lets_the_answers_move_further():
    scores, best = make_scores()
    assert not judge(scores, scores * 2, targets=best, guard=Guard(max_loss=0.05))[1]
    assert judge(scores, scores * 2, targets=best, guard=Guard(max_loss=0.2))[1]


def test_worst_of_several_outputs_is_the_ruined_one():
    scores, best = make_scores()
    before = [{"best": row[None], "other": row[None]} for row in scores]
    after = [{"best": row[None] * 1.05, "other": np.where(row > 3, np.nan, row)[None]} for row in scores]
    score = judge_outputs(Evidence(before, after, {"best": best}, "evaluation"), Meaning("classes", "it is a test"), Guard())
    assert score.output == "other" and "no numbers" in score.ruin


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "infinity"])
def test_targets_and_answers_that_are_no_numbers_show_nothing(value):
    scores, _ = make_scores()
    for metric in (None, "r2", "mae"):
        targets = scores.copy()
        targets[5] = value
        with pytest.raises(InputError, match="the targets of 'y' hold 5 values that are NaN or infinite"):
            judge(scores, scores, "values", targets, Guard(metric))
    nothing = np.full_like(scores, value)
    with pytest.raises(InputError, match="answers none of the 300 evaluation rows with a number"):
        judge(nothing, nothing, "unknown")
    assert judge(np.where(np.arange(5) < 4, nothing, scores), np.where(np.arange(5) < 4, nothing, scores), "unknown")[1]


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 5)], ids=str)
def test_rows_far_out_do_not_hide_that_all_others_are_lost(shape: tuple[int, ...]):
    values = np.random.default_rng(5).normal(size=(300, *shape)).astype(np.float32)
    values[:3] *= 1000
    lost, rounded = values.copy(), np.round(values * 32) / 32
    lost[3:] = 0
    for kind, targets in (("values", None), ("values", values), ("unknown", None)):
        score, is_accepted = judge(values, lost, kind, targets)
        assert score.loss < 1e-3 and not is_accepted
        assert "but for a few that lie far out, have lost their order: R2 of their ranks is" in score.ruin
        assert judge(values, rounded, kind, targets)[1]


def test_one_column_with_rows_far_out_is_looked_at_by_itself():
    values = np.random.default_rng(6).normal(size=(300, 4)).astype(np.float32)
    values[:3, 2] = (-3000, 2000, 1000)
    lost = values.copy()
    lost[3:, 2] = 0
    assert "its answers, but for a few that lie far out, have lost their order" in judge(values, lost, "values")[0].ruin


@pytest.mark.parametrize("shape", [(1,), (6,), (2, 3)], ids=str)
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
def test_long_tail_does_not_hide_that_small_values_are_lost(shape: tuple[int, ...], share: float):
    values = np.exp(np.random.default_rng(9).normal(size=(300, *shape)) * 2.5).astype(np.float32)
    lost = np.where(values < np.quantile(values, share, axis=0), 0, values)
    for scale, shift in ((1, 0), (1, -10), (-1, 0), (1e6, 0), (1e-6, 0)):
        score, is_accepted = judge(values * scale + shift, lost * scale + shift, "values")
        assert score.loss < 0.01 and not is_accepted
    steps = values.max() / 255
    assert not judge(values, np.round(values / steps) * steps, "values")[1]
    near = values * np.random.default_rng(0).normal(1, 0.02, values.shape)
    assert judge(values, near, "values")[1] and judge(values, np.float16(values), "unknown")[1]


def test_scores_that_few_boxes_have_are_seen_beside_boxes_in_pixels():
    random = np.random.default_rng(10)
    boxes, scores = random.uniform(0, 640, (300, 20, 4)), random.beta(0.05, 2, (300, 20, 3))
    found = np.concatenate([boxes, scores], axis=2)
    noisy = np.concatenate([boxes + random.normal(size=boxes.shape), scores + random.normal(size=scores.shape) * 0.003], axis=2)
    for edited in (scores * 0, scores * 0 + scores.mean(), random.permuted(scores)):
        lost = np.concatenate([boxes, edited], axis=2)
        for guard in (Guard(), Guard("cosine"), Guard("max_difference")):
            for view in ((300, 20, 7), (300, 140)):
                assert not judge(found.reshape(view), lost.reshape(view), "unknown", guard=guard)[1]
                assert judge(found.reshape(view), noisy.reshape(view), "unknown", guard=guard)[1]
            assert not judge(found.transpose(0, 2, 1), lost.transpose(0, 2, 1), "unknown", guard=guard)[1]


def test_entry_of_nothing_but_rounding_has_no_order_to_lose():
    random = np.random.default_rng(5)
    vectors = random.normal(size=(400, 8))
    vectors[:, 3] = 1e-33 * random.standard_t(3, 400)  # With a long tail of its own.
    zeros = vectors.copy()
    zeros[:, 3] = 0.0
    assert judge(vectors, zeros, "unknown", guard=Guard("cosine"))[1]


def test_entries_that_hardly_move_are_not_looked_at_by_themselves():
    random = np.random.default_rng(11)
    vectors = random.normal(size=(300, 8))
    vectors[:, 2], vectors[:, 3] = 5 + random.normal(size=300) * 0.01, random.normal(size=300) * 1e-7
    noisy = vectors + random.normal(size=vectors.shape) * 0.02
    assert judge(vectors, noisy, "unknown", guard=Guard("cosine"))[1]


def test_answers_of_which_most_are_alike_are_not_held_to_the_middle_row():
    random = np.random.default_rng(7)
    values = np.where(random.random((300, 4)) < 0.7, 0, random.normal(size=(300, 4)) * 5 + 20).astype(np.float32)
    noisy = values + random.normal(size=values.shape) * 0.05
    assert judge(values, noisy, "values")[1]
    chances = np.where(random.random((300, 1)) < 0.9, 1e-4 * random.random((300, 1)), random.random((300, 1)))
    assert judge(chances, np.round(chances * 255) / 255, "unknown")[1]


def test_columns_of_answers_that_differ_in_length_are_judged_by_themselves():
    random = np.random.default_rng(8)
    boxes = [random.uniform(0, 640, (1, random.integers(2, 9), 5)).astype(np.float32) for _ in range(200)]
    for box in boxes:
        box[..., 4] /= 640
    lost = [np.where(np.arange(5) == 4, np.float32(0.01), box) for box in boxes]
    near = [box * np.float32(1.001) for box in boxes]
    for after, guard, expected in ((lost, Guard(), False), (lost, Guard("cosine"), False), (near, Guard("cosine"), True)):
        cut = [[{"y": row} for row in rows] for rows in (boxes, after)]
        score = judge_outputs(Evidence(*cut, {}, "evaluation"), Meaning("unknown", "it is a test"), guard)
        assert guard.accepts(score) is expected
    assert score.num_rows == 200


@pytest.mark.parametrize(
    "answers", [np.zeros(200, np.int64), np.full(200, "cat"), np.ones((200, 3), bool)], ids=["int", "text", "bool"]
)
def test_rows_that_all_get_one_label_show_nothing(answers: Any):
    cut = [{"y": answers[row : row + 1]} for row in range(200)]
    with pytest.raises(InputError, match="gives one label to all 200 evaluation rows"):
        judge_outputs(Evidence(cut, cut, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard())
    told = [row | {"other": np.float32([index])} for index, row in enumerate(cut)]
    assert judge_outputs(Evidence(told, told, {}, "evaluation"), Meaning("unknown", "it is a test"), Guard()).loss == 0


def test_labels_of_answers_that_differ_in_length_are_counted_together():
    random = np.random.default_rng(12)
    before: list[Any] = [random.choice(3, random.integers(1, 9), p=[0.6, 0.395, 0.005]) for _ in range(400)]
    after: list[Any] = [np.where(labels == 2, 1, labels) for labels in before]
    cut = [[{"y": labels, "num": np.array([len(labels)], np.float32)} for labels in answers] for answers in (before, after)]
    score = judge_outputs(Evidence(cut[0], cut[1], {}, "evaluation"), Meaning("unknown", "it is a test"), Guard())
    assert "the original gives the answer 2" in score.ruin and score.output == "y"
    same = judge_outputs(Evidence(cut[0], cut[0], {}, "evaluation"), Meaning("unknown", "it is a test"), Guard())
    assert same.loss == 0 and not same.ruin
