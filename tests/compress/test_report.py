"""The page of a compression: what stands on it, that it asks for nothing, and how it draws what was tried."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from argosy.compress import CompressResult, Cost, Guard, Score, write_report
from argosy.compress.examples import Example, find_examples
from argosy.compress.kind import Meaning
from argosy.compress.measure import OBJECTIVES, Overhead, Served
from argosy.compress.plot import Point, draw_sensitivity, draw_tradeoff, find_front, list_points
from argosy.compress.result import Sensitivity, Tried
from argosy.compress.steps.int8 import Int8
from argosy.compress.steps.simplify import Simplify
from argosy.errors import InputError
from argosy.output_file import OutputFile

BEFORE = Cost(1000, 50_000_000, 0.1, 1e-4, 3e-4, 2e-5, 32, 0.0)
AFTER = Cost(300, 40_000_000, 0.1, 5e-5, 1e-4, 1e-5, 32, 0.0)
SCORE = Score("accuracy", 0.97, 0.965, 0.005, "evaluation", 400, "y", "it was trained <for> it", (-0.004, 0.014))
EXAMPLES = (
    Example(17, "class 3 (4.1)", "class 5 (4.2)", 0.4, changes_class=True),
    Example(2, "<b>", "1, 2", 0.1, changes_class=False),
)


@pytest.fixture
def result() -> CompressResult:
    ruined = dataclasses.replace(SCORE, after=0.1, loss=0.87, interval=(0.8, 0.9), ruin="its answers are far away")
    tried = (
        Tried((Simplify(),), SCORE, BEFORE, dataclasses.replace(AFTER, latency_s=9e-5), seconds=1.0),
        Tried((Int8(),), SCORE, BEFORE, AFTER, seconds=2.0, examples=EXAMPLES),
        Tried((Int8(per_channel=False),), ruined, BEFORE, AFTER, "its answers are far away", 3.0),
        Tried((Int8(ranges="entropy"),), problem="Compression method int8 cannot do <this> model", seconds=0.5),
    )
    parent: Any = SimpleNamespace(name="digits", number=1, manifest=SimpleNamespace(golden_is_synthetic=False))
    version: Any = SimpleNamespace(name="digits", number=2)
    guard = Guard("accuracy")
    return CompressResult(parent, version, (Int8(),), guard, SCORE, BEFORE, AFTER, "latency", tried, EXAMPLES)


def add_overhead(one: Tried, overhead: Overhead | None) -> Tried:
    costs = {name: cost for name in ("before", "after") if (cost := getattr(one, name)) is not None}
    return dataclasses.replace(one, **{name: dataclasses.replace(cost, overhead=overhead) for name, cost in costs.items()})


def read_page(path: Path) -> tuple[str, str]:
    """The page, and its words without the plot."""
    page = path.read_text()
    words = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    return page, re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", words[words.index("<body>") :]))


def test_page_tells_what_was_tried_and_what_it_came_to(result: CompressResult, tmp_path: Path) -> None:
    write_report(OutputFile(tmp_path / "page.html"), result)
    page, words = read_page(tmp_path / "page.html")
    for expected in (
        "Compression of digits@1",
        "int8, the best of 4 for latency: the file is 70.0% smaller",
        "It is digits@2.",
        "memory of a worker, alone 47.7 MiB 38.1 MiB 0.80",
        "model alone, one row, p99 300.0 us 100.0 us 0.33",
        "accuracy (400 evaluation rows) 0.9700 0.9650 (0.9560 to 0.9740)",
        "Lost 0.005 (with 95 % confidence -0.004 to 0.014), which is within the noise, allowed 0.01.",
        "1 simplify held 0.005",
        "2 int8 held, chosen 0.005 0.30 0.80 0.50 0.50 2.0 s",
        "3 int8(per_channel=False) its answers are far away 0.87",
        "4 int8(ranges=entropy) Compression method int8 cannot do &lt;this&gt; model 0.5 s",
        "17 class 3 (4.1) class 5 (4.2) another class",
        "2 &lt;b&gt; 1, 2 0.1",
    ):
        assert expected in words, expected
    assert "guard: 0.01" in page and page.count("<svg") == 1
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "<script" not in page


def test_page_tells_what_clients_saw_and_which_layers_are_sensitive(result: CompressResult, tmp_path: Path) -> None:
    seen = Served(2e-4, 9e-4, 3e-3, 8e-3, 8000.0, 32, 12_000_000, 5, 0.02)
    before = dataclasses.replace(BEFORE, served=seen, overhead=Overhead(1e-4, 1e-4, -38_000_000))
    after = dataclasses.replace(
        AFTER, served=dataclasses.replace(seen, p50_s=1.5e-4, rows_per_s=12000.0), overhead=before.overhead
    )
    others = [add_overhead(one, before.overhead) for one in result.tried]
    tried = (others[0], dataclasses.replace(result.tried[1], before=before, after=after), *others[2:])
    layers = (Sensitivity(("conv1",), 0.1), Sensitivity(("<fc>", "fc2"), 0.0), Sensitivity(("norm",), float("inf")))
    told = dataclasses.replace(result, before=before, after=after, tried=tried, sensitivity=layers)
    write_report(tmp_path / "page.html", told)
    page, words = read_page(tmp_path / "page.html")
    for expected in (
        "an answer to one client is 1.33 times faster (200.0 -&gt; 150.0 us); a row of 32 clients is 1.50 times faster",
        "medians of 5 rounds, which differ by 2%",
        "memory of a worker, served 11.4 MiB 11.4 MiB 1.00",
        "served, one client, p50 0.200 ms 0.150 ms 0.75",
        "served, one client, p99 0.900 ms 0.900 ms 1.00",
        "served, 32 clients, p99 8.000 ms 8.000 ms 1.00",
        "served, 32 clients, rows a second 8,000 12,000 1.50",
        "2 int8 held, chosen 0.005 0.30 0.80 0.50 0.50 0.75 1.50 2.0 s",
    ):
        assert expected in words, expected
    for expected in ("Time of an answer to one client", "conv1", "&lt;fc&gt; and 1 more", "How far the answers move"):
        assert expected in page, expected
    # What serving adds is the same for all, and so their times differ less than their own.
    assert [round(point.ratio, 3) for point in list_points(tried, OBJECTIVES["latency"])] == [0.95, 0.75, 0.75]
    write_report(tmp_path / "unserved.html", dataclasses.replace(result, unserved="it cannot be served: no room"))
    assert "It was not measured as served: it cannot be served: no room." in read_page(tmp_path / "unserved.html")[1]


@pytest.mark.parametrize("count", [1, 2, 24])
def test_any_names_of_layers_can_be_drawn(count: int) -> None:
    for name in ("layer." * 30, "$x^{", "\u5c42", "two\nlines"):
        assert "<svg" in draw_sensitivity([(f"{name}{place}", 0.1**place) for place in range(count)])


def test_page_of_a_given_recipe_and_of_answers_that_did_not_move(result: CompressResult, tmp_path: Path) -> None:
    alone = dataclasses.replace(result, tried=result.tried[1:2], objective="", examples=(), version=None)
    write_report(tmp_path / "page.html", alone)
    _, words = read_page(tmp_path / "page.html")
    assert "It was not published." in words and "the best of" not in words
    assert "No answer of output &#x27;y&#x27; to any of the rows is another one." in words
    with pytest.raises(InputError, match=r"page\.html") as caught:
        write_report(tmp_path / "page.html", alone)
    assert caught.value.key == "file_exists"


def test_front_is_what_nothing_else_is_better_than() -> None:
    points = [
        Point(number, ratio, loss, None, is_within=within)
        for number, (ratio, loss, within) in enumerate(
            [
                (0.5, 0.004, True),
                (0.4, 0.008, True),
                (0.6, 0.006, True),
                (0.2, 0.5, False),
                (0.9, -0.001, True),
                (2.0, -1.0, True),
            ]
        )
    ]
    assert [point.number for point in find_front(points)] == [1, 0, 4]


@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.001, 900.0), (-0.5, 0.02), (1e-9, 0.0)], ids=["none", "far", "gain", "tiny"])
@pytest.mark.parametrize("max_loss", [0.0, 0.01, 5.0])
def test_any_losses_can_be_drawn(losses: tuple[float, ...], max_loss: float) -> None:
    points = [Point(number, 0.1 + number, loss, (loss - 0.1, loss + 0.1), is_within=True) for number, loss in enumerate(losses)]
    drawing = draw_tradeoff(points, 0, objective="size", metric="r2", max_loss=max_loss)
    assert drawing.startswith("<svg") and "Size of the files" in drawing


def test_recipe_that_was_not_judged_is_no_point(result: CompressResult) -> None:
    points = list_points(result.tried, lambda cost: cost.latency_s)
    assert [(point.number, point.is_within) for point in points] == [(1, True), (2, True), (3, False)]
    assert points[1].ratio == 0.5


def cut(answers: Any) -> list[dict[str, Any]]:
    return [{"y": row[None]} for row in np.asarray(answers)]


def test_examples_are_the_rows_that_moved_most_and_changed_class_first() -> None:
    before = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[np.arange(50) % 4] * 9
    after = before.copy()
    after[7] += 2  # Far, and the same class.
    after[3, 3], after[3, 0] = after[3, 3] - 5, after[3, 0] + 6
    found = find_examples(cut(before), cut(after), "y", Meaning("classes", ""))
    assert [(one.row, one.changes_class) for one in found] == [(3, True), (7, False)]
    assert found[0].before.startswith("class 3 (") and found[0].after.startswith("class 0 (")
    assert found[1].moved == pytest.approx(2 / before.std(), rel=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "kind", "shown"),
    [
        pytest.param([[0.5], [-1.0]], [[-0.5], [-1.0]], "yes_no", ("yes (0.5)", "no (-0.5)"), id="yes-no"),
        pytest.param([["cat"], ["dog"]], [["cat"], ["emu"]], "unknown", ("dog", "emu"), id="labels"),
        pytest.param([[1.0] * 9], [[2.0] * 9], "values", ("1, 1, 1, 1 ... (9 numbers)", "2, 2, 2, 2 ... (9 numbers)"), id="many"),
        pytest.param([[1.0, 2.0]], [[1.0, np.nan]], "values", ("1, 2", "1, nan"), id="nan"),
    ],
)
def test_answers_are_printed_in_short(before: Any, after: Any, kind: Any, shown: tuple[str, str]) -> None:
    (found,) = find_examples(cut(before), cut(after), "y", Meaning(kind, ""))
    assert (found.before, found.after) == shown


def test_equal_answers_are_no_examples() -> None:
    assert find_examples(cut([[1.0], [2.0]]), cut([[1.0], [2.0]]), "y", Meaning("values", "")) == []
