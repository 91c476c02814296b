"""Rows that were joined are watched: one in a thousand is run again alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argosy.serve.worker.agreement import choose_measure
from argosy.serve.worker.watch import PERIOD_ROWS, Escape, Watch

Arrays = dict[str, np.ndarray]
RAGGED: dict[str, Any] = {"inputs": {"x": {"axis": 1, "pad": 0.0}}, "outputs": {"y": 1}}


def watch(infer: Any, batch: np.ndarray, num_batches: int, ragged: Any = None) -> Escape | None:
    """Serve a batch again and again, with an idle moment after each; what is found."""
    seen = Watch(lambda inputs, form: {"y": infer(inputs["x"])}, choose_measure(""), ragged)
    for _ in range(num_batches):
        seen.note({"x": batch}, {"y": infer(batch)}, 0, len(batch))
        if seen.due_s is not None and (escape := seen.look()) is not None:
            return escape
    return None


def center(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0, keepdims=True)


def test_row_that_depends_on_others_is_found_within_ten_thousand() -> None:
    batch = np.arange(64, dtype="f4").reshape(16, 4)
    escape = watch(center, batch, 10_000 // 16)
    assert escape is not None and "output 'y' moved by" in escape.reason and escape.difference > 0.1


def test_row_that_is_its_own_is_left_alone() -> None:
    assert watch(lambda x: x * 2, np.ones((16, 4), "f4"), 5 * PERIOD_ROWS // 16) is None


def test_row_that_was_padded_is_looked_at_without_its_padding() -> None:
    batch = np.zeros((4, 6), "f4")
    batch[:, :3] = 1.0
    assert watch(lambda x: x * 2, batch, PERIOD_ROWS, RAGGED) is None
    # The mean is over the padding as well.
    escape = watch(lambda x: x - x.mean(1, keepdims=True), batch, PERIOD_ROWS, RAGGED)
    assert escape is not None


def test_answer_that_differs_at_each_run_says_nothing() -> None:
    random = np.random.default_rng(0)
    assert watch(lambda x: random.standard_normal(x.shape), np.ones((16, 4), "f4"), PERIOD_ROWS) is None


def test_row_that_fails_alone_is_an_escape() -> None:
    def infer(x: np.ndarray) -> np.ndarray:
        if len(x) == 1:
            raise ValueError("one row")
        return x

    escape = watch(infer, np.ones((8, 4), "f4"), PERIOD_ROWS)
    assert escape is not None and "fails alone (ValueError)" in escape.reason


@pytest.mark.parametrize("size", [1, 7, 64])
def test_one_row_in_a_thousand_is_run_again(size: int) -> None:
    runs: list[int] = []
    seen = Watch(lambda inputs, form: runs.append(1) or inputs, choose_measure(""), None)
    batch = {"x": np.ones((size, 2), "f4")}
    for _ in range(20 * PERIOD_ROWS // size):
        seen.note(batch, batch, 0, size)
        if seen.due_s is not None:
            seen.look()
    # Each twice, for an answer may differ at each run.
    assert 36 <= len(runs) <= 40
