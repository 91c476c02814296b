"""One optimizer definition, the same trajectory everywhere: every framework against the NumPy reference in float64.

Four rules in two forms, with and without schedule, weight decay and clipping; linear and logistic regression and a small
network; batches of 1, 32, all rows, and with a short last one; 100 steps. Every rule, form and option once (11 cases); a
quarter of the combinations (86) where slow tests run; all 344 with TRAJECTORIES=all (`make trajectories`, half an hour:
frameworks that compile do so for each).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest

from argosy.environment import find_interpreter, lives_apart
from tests.frameworks.trajectories import list_cases, measure_rounding
from tests.scripts import ROOT

NEEDS_TENSORFLOW = pytest.mark.needs("tensorflow")
# Keras beside its backend, in the same process.
PROCESSES = [
    pytest.param(("torch", "keras"), "torch", id="torch"),
    pytest.param(("tensorflow", "keras"), "tensorflow", id="tensorflow", marks=NEEDS_TENSORFLOW),
    pytest.param(("jax", "keras"), "jax", id="jax"),
    pytest.param(("mxnet",), None, id="mxnet"),
]

# 4 rules x 2 forms with everything, and 3 more; (1 plain + 4 batches with everything), in 2 types; by 4 problems.
COUNTS = {"few": 4 * 2 + 3, "quarter": (4 * 2 * 5 + 3) * 2, "all": (4 * 2 * 5 + 3) * 2 * 4}
MANY = os.environ.get("TRAJECTORIES", "quarter")

FLOAT32, FLOAT64 = 5e-6, 1e-12
"""Of the convex problems. NumPy's own float32 is up to 2e-6 away after 100 steps."""
NETWORK = {"float32": 1e-4, "float64": 1e-11}
"""Of the network: where a unit is near the kink of its ReLU, a rounding error changes which way it goes."""
ROUNDING = 5.0
"""A network whose float32 run in NumPy gets further away than `NETWORK` may get this many times as far as that run."""
KERAS_ON_TORCH = 1e-6
"""Keras keeps some numbers of the torch backend in float32, so there the network has float32's tolerance in float64 too."""


def run(frameworks: tuple[str, ...], backend: str | None, part: str) -> dict[str, dict[str, float]]:
    python = find_interpreter(frameworks[0]) if lives_apart(frameworks[0]) else sys.executable
    variables = {"JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"KERAS_BACKEND": backend} if backend else {})
    done = subprocess.run(
        [str(python), "-W", "ignore", "-m", "tests.frameworks.trajectories", ",".join(frameworks), part],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@cache
def rounding_of_network(case: str) -> float:
    return next(measure_rounding(problem, rule, batch) for name, problem, rule, batch, _ in list_cases() if name == case)


def allowed(case: str, *, is_keras_on_torch: bool) -> float:
    problem, *_, dtype = case.split("/")
    if problem == "network" and dtype == "float32":
        return max(NETWORK[dtype], ROUNDING * rounding_of_network(case))
    if problem == "network":
        return NETWORK["float32" if is_keras_on_torch else dtype]
    if dtype == "float32":
        return FLOAT32
    return KERAS_ON_TORCH if is_keras_on_torch else FLOAT64


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("few", marks=pytest.mark.timeout(240)),
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
@pytest.mark.parametrize(("frameworks", "backend"), PROCESSES)
def test_framework_follows_the_reference(frameworks: tuple[str, ...], backend: str | None, part: str) -> None:
    found = run(frameworks, backend, part)
    assert tuple(found) == frameworks
    for framework, distances in found.items():
        assert len(distances) == COUNTS[part]
        is_keras_on_torch = (framework, backend) == ("keras", "torch")
        too_far = {
            case: value for case, value in distances.items() if not value <= allowed(case, is_keras_on_torch=is_keras_on_torch)
        }
        assert (framework, too_far) == (framework, {})
