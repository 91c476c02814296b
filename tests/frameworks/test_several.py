"""Models of several inputs and outputs, of every framework, from the live object to the answers of a server."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from argosy.environment import find_interpreter
from tests.home import Home
from tests.scripts import ROOT

TOLERANCE = 1e-5
"""Of the largest magnitude: float32 kernels that may sum in another order."""

FRAMEWORKS = [
    pytest.param("torch", None, id="torch"),
    pytest.param("tensorflow", None, marks=pytest.mark.slow, id="tensorflow"),
    pytest.param("jax", None, marks=pytest.mark.slow, id="jax"),
    pytest.param("keras", "tensorflow", marks=pytest.mark.slow, id="keras-tensorflow"),
    pytest.param("keras", "jax", marks=pytest.mark.slow, id="keras-jax"),
    pytest.param("keras", "torch", marks=pytest.mark.slow, id="keras-torch"),
    pytest.param("mxnet", None, marks=pytest.mark.slow, id="mxnet"),
]

pytestmark = pytest.mark.timeout(300)


def publish(framework: str, backend: str | None, home: Home, *options: str) -> dict[str, list[tuple[Any, Any]]]:
    """Fill a home, and give the questions and answers of each model."""
    python = str(find_interpreter("mxnet")) if framework == "mxnet" else sys.executable
    command = [
        python,
        "-W",
        "ignore",
        "-m",
        "tests.frameworks.several",
        framework,
        str(home.store.home),
        str(home.files),
        *options,
    ]
    variables = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"KERAS_BACKEND": backend} if backend else {})
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[tuple[Any, Any]]] = {}
    for path in sorted(home.files.glob("*.npz")):
        with np.load(path) as kept:
            sides = [{name[len(side) :]: kept[name] for name in kept if name.startswith(side)} for side in ("in:", "out:")]
        found.setdefault(path.stem.partition("-")[0], []).append((sides[0], sides[1]))
    return found


def check(client: Any, name: str, inputs: Any, expected: Any) -> None:
    got = client.predict(name, inputs)
    assert {*got} == {*expected}
    for output, want in expected.items():
        assert got[output].shape == want.shape
        worst = float(np.abs(got[output] - want).max()) / float(np.abs(want).max())
        assert worst <= TOLERANCE, (name, output, worst)


@pytest.mark.parametrize("form", ["onnx", "native"])
@pytest.mark.parametrize(("framework", "backend"), FRAMEWORKS)
def test_server_answers_as_the_framework_does(framework: str, backend: str | None, form: str, home: Home) -> None:
    asked = publish(framework, backend, home, *(["native"] if form == "native" else []))
    versions = {name: home.store.get_version(name) for name in asked}
    runtimes = {version.manifest.runtime for version in versions.values()}
    assert runtimes <= ({"onnx", framework} if form == "onnx" else {framework})
    pair = versions["pair"].manifest
    assert {spec.name for spec in pair.signature.inputs} == {"left", "right"}
    assert [spec.name for spec in pair.signature.outputs] == ["output_0", "output_1"]
    assert (pair.signature.is_batched, pair.runtime) == (True, "onnx" if form == "onnx" else framework)
    assert not versions["states"].manifest.signature.is_batched
    labels = {spec.name: spec.labels for spec in versions["choice"].manifest.signature.outputs}
    assert labels == {"mixed": ("x", "y", "z"), "gate": None}
    with home.serve() as server, server.client() as client, ThreadPoolExecutor(8) as pool:
        for name in asked:
            server.deploy(name, allow_code=True)
        # Side by side, so that rows of several requests are joined where they may be.
        questions = [(name, *pair) for name, pairs in asked.items() for pair in pairs] * 4
        for done in [pool.submit(check, client, *question) for question in questions]:
            done.result()
