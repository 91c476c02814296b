"""Two workers take the steps of one in every framework, and go on where they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from argosy.environment import find_interpreter, lives_apart
from tests.scripts import ROOT

NEEDS_TENSORFLOW = pytest.mark.needs("tensorflow")
CASES = [
    pytest.param("torch", None, id="torch"),
    pytest.param("tensorflow", None, id="tensorflow", marks=NEEDS_TENSORFLOW),
    pytest.param("keras", "tensorflow", id="keras-on-tensorflow", marks=NEEDS_TENSORFLOW),
    pytest.param("mxnet", None, id="mxnet"),
    pytest.param("jax", None, id="jax"),
]
OTHERS = [pytest.param("keras", "jax", id="keras-on-jax"), pytest.param("keras", "torch", id="keras-on-torch")]
WITHIN = 1e-5
"""Of weights of the order of one."""


def run(framework: str, backend: str | None, folder: Path, *more: str) -> dict[str, Any]:
    python = find_interpreter(framework) if lives_apart(framework) else sys.executable
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3"} | ({"KERAS_BACKEND": backend} if backend else {})
    done = subprocess.run(
        [str(python), "-W", "ignore", "-m", "tests.frameworks.worker_run", framework, str(folder), *more],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("framework", "backend"), CASES)
def test_two_workers_take_the_steps_of_one_and_go_on_where_they_were(framework: str, backend: str | None, tmp_path: Path) -> None:
    assert run(framework, backend, tmp_path)["apart"] <= WITHIN


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("framework", "backend"), [*CASES, *OTHERS])
def test_workers_take_a_hundred_steps_of_one_and_are_resumed_bit_for_bit(
    framework: str, backend: str | None, tmp_path: Path
) -> None:
    found = run(framework, backend, tmp_path, "100")
    assert found["apart"] <= WITHIN
    assert found["resumed"] is True
