"""Train small problems in frameworks and in NumPy, and print how far apart the weights get.

    python -m tests.frameworks.trajectories FRAMEWORK[,FRAMEWORK] [few|quarter|all]

prints one JSON object: framework -> case -> largest difference of any weight after any of the steps from the float64 reference. A
quarter of the cases, if nothing is said, in which every rule meets every batch size and every problem; few of them: one for each
rule, form and option.
It runs in whatever environment the framework lives in, and needs NumPy and Argosy alone beside it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from argosy.frameworks.base import Batch, FitOptions, Framework, get_framework
from argosy.frameworks.layers import Dense, Layer, Relu, draw_weights
from argosy.optim import SGD, Adam, CosineDecay, GradientOptimizer, LinearDecay, Momentum, RMSprop, StepDecay

NUM_STEPS = 100
NUM_ROWS = 320
NUM_INPUTS = 10
BATCHES = {"one": 1, "32": 32, "full": NUM_ROWS, "short": 96}  # 96 rows leave a last batch of 32.

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Problem(NamedTuple):
    layers: tuple[Layer, ...]
    loss: str
    differentiate: Callable[[Arrays, Array, Array], Arrays]
    """Gradients of the loss at some weights, in the layout of `draw_weights`."""


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def _linear(factor: float) -> Callable[[Arrays, Array, Array], Arrays]:
    def differentiate(w: Arrays, x: Array, y: Array) -> Arrays:
        error = factor * (x @ w["dense1.weight"] + w["dense1.bias"] - y) / len(x)
        return {"dense1.weight": x.T @ error, "dense1.bias": error.sum(axis=0)}

    return differentiate


def _logistic(w: Arrays, x: Array, y: Array) -> Arrays:
    error = (_sigmoid(x @ w["dense1.weight"] + w["dense1.bias"]) - y) / len(x)
    return {"dense1.weight": x.T @ error, "dense1.bias": error.sum(axis=0)}


def _network(w: Arrays, x: Array, y: Array) -> Arrays:
    hidden = x @ w["dense1.weight"] + w["dense1.bias"]
    shown = np.maximum(hidden, 0.0)
    logits = shown @ w["dense2.weight"] + w["dense2.bias"]
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = exp / exp.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1.0
    error /= len(x)
    back = (error @ w["dense2.weight"].T) * (hidden > 0)
    return {
        "dense1.weight": x.T @ back,
        "dense1.bias": back.sum(axis=0),
        "dense2.weight": shown.T @ error,
        "dense2.bias": error.sum(axis=0),
    }


PROBLEMS = {
    "linear": Problem((Dense(1),), "half_mse", _linear(1.0)),
    "linear-mse": Problem((Dense(1),), "mse", _linear(2.0)),
    "logistic": Problem((Dense(1),), "binary_cross_entropy", _logistic),
    "network": Problem((Dense(16), Relu(), Dense(3)), "cross_entropy", _network),
}

_ALL = {"weight_decay": 0.01, "clip_norm": 0.05}
_SCHEDULES = {
    "sgd": StepDecay(0.1, steps=50, factor=0.5),
    "momentum": StepDecay(0.05, steps=50, factor=0.5),
    "rmsprop": LinearDecay(0.02, steps=80, warmup_steps=5),
    "adam": CosineDecay(0.01, steps=80, warmup_steps=5),
}
_RATES = {SGD: 0.1, Momentum: 0.05, RMSprop: 0.01, Adam: 0.02}


def list_rules() -> Iterator[tuple[str, GradientOptimizer, tuple[str, ...]]]:
    """Give a name, a rule, and the batch sizes that it is tried with."""
    for kind, form in itertools.product(_RATES, ("common", "text")):
        name = f"{kind.name}-{form}"
        yield name, kind(learning_rate=_RATES[kind], form=form), ("32",)
        yield f"{name}-all", kind(learning_rate=_SCHEDULES[kind.name], form=form, **_ALL), tuple(BATCHES)
    yield "momentum-nesterov", Momentum(learning_rate=0.05, nesterov=True), ("32",)
    yield "adam-decoupled", Adam(learning_rate=0.05, weight_decay=0.1, decoupled_decay=True), ("32",)
    yield "adam-epsilon", Adam(learning_rate=0.05, epsilon=1e-3), ("32",)


def list_cases(part: str = "all") -> Iterator[tuple[str, str, GradientOptimizer, str, str]]:
    for (place, (name, rule, batches)), (number, problem) in itertools.product(enumerate(list_rules()), enumerate(PROBLEMS)):
        for (index, batch), (kind, dtype) in itertools.product(enumerate(batches), enumerate(("float32", "float64"))):
            few = ((place + place // 4) % len(PROBLEMS), place // 2 % len(batches), (place // 2 + place // 4) % 2)
            is_chosen = {
                "few": (number, index, kind) == few and not name.endswith(("common", "text")),
                "quarter": (place // 2 + index) % len(PROBLEMS) == number,
                "all": True,
            }
            if is_chosen[part]:
                yield f"{problem}/{name}/{batch}/{dtype}", problem, rule, batch, dtype


def make_data(problem: str) -> tuple[Array, Array]:
    """Rows that float32 holds exactly, so that both types see the same ones."""
    random = np.random.default_rng(7)
    x = random.standard_normal((NUM_ROWS, NUM_INPUTS)).astype(np.float32).astype(np.float64)
    signal = x @ random.standard_normal((NUM_INPUTS, 3)) + random.standard_normal((NUM_ROWS, 3))
    if problem == "network":
        return x, signal.argmax(axis=1).astype(np.int64)
    y = (signal[:, :1] > 0) if problem == "logistic" else 0.5 * signal[:, :1].astype(np.float32)
    return x, y.astype(np.float64)


def iterate_batches(size: int) -> Iterator[slice]:
    starts = itertools.cycle(range(0, NUM_ROWS, size))
    for start in itertools.islice(starts, NUM_STEPS):
        yield slice(start, start + size)


def run_reference(
    problem: Problem, rule: GradientOptimizer, x: Array, y: Array, size: int, dtype: str = "float64"
) -> list[Arrays]:
    weights = {name: w.astype(dtype) for name, w in draw_weights(problem.layers, (NUM_INPUTS,), 3).items()}
    x, y = x.astype(dtype), y if y.dtype.kind == "i" else y.astype(dtype)
    state = rule.init_state(weights)
    trajectory: list[Arrays] = []
    for rows in iterate_batches(size):
        weights, state = rule.update(weights, problem.differentiate(weights, x[rows], y[rows]), state)
        trajectory.append(weights)
    return trajectory


def run_framework(
    framework: Framework, problem: Problem, rule: GradientOptimizer, x: Array, y: Array, size: int, dtype: str
) -> Iterator[list[Array]]:
    weights = {name: w.astype(dtype) for name, w in draw_weights(problem.layers, (NUM_INPUTS,), 3).items()}
    model = framework.build_network(problem.layers, (NUM_INPUTS,), weights)
    step = framework.build_step(model, problem.loss, rule, FitOptions())
    x = x.astype(dtype)
    y = y if y.dtype.kind == "i" else y.astype(dtype)
    for number, rows in enumerate(iterate_batches(size), start=1):
        step(Batch(x[rows], y[rows]), number)
        step.sync()
        got = framework.get_weights(model)
        yield [got[name] for name in framework.list_trainable(model)]


def measure_rounding(problem: str, rule: GradientOptimizer, batch: str) -> float:
    """How far NumPy's own float32 gets from the reference: what rounding alone does to this problem."""
    x, y = make_data(problem)
    exact, rounded = (run_reference(PROBLEMS[problem], rule, x, y, BATCHES[batch], dtype) for dtype in ("float64", "float32"))
    return max(float(np.max(np.abs(a[name] - b[name]))) for a, b in zip(exact, rounded, strict=True) for name in a)


def measure(framework: Framework, problem: str, rule: GradientOptimizer, batch: str, dtype: str) -> float:
    x, y = make_data(problem)
    reference = run_reference(PROBLEMS[problem], rule, x, y, BATCHES[batch])
    worst = 0.0
    for expected, got in zip(
        reference, run_framework(framework, PROBLEMS[problem], rule, x, y, BATCHES[batch], dtype), strict=True
    ):
        assert len(expected) == len(got)
        for want, array in zip(expected.values(), got, strict=True):
            assert array.dtype == dtype
            # Some frameworks keep a dense layer's matrix as (out, in); none of these is square.
            shown = array if array.shape == want.shape else array.T
            assert shown.shape == want.shape
            worst = max(worst, float(np.max(np.abs(shown - want))))
    return worst


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for name in sys.argv[1].split(","):
        framework = get_framework(name)
        with framework.session(0, 1):
            found[name] = {case: measure(framework, *parts) for case, *parts in list_cases("".join(sys.argv[2:]) or "quarter")}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
