"""The page of a search, of names and values that nobody would choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from argosy.search import Float, Study
from argosy.search.report import write_report
from argosy.search.result import SearchResult


@pytest.mark.filterwarnings("error")
def test_page_of_odd_names_and_of_values_as_large_as_floats_go_is_written(tmp_path: Path) -> None:
    space = {"<script>x</script>": ["<b>", "$x$_^", "a\nb"], "$\\frac{a$": "0:1.0", "_hidden": Float(-8e307, 8e307)}
    with Study(space, {"<i>$m$": "minimize", "size": "maximize"}, method="random") as study:
        for number in range(8):
            trial = study.ask()
            if number % 4 == 3:
                study.fail(trial, "<script>y</script>")
                continue
            for step in (1, 2):
                trial.report(step, 1.7e308 * (-1) ** number)
            study.tell(trial, {"<i>$m$": 1.7e308 * (-1) ** number, "size": 1e308})
        result = SearchResult(
            "odd", study.space, study.objectives, study.method, {}, tuple(study.trials), tuple(study.front()), study.best(),
            None, study.importance(), tmp_path, "", 1.0,
        )  # fmt: skip
    write_report(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 5 and "1.7e+308" in page
    assert not any(word in page for word in ("<script>x", "<script>y", "<b>", "<i>"))
