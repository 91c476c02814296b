"""Answers that tell rows apart no longer, where the original's do, are refused whatever the metric, however wide the guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from argosy.compress.judge import Evidence, Guard, Score, judge_outputs
from argosy.compress.kind import Kind, Meaning

Edit = Callable[[Any], Any]
COUNT = 300


def judge(
    before: Any, after: Any, guard: Guard, kind: Kind = "unknown", targets: Any = None, *, is_retrained: bool = False
) -> tuple[Score, bool]:
    cut: list[Any] = [[{"y": np.asarray(row)[None]} for row in answers] for answers in (before, after)]
    known = {} if targets is None else {"y": np.asarray(targets)}
    score = judge_outputs(
        Evidence(cut[0], cut[1], known, "evaluation", is_retrained), Meaning(kind, "it is a test", threshold=0.5), guard
    )
    return score, guard.accepts(score)


def gather(answers: Any, num_clusters: int) -> Any:
    """Give each row the answer of that one of a few rows that is most like it."""
    flat = answers.reshape(len(answers), -1)
    far = np.square(flat[:, None] - flat[None, :num_clusters]).sum(axis=-1)
    return answers[far.argmin(axis=1)]


def redraw(answers: Any) -> Any:
    """Answers whose average and spread are right, and no more."""
    random: Any = np.random.default_rng(5)
    return np.asarray(answers.mean(axis=0) + answers.std(axis=0) * random.normal(size=answers.shape), answers.dtype)


def stop(answers: Any) -> Any:
    """One column among many that gives its mean."""
    stopped = answers.copy()
    stopped[..., 3] = stopped[..., 3].mean()
    return stopped


COLLAPSES: dict[str, Edit] = {
    "mean": lambda answers: np.broadcast_to(answers.mean(axis=0, keepdims=True), answers.shape),
    "one-row": lambda answers: np.broadcast_to(answers[:1], answers.shape),
    "clusters": lambda answers: gather(answers, 4),
    "hardly": lambda answers: answers.mean(axis=0) + (answers - answers.mean(axis=0)) * np.float32(1e-3),
    "permuted": lambda answers: np.random.default_rng(3).permuted(answers, axis=0),
    "shuffled": lambda answers: answers[np.random.default_rng(3).permutation(len(answers))],
    "average": redraw,
    "column": stop,
}


def make_vectors(spread: float) -> Any:
    """Vectors of length 1 around one direction: their cosine with their mean is 1 - spread² / 2."""
    vectors = 1 + spread * np.random.default_rng(0).normal(size=(COUNT, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


WIDE_OPEN = ["kl", "cosine", "mae", "mse", "max_difference", "fidelity", "agreement", "neighbours", "r2"]


@pytest.mark.parametrize("spread", [0.005, 0.1, 1.0])
@pytest.mark.parametrize("metric", WIDE_OPEN)
@pytest.mark.parametrize("edit", COLLAPSES)
def test_vectors_that_tell_rows_apart_no_longer_are_refused(metric: str, edit: str, spread: float) -> None:
    vectors = make_vectors(spread)
    lost = COLLAPSES[edit](vectors)
    for max_loss in (0.01, 0.5):
        if edit != "clusters" or max_loss < 0.1 or spread < 0.1:
            assert not judge(vectors, lost, Guard(metric, max_loss))[1], max_loss
    for factor in (0.99, 1.01):
        near = vectors.mean(axis=0) + (vectors - vectors.mean(axis=0)) * np.float32(factor)
        assert judge(vectors, near, Guard(metric, 0.1))[1]


@pytest.mark.parametrize("edit", COLLAPSES)
@pytest.mark.parametrize("metric", ["mae", "mse", "max_difference", "kl"])
def test_guard_under_which_one_answer_for_all_rows_passes_gives_way_to_how_far_answers_are(metric: str, edit: str) -> None:
    vectors = make_vectors(0.2)
    assert not judge(vectors, COLLAPSES[edit](vectors), Guard(metric, 100.0))[1]
    score, is_accepted = judge(vectors, vectors.mean(axis=0) + (vectors - vectors.mean(axis=0)) / 2, Guard(metric, 100.0))
    assert not is_accepted and f"a guard of {metric} within 100 takes one answer for all rows" in score.ruin
    noise = 0.1 * vectors.std(axis=0) * np.asarray(np.random.default_rng(1).normal(size=vectors.shape), np.float32)
    assert judge(vectors, vectors + noise, Guard(metric, 100.0))[1]
    score, is_accepted = judge(vectors, vectors + np.float32(2.5) * noise, Guard(metric, 100.0))
    assert is_accepted if metric in ("mae", "mse") else "fidelity to the original is 0.9" in score.ruin


def test_metric_by_which_one_answer_is_better_than_the_original_gives_way() -> None:
    random = np.random.default_rng(9)
    scores = random.normal(size=(COUNT, 1)).astype(np.float32) * 8
    right = (scores + random.normal(size=scores.shape) > 0).astype(np.float32)
    # R2 of logits, with 0 and 1 as targets: the smaller they are, the better.
    assert judge(scores, scores * np.float32(0.98), Guard("r2", 0.1), "yes_no", right)[1]
    score, is_accepted = judge(scores, scores * np.float32(0.5), Guard("r2", 0.1), "yes_no", right)
    assert score.loss < 0 and not is_accepted and "a guard of r2 within 0.1 takes one answer for all rows" in score.ruin


def test_what_is_lost_is_named() -> None:
    vectors = make_vectors(0.1)
    said = {edit: judge(vectors, COLLAPSES[edit](vectors), Guard("kl"))[0].ruin for edit in COLLAPSES}
    assert said["mean"] == said["one-row"] == "it gives all 300 rows one answer, the original does not"
    assert said["shuffled"].startswith(
        "its answers do not depend on the input as the original's do: their correlation over rows "
    )
    assert said["hardly"].startswith(
        "its answers do not depend on the input as the original's do: beside their size, their spread"
    )
    assert said["column"] == "entry 3 of axis 1 of its answers is the same for all rows, of the original's it is not"


def soften(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["classes", "unknown"])
@pytest.mark.parametrize("metric", [None, "kl", "agreement", "cosine"])
@pytest.mark.parametrize("edit", ["mean", "one-row", "shuffled", "average"])
def test_classes_that_nearly_all_rows_have_hide_no_collapse(edit: str, metric: str | None, kind: Kind) -> None:
    random = np.random.default_rng(2)
    scores = random.normal(size=(COUNT, 4)) + np.array([6.0, 0, 0, 0])
    scores[: COUNT // 10, 1] += 9
    noisy = scores + 0.02 * random.normal(size=scores.shape)
    for answers, near in ((scores.astype(np.float32), noisy.astype(np.float32)), (soften(scores), soften(noisy))):
        for max_loss in (0.01, 0.2, 0.6):
            assert not judge(answers, COLLAPSES[edit](answers), Guard(metric, max_loss), kind)[1], max_loss
        assert judge(answers, near, Guard(metric, 0.05), kind)[1]


@pytest.mark.parametrize("targets", [None, "given"])
def test_one_label_for_all_rows_is_refused_however_wide_the_guard(targets: str | None) -> None:
    labels = np.repeat(["cat", "dog"], [COUNT - 20, 20])
    score, is_accepted = judge(labels, np.full(COUNT, "cat"), Guard("accuracy", 0.5), targets=targets and labels)
    assert not is_accepted and score.ruin == "it gives all 300 rows the answer cat, the original gives 20 of them another one"
    assert judge(labels, np.where(np.arange(COUNT) < COUNT - 10, "cat", "dog"), Guard("accuracy", 0.5))[1]
    chances = np.where(labels == "dog", 0.9, 0.1)[:, None] + 0.05 * np.random.default_rng(0).random((COUNT, 1))
    low = (chances / 2).astype(np.float32)
    score, is_accepted = judge(
        chances.astype(np.float32), low, Guard(None, 0.5), "yes_no", targets and (labels == "dog")[:, None]
    )
    assert not is_accepted and "it gives all 300 rows the answer False" in score.ruin


@pytest.mark.parametrize("edit", ["mean", "one-row", "shuffled"])
@pytest.mark.parametrize("metric", ["iou", "text"])
def test_maps_and_texts_that_are_alike_hide_no_collapse(metric: str, edit: str) -> None:
    random = np.random.default_rng(4)
    if metric == "iou":
        answers = np.clip(random.normal(0.02, 0.01, (COUNT, 8, 8)), 0, 1)
        answers[:, 2:6, 2:6] = random.uniform(0.7, 1.0, (COUNT, 4, 4))
    else:
        answers = soften(6 * np.eye(5)[np.tile([1, 2, 0, 3], (COUNT, 1))] + random.normal(size=(COUNT, 4, 5)))
    answers = answers.astype(np.float32)
    assert not judge(answers, COLLAPSES[edit](answers), Guard(metric, 0.3))[1]
    steps = np.round(answers * 255) / 255
    assert judge(answers, steps.astype(np.float32), Guard(metric, 0.3))[1]


def test_collapse_of_answers_that_differ_in_length_is_seen() -> None:
    random = np.random.default_rng(6)
    before = [soften(random.normal(size=(random.integers(2, 9), 6)) * 4) for _ in range(COUNT)]
    mean = np.concatenate(before).mean(axis=0)
    after = [np.broadcast_to(mean, row.shape) for row in before]
    dead = [np.where(np.arange(6) == 3, np.float32(0.1), row) for row in before]
    near = [np.float32(0.98) * row + np.float32(0.02 / 6) for row in before]
    for metric in ("kl", "text", "agreement", "max_difference"):
        guard = Guard(metric, 0.9) if metric != "kl" else Guard(metric, 50.0)
        assert not judge(before, after, guard)[1] and not judge(before, dead, guard)[1]
        assert judge(before, near, guard)[1]


def test_few_rows_that_are_lost_are_the_metrics_business() -> None:
    random = np.random.default_rng(7)
    maps = np.zeros((COUNT, 8, 8), np.float32)
    maps[np.arange(COUNT), random.integers(0, 5, COUNT)] = 0.9
    maps[[5, 200], 6] = 0.9
    missed = maps.copy()
    missed[[5, 200], 6] = 0
    for guard in (Guard("iou", 0.01), Guard("mae", 0.01)):
        score, is_accepted = judge(maps, missed, guard)
        assert is_accepted and score.loss > 0


def test_original_that_gives_one_answer_itself_has_nothing_to_lose() -> None:
    same = np.full((COUNT, 6), 0.3, np.float32)
    for metric in ("kl", "cosine", "mae", "max_difference", "fidelity"):
        for after in (same, same + np.float32(1e-4) * np.random.default_rng(0).normal(size=same.shape).astype(np.float32)):
            assert judge(same, after, Guard(metric))[1]


def test_version_that_has_learnt_may_answer_otherwise_but_not_all_rows_alike() -> None:
    random = np.random.default_rng(8)
    targets = random.normal(size=(COUNT, 1)).astype(np.float32)
    poor, better = random.normal(size=(COUNT, 1)).astype(np.float32), targets * np.float32(0.9)
    assert judge(poor, better, Guard(), "values", targets, is_retrained=True)[1]
    score, is_accepted = judge(poor, np.zeros_like(poor), Guard(), "values", targets, is_retrained=True)
    assert score.loss < 0 and not is_accepted and "it gives all 300 rows one answer" in score.ruin
