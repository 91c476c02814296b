"""Trials with other rows: what a version's own examples do not show."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from argosy.serve.worker.agreement import choose_measure
from argosy.serve.worker.cores import run_apart
from argosy.serve.worker.row_trials import find_influence, make_rows

RANDOM = np.random.default_rng(0)
FLOATS = RANDOM.standard_normal((8, 4)).astype("f4")
IDS = RANDOM.integers(0, 50, (8, 4))
PIXELS = RANDOM.integers(0, 100, (8, 4)).astype("u1")
TABLE = RANDOM.standard_normal((50, 3)).astype("f4")

Function = Callable[[np.ndarray], np.ndarray]


def look_up(x: np.ndarray) -> np.ndarray:
    if ((x < 0) | (x >= 50)).any():
        raise IndexError("no such id")
    return TABLE[x.astype(int)].sum(1)


def scale_if_large(x: np.ndarray) -> np.ndarray:
    return x / 255.0 if x.max(initial=0) > 1 else x * 1.0


def soften_by_range(x: np.ndarray) -> np.ndarray:
    """60,000 probabilities, each below 1e-3, of logits that were rounded by the range of the whole batch."""
    step = np.abs(x).max() / 20
    logits = np.round(x / step) * step @ np.random.default_rng(1).standard_normal((4, 60_000)).astype("f4") * 0.1
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def try_out(function: Function, examples: np.ndarray, *, is_brief: bool = False) -> str:
    return find_influence(lambda inputs: {"y": function(inputs["x"])}, {"x": examples}, choose_measure(""), is_brief=is_brief)


@pytest.mark.parametrize(
    ("function", "examples"),
    [
        pytest.param(lambda x: x * 2, FLOATS, id="floats"),
        pytest.param(look_up, IDS, id="ids that not every number is"),
        pytest.param(look_up, IDS.astype("f4"), id="ids as floats"),
        pytest.param(lambda x: x.astype("f4") / 255, PIXELS, id="pixels"),
        pytest.param(lambda x: x - x.mean(1, keepdims=True), FLOATS.astype("f2"), id="half precision"),
    ],
)
def test_rows_that_are_their_own_are_joined(function: Function, examples: np.ndarray) -> None:
    assert try_out(function, examples) == ""


@pytest.mark.parametrize(
    ("function", "examples", "kind"),
    [
        pytest.param(scale_if_large, FLOATS, "small", id="scaled where one is large"),
        pytest.param(scale_if_large, PIXELS, "small", id="pixels scaled where one is large"),
        pytest.param(scale_if_large, IDS, "small", id="integers scaled where one is large"),
        pytest.param(soften_by_range, FLOATS, "large", id="small probabilities"),
        pytest.param(lambda x: x + np.where(np.isnan(x).any(), 1, 0), FLOATS, "not a number", id="where one is NaN"),
        pytest.param(lambda x: x + np.isinf(x).any(), FLOATS, "infinite", id="where one is infinite"),
        pytest.param(lambda x: x * (1 if (x >= 0).any(1).all() else 2), np.abs(FLOATS), "negative", id="where one is negative"),
        pytest.param(lambda x: x / len(x), FLOATS, "small", id="divided by the number of rows"),
        pytest.param(lambda x: x[::-1], FLOATS, "small", id="turned round"),
        pytest.param(lambda x: x[:1] if len(x) > 1 else x, FLOATS, "small", id="fewer rows"),
    ],
)
def test_rows_that_influence_one_another_are_found_out(function: Function, examples: np.ndarray, kind: str) -> None:
    found = try_out(function, examples)
    assert found, kind
    assert "rows" in found


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x + np.where(np.isnan(x).any(), 1, 0), id="where one is NaN"),
        pytest.param(lambda x: x + np.isinf(x).any(), id="where one is infinite"),
        pytest.param(lambda x: x + (x == 0).all(1).any(), id="where one is zero"),
        pytest.param(lambda x: x + 0 * x.max(), id="by what is no number"),
    ],
)
def test_one_batch_beside_a_proof_finds_out_what_numbers_of_other_rows_do(function: Function) -> None:
    assert try_out(function, FLOATS, is_brief=True)


def test_one_batch_beside_a_proof_takes_rows_that_are_their_own() -> None:
    assert try_out(lambda x: x - x.mean(1, keepdims=True), FLOATS, is_brief=True) == ""
    assert try_out(look_up, IDS, is_brief=True) == ""


def test_model_that_takes_no_batch_is_not_joined() -> None:
    def infer(x: np.ndarray) -> np.ndarray:
        if len(x) != 1:
            raise ValueError("one row at a time")
        return x

    assert "a batch of rows fails that it takes alone" in try_out(infer, FLOATS)


def test_row_that_asks_for_endless_work_or_memory_takes_no_part() -> None:
    def count_up(x: np.ndarray) -> np.ndarray:
        for _ in range(int(x.max())):
            pass
        return x * 2

    def reserve(x: np.ndarray) -> np.ndarray:
        bytearray(min(int(abs(x.max())), 1 << 50))
        return x * 2

    def leave(x: np.ndarray) -> np.ndarray:
        if (x == 0).all():
            raise SystemExit(1)
        return x * 2

    for function in (reserve, leave):
        assert try_out(function, IDS) == ""
    # Code is interrupted in copies of a process alone.
    found = run_apart(lambda: b"found: " + try_out(count_up, IDS).encode())
    assert found and b"fails that it takes alone" not in found


def test_row_that_takes_long_ends_by_itself_in_a_process_that_is_no_copy_and_takes_no_part() -> None:
    begun: list[float] = []
    ended: list[float] = []

    def wait(x: np.ndarray) -> np.ndarray:
        begun.append(1.0)
        time.sleep(1.2 if (x == 0).all() else 0.0)
        ended.append(1.0)
        return x / x.max() if (x == 0).all() else x * 2

    assert try_out(wait, FLOATS) == ""
    assert begun == ended


def test_version_without_examples_is_not_joined() -> None:
    assert "no examples" in find_influence(lambda inputs: inputs, {}, choose_measure(""), is_brief=False)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "?"])
def test_rows_have_the_datatype_and_reach_its_extremes(dtype: str) -> None:
    example = np.ones((1, 3), dtype)
    rows = dict(make_rows({"x": example}))
    assert all(row["x"].dtype == example.dtype and row["x"].shape == example.shape for row in rows.values())
    assert (rows["zero"]["x"] == 0).all()
    if dtype != "?":
        extremes = np.iinfo(dtype).max if dtype[0] in "iu" else np.finfo(dtype).max
        assert rows["extreme"]["x"].max() == extremes
    assert ("not a number" in rows) == dtype.startswith("f")


def test_input_alone_is_changed_where_there_are_several() -> None:
    example = {"ids": np.ones((1, 3), "i8"), "x": np.ones((1, 2), "f4")}
    rows = [row for kind, row in make_rows(example) if kind == "zero"]
    assert [(row["ids"].any(), row["x"].any()) for row in rows] == [(False, False), (False, True), (True, False)]


def test_texts_are_tried_with_other_texts() -> None:
    texts = np.array([[b"a"], [b"bc"]], dtype=object)
    rows = dict(make_rows({"x": texts[:1]}))
    assert rows["zero"]["x"].tolist() == [[b""]]
    assert len(rows["large"]["x"][0, 0]) > 100
    longest: Function = lambda x: np.array([[max(len(item[0]) for item in x)]] * len(x))  # noqa: E731
    assert try_out(longest, texts)
    assert try_out(lambda x: np.array([[len(item[0])] for item in x]), texts) == ""
