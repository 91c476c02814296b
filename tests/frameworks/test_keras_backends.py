"""What Keras' tests say on TensorFlow holds on its other backends: of what is marked `backend`, and where slow tests run, of all.

A process has one backend for its life, which is why each has one of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from tests.frameworks.keras_models import BACKEND
from tests.scripts import ROOT

HERE = Path(__file__).parent
FILES = sorted(path for path in HERE.glob("test_keras*.py") if path != Path(__file__))
MARKED = pytest.mark.timeout(400)
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("variables", "tests"),
    [
        pytest.param({"KERAS_BACKEND": "jax"}, ("-m", "backend"), marks=MARKED, id="jax"),
        pytest.param({"KERAS_BACKEND": "torch"}, ("-m", "backend"), marks=MARKED, id="torch"),
        pytest.param({"KERAS_BACKEND": "jax"}, (), marks=SLOW, id="all of jax"),
        pytest.param({"KERAS_BACKEND": "torch"}, (), marks=SLOW, id="all of torch"),
        pytest.param({"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"}, ("-k", "float64"), marks=SLOW, id="jax, double precision"),
    ],
)
def test_on_backend(variables, tests):
    if BACKEND != "tensorflow":
        pytest.skip("this is the other run")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *tests, *map(str, FILES)],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
