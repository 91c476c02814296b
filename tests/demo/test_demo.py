"""The demo: what its clients saw is counted, drawn and told as it was."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from argosy.demo.crowd import Seen
from argosy.demo.picture import draw_picture
from argosy.demo.timeline import Band, Phase, Timeline, measure_timeline

SVG = "{http://www.w3.org/2000/svg}"
START_S = 100.0
NAMES = {1: "version 1, float32", 2: "version 2 <int8>"}


def make_seen() -> Seen:
    """An answer every 5 ms for 2.2 s, each after 10 ms: by version 1 up to second 1.2, and then by version 2; one is wrong.

    Besides, a request that failed at second 0.3 after 200 ms.
    """
    done = np.arange(START_S + 0.0025, START_S + 2.2, 0.005)
    version = np.where(done < START_S + 1.2, 1, 2)
    rows = np.zeros((len(done) + 1, 6))
    rows[:-1, 0], rows[:-1, 1], rows[:-1, 2] = done - 0.01, 0.01, version
    rows[5, 4] = 1
    rows[-1] = (START_S + 0.1, 0.2, 0, 1, 0, 0)
    return Seen(rows, ())


PHASES = [
    Phase("before", START_S, START_S + 1.0),
    Phase("update", START_S + 1.0, START_S + 1.25, is_change=True),
    Phase("after update", START_S + 1.25, START_S + 2.2),
]


@pytest.fixture
def timeline() -> Timeline:
    return measure_timeline(make_seen(), PHASES)


def draw(timeline: Timeline) -> ET.Element:
    return ET.fromstring(draw_picture(timeline, title="Under 32 clients", note="2 cores", names=NAMES))


def list_texts(picture: ET.Element) -> dict[str, str]:
    return {text.text or "": text.attrib["class"] for text in picture.iter(f"{SVG}text")}


def test_answers_are_counted_by_the_half_second_and_the_version_that_gave_them(timeline):
    assert [window.start_s for window in timeline.windows] == [0.0, 0.5, 1.0, 1.5]  # the last 0.2 s are no whole window
    assert [window.rates for window in timeline.windows] == [{1: 200.0}, {1: 200.0}, {1: 80.0, 2: 120.0}, {2: 200.0}]


def test_p99_is_that_of_the_answers(timeline):
    assert [window.p99_ms for window in timeline.windows] == pytest.approx([10.0] * 4)


def test_window_without_an_answer_has_no_p99():
    nothing = measure_timeline(Seen(np.empty((0, 6)), ()), PHASES)
    assert all(np.isnan(window.p99_ms) and not window.rates for window in nothing.windows)
    assert nothing.bands == ()
    draw(nothing)


def test_bands_are_the_versions_that_answered(timeline):
    assert [band.version for band in timeline.bands] == [1, 2]
    assert [band.start_s for band in timeline.bands] == pytest.approx([0.0, 1.2])
    assert [band.end_s for band in timeline.bands] == pytest.approx([1.2, 2.2])


def test_failures_and_wrong_answers_are_counted(timeline):
    assert (timeline.num_requests, timeline.num_failed, timeline.num_wrong) == (441, 1, 1)


def test_picture_says_what_was_counted(timeline):
    texts = list_texts(draw(timeline))
    assert texts["441 requests, 1 failed, 1 wrong"] == "bad"
    assert {"Under 32 clients", "2 cores", "update, 0.25 s", *NAMES.values()} <= set(texts)


def test_picture_of_a_good_run_is_green(timeline):
    good = Timeline(timeline.span_s, timeline.windows, timeline.bands, timeline.changes, 441, 0, 0)
    assert list_texts(draw(good))["441 requests, 0 failed, 0 wrong"] == "good"


def test_bars_are_as_high_as_the_rates(timeline):
    bars = [rect for rect in draw(timeline).iter(f"{SVG}rect") if rect.attrib["class"].startswith("bar")]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert [bar.attrib["class"] for bar in bars] == ["bar v0", "bar v0", "bar v0", "bar v1", "bar v1"]
    assert [height / heights[0] for height in heights] == pytest.approx([1.0, 1.0, 0.4, 0.6, 1.0], abs=0.01)


def test_bands_of_the_picture_share_its_width_by_their_time(timeline):
    bands = [rect for rect in draw(timeline).iter(f"{SVG}rect") if rect.attrib["class"].startswith("band")]
    widths = [float(band.attrib["width"]) for band in bands]
    assert [width / sum(widths) for width in widths] == pytest.approx([1.2 / 2.2, 1.0 / 2.2], abs=0.001)


def test_a_version_keeps_its_colour_when_it_comes_back(timeline):
    again = Timeline(3.0, timeline.windows, (*timeline.bands, Band(1, 2.2, 3.0)), timeline.changes, 1, 0, 0)
    bands = [rect for rect in draw(again).iter(f"{SVG}rect") if rect.attrib["class"].startswith("band")]
    assert [band.attrib["class"] for band in bands] == ["band v0", "band v1", "band v0"]


def test_picture_can_be_read_in_light_and_dark(timeline):
    text = draw_picture(timeline, title="", note="", names=NAMES)
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    for rule in (".page", ".soft", ".grid", ".p99", ".good", ".v0", ".v1"):
        assert f"{rule} {{" in light and f"{rule} {{" in dark
    assert not re.search(r"url\(|<script|href", text)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_runs_its_acts_without_a_failed_or_wrong_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "argosy", "demo", "--json", "--report", "page.html", "--picture", "picture.svg"]
    variables = os.environ | {"ARGOSY_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, timeout=280)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["is_good"] and not result["problems"]
    assert [act["act"] for act in result["acts"]] == ["train", "compress", "deploy", "update", "roll back"]
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"</h1>\n<p class=\"lead\">[\d,]+ requests of 32 clients .*: 0 failed, 0 wrong\.</p>", page)
    ET.fromstring((tmp_path / "picture.svg").read_text())
