"""The tutorials of `examples/tutorials`: each trains, is published, and is served with the framework's own answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import argosy
from tests.scripts import ROOT, load_script

TUTORIALS = sorted(path.stem for path in (ROOT / "examples" / "tutorials").glob("*.py"))
NEEDED = {
    "autoencoder": "keras",
    "time_series": "keras",
    "two_inputs_keras": "keras",
    "lora": "peft",
    "table": "pyarrow",
    "pictures": "PIL",
}

_TOLERANCE = 1e-5
"""Largest difference of what is served, relative to the largest answer."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Any]:
    with argosy.serve(home=home) as running:
        yield running


@pytest.mark.timeout(120)  # beside much other work; alone it is seconds
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_trains_and_is_served_with_the_answers_of_its_framework(
    name: str, home: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", NEEDED.get(name, "torch")):
        pytest.importorskip(package)
    monkeypatch.setenv("ARGOSY_HOME", str(home))
    tutorial = load_script(f"examples/tutorials/{name}.py")
    result = tutorial.fit(epochs=1)
    assert np.isfinite(tutorial.measure(result.model))
    tutorial.publish(result)
    server.deploy(tutorial.NAME)
    with server.client() as client:
        served, expected = tutorial.ask(client, result)
    assert set(served) == set(expected)
    for output, answers in expected.items():
        assert served[output].shape == answers.shape
        np.testing.assert_allclose(served[output], answers, rtol=0, atol=_TOLERANCE * np.abs(answers).max())


def test_there_are_twelve_tutorials_and_the_page_lists_each() -> None:
    page = (ROOT / "docs" / "tutorials.md").read_text()
    assert len({name.removesuffix("_keras") for name in TUTORIALS}) == 12
    assert all(f"tutorials/{name}.py" in page for name in TUTORIALS)
