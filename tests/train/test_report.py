from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from argosy.errors import InputError
from argosy.output_file import OutputFile
from argosy.train.report import Section, write_report
from argosy.train.result import Epoch

HISTORY = [Epoch(n, 1.0 / n, {"accuracy": 1 - 0.5 / n}, 1.2 / n, {"accuracy": 1 - 0.6 / n}, 0.5) for n in range(1, 6)]
CONFUSION = np.array([[41, 2], [3, 54]])


class Page(HTMLParser):
    """Collects visible text and whatever a browser would load, and checks that elements are closed."""

    void = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data.strip())


def make_png():
    out = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(out, format="png")
    return out.getvalue()


def write(tmp_path, **options):
    path = tmp_path / "report.html"
    write_report(OutputFile(path, overwrite=True), **{"history": HISTORY, **options})
    return path.read_text()


@pytest.mark.parametrize(
    ("change", "shown", "missing"),
    [
        pytest.param(lambda e: replace(e, metrics={} if e.number < 3 else e.metrics), (), ("Accuracy",), id="logged-late"),
        pytest.param(lambda e: replace(e, validation_metrics={}), ("Accuracy", "validation"), (), id="loss-alone"),
        pytest.param(lambda e: replace(e, validation_loss=None), ("Accuracy", "validation"), (), id="metric-alone"),
        pytest.param(
            lambda e: replace(e, validation_loss=None, validation_metrics={}), ("Accuracy",), ("validation",), id="neither"
        ),
    ],
)
def test_curve_shows_what_every_epoch_measured(change, shown, missing, tmp_path):
    words = " ".join(Page(write(tmp_path, history=[change(epoch) for epoch in HISTORY])).words)
    assert "Loss (mean of the rows)" in words
    assert all(word in words for word in shown) and not any(word in words for word in missing)


def test_report_shows_curve_matrix_and_sections(tmp_path):
    png = make_png()
    text = write(
        tmp_path,
        title="Run <1>",
        confusion=CONFUSION,
        labels=["cat", "dog & co"],
        sections=[Section(title="Rollout", text="No request failed.", figure=png, table=[("phase", "p99 (ms)"), ("load", 1.5)])],
    )
    page = Page(text)
    shown = " ".join(page.words)
    assert not page.open
    for expected in ("Run <1>", "Epoch", "Loss (mean of the rows)", "Accuracy (fraction of the rows)", "training", "validation"):
        assert expected in shown
    for expected in ("41", "54", "cat", "dog & co", "True class", "Predicted class", "95 of 100 rows are right (95.00%)"):
        assert expected in shown
    for expected in ("Rollout", "No request failed.", "p99 (ms)", "1.5", "5 epochs in 2.5 s"):
        assert expected in shown
    assert f"data:image/png;base64,{base64.b64encode(png).decode()}" in page.loads


def test_report_loads_nothing_from_elsewhere(tmp_path):
    text = write(tmp_path, confusion=CONFUSION, sections=[Section(title="A", figure=make_png())])
    assert all(target.startswith(("data:", "#")) for target in Page(text).loads)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", text)
    # What is left of the web is the names of the SVG's own XML namespaces.
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_report_begins_with_its_lead_and_opening(tmp_path):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    opening = [Section(title="The acts", figure=svg, table=[("act", "seen"), ("train", "98 %")], num_text_columns=2)]
    text = write(tmp_path, lead="0 of 9 <failed>", opening=opening)
    places = [text.index(part) for part in ("</h1>", "0 of 9 &lt;failed&gt;", "The acts", "Training curve")]
    assert places == sorted(places)
    assert f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" in Page(text).loads
    assert '<td class="text">98 %</td>' in text


def test_figures_take_the_colours_of_the_page(tmp_path):
    text = write(tmp_path, confusion=CONFUSION)
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert "var(--text)" in svg and "var(--first)" in svg and "var(--second)" in svg
    assert not re.search(r"#0[1-4]{5}", svg)
    assert "prefers-color-scheme: dark" in text
    assert min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)) >= 13


def test_equal_runs_give_equal_reports(tmp_path):
    assert write(tmp_path, confusion=CONFUSION) == write(tmp_path, confusion=CONFUSION)


@pytest.mark.parametrize(
    "name", ["long class name " * 9, "$x^{", "\u4f60\u597d", "two\nlines"], ids=["long", "formula", "letters", "lines"]
)
@pytest.mark.parametrize("count", [1, 3])
def test_any_names_of_classes_can_be_drawn(name, count, tmp_path):
    labels = [f"{name}{number}" for number in range(count)]
    text = write(tmp_path, confusion=np.eye(count, dtype=int), labels=labels)
    assert " ".join(labels[0].split())[-10:] in text


def test_history_without_validation_or_metrics_is_drawn(tmp_path):
    text = write(tmp_path, history=[Epoch(1, 0.5, {}, None, {}, 0.1)])
    shown = " ".join(Page(text).words)
    assert "Loss (mean of the rows)" in shown
    assert "validation" not in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"history": []}, "`history`", id="no-epochs"),
        pytest.param({"confusion": np.ones((2, 3))}, "a square matrix", id="not-square"),
        pytest.param({"confusion": CONFUSION, "labels": ["a"]}, "2 names", id="labels"),
        pytest.param({"sections": [Section(title="A", figure=b"GIF89a")]}, "a PNG file", id="not-png"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, words, tmp_path):
    with pytest.raises(InputError) as caught:
        write(tmp_path, **options)
    assert words in caught.value.message
    assert not (tmp_path / "report.html").exists()
