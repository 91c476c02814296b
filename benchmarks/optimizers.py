"""Race the optimizers, measure what each costs, and fill the tables and figures of docs/optimizers.md and of the method cards.

    python benchmarks/optimizers.py

Two processes of one thread each; three to four minutes on two quiet cores. No test row decides anything: learning rates
are chosen by the training loss of a seed that does not race.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe_machine
from optimizers_plot import Curve, draw_race, draw_search

from argosy.errors import ModelError
from argosy.frameworks.base import FitOptions, count_weights, get_framework
from argosy.frameworks.layers import Conv, Dense, Flatten, Layer, MaxPool, Relu, draw_weights
from argosy.frameworks.torch import RuleOptimizer
from argosy.optim import Adam, Genetic, GradientFreeOptimizer, GradientOptimizer, LinearDecay, Optimizer, RandomSearch, get_optimizer
from argosy.optim.base import FORMS, Form
from argosy.train import train
from argosy.train.data import Dataset, iterate_batches, load_mnist
from argosy.train.free import FreeStep
from argosy.train.losses import resolve_loss

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "src" / "argosy" / "optim"
PAGE = ROOT / "docs" / "optimizers.md"

NETWORK: tuple[Layer, ...] = (
    MaxPool(),  # 14 x 14 is enough to tell digits apart, and a step takes 2 ms instead of 7.
    Conv(8),
    Relu(),
    MaxPool(),
    Conv(16),
    Relu(),
    MaxPool(),
    Flatten(),
    Dense(32),
    Relu(),
    Dense(10),
)
EPOCHS = 5
BATCH_SIZE = 32
NUM_LAST = 100
"""Steps whose mean training loss is the loss at the end."""
SEEDS = range(5)
TUNING_SEED = 99
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
CENTRES: dict[tuple[str, Form], float] = {
    ("sgd", "common"): 0.1,
    ("sgd", "text"): 0.1,
    ("momentum", "common"): 0.03,
    ("momentum", "text"): 0.3,
    ("rmsprop", "common"): 0.003,
    ("rmsprop", "text"): 0.003,
    ("adam", "common"): 0.003,
    ("adam", "text"): 0.003,
}

WIDTHS = (0, 500, 5000)
"""Of the hidden layer of the networks that are searched without gradients: 100, 10,010 and 100,010 weights."""
SEARCHERS: dict[str, float] = {"adam": 0.01, "genetic": 0.03, "random_search": 0.03}
"""The centres of their grids: of Adam's rate, of the others' scale."""
SEARCH_SEEDS = range(3)
NUM_PASSES = 2000
NUM_SEARCH_ROWS = 256

NUM_COSTLY = 5
"""Arrays of 1,000 x 1,000 weights whose update is timed: 5 M."""
NUM_FEW = 200
"""Rows of the run that overfits; a fifth of them are labelled at random."""
OVERFIT_EPOCHS = 60


class Run(NamedTuple):
    losses: list[float]
    """Of every step, on its batch; infinite from the step at which the run diverged."""
    accuracies: list[float]
    """On the test rows, after every epoch."""

    @property
    def end(self) -> float:
        return statistics.fmean(self.losses[-NUM_LAST:])


@functools.cache
def load() -> tuple[Dataset, Dataset]:
    return load_mnist()


def race(rule: GradientOptimizer, seed: int) -> Run:
    (x, y), testing = load()
    framework = get_framework("torch")
    run = Run([], [])
    num_steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    with framework.session(seed, 1):
        model = framework.build_network(NETWORK, x.shape[1:], draw_weights(NETWORK, x.shape[1:], seed))
        step = framework.build_step(model, "cross_entropy", rule, FitOptions(seed=seed))
        for epoch in range(EPOCHS):
            for rows in iterate_batches(len(x), BATCH_SIZE, shuffle=True, seed=seed, epoch=epoch):
                try:
                    run.losses.append(step(x[rows], y[rows], len(run.losses) + 1)[0])
                except ModelError:
                    return Run(run.losses + [np.inf] * (num_steps - len(run.losses)), [0.0] * EPOCHS)
            run.accuracies.append(float(np.mean(framework.predict(model, testing.x).argmax(axis=1) == testing.y)))
    return run


def build_racer(name: str, form: Form, rate: float) -> GradientOptimizer:
    """Let the rate fall to zero over the run, as recipes do."""
    num_steps = EPOCHS * -(-len(load()[0].x) // BATCH_SIZE)
    rule = get_optimizer(name, learning_rate=LinearDecay(rate, num_steps), form=form)
    assert isinstance(rule, GradientOptimizer)
    return rule


def list_rates(centre: float) -> list[float]:
    return [float(f"{centre * factor:.1g}") for factor in FACTORS]


def run_all(pool: Executor, work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
    return list(pool.map(work, *zip(*jobs, strict=True)))


class Place(NamedTuple):
    """What one rule in one form came to."""

    name: str
    form: Form
    rates: list[float]
    tuned: list[float]
    """Loss at the end by rate, of the seed that does not race."""
    rate: float
    runs: list[Run]


def hold_race(pool: Executor) -> list[Place]:
    entries = [(name, form, rate) for (name, form), centre in CENTRES.items() for rate in list_rates(centre)]
    tuned = run_all(pool, race, [(build_racer(*entry), TUNING_SEED) for entry in entries])
    ends = {entry: run.end for entry, run in zip(entries, tuned, strict=True)}
    places: list[Place] = []
    for (name, form), centre in CENTRES.items():
        rates = list_rates(centre)
        losses = [ends[name, form, rate] for rate in rates]
        best = rates[int(np.argmin(losses))]
        runs = run_all(pool, race, [(build_racer(name, form, best), seed) for seed in SEEDS])
        places.append(Place(name, form, rates, losses, best, runs))
        print(f"{name:<9}{form:<7} rate {best:<6g} loss {statistics.median(run.end for run in runs):.4f}", flush=True)
    return places


def shrink_rows() -> Dataset:
    """Give the mean grey values of 3 x 3 fields, scaled to mean 0 and variance 1, of rows that hold every class alike."""
    x, y = load()[0]
    rows = np.random.default_rng(0).permutation(len(x))[:NUM_SEARCH_ROWS]
    fields = x[rows, 0, :27, :27].reshape(-1, 3, 9, 3, 9).mean(axis=(2, 4)).reshape(-1, 9)
    return Dataset(((fields - fields.mean(axis=0)) / fields.std(axis=0)).astype(np.float32), y[rows])


def search(rule: Optimizer, width: int, seed: int) -> Curve:
    """Fit a network of some width on the same rows at every step; loss by forward passes, a backward pass counted as two."""
    x, y = shrink_rows()
    layers: tuple[Layer, ...] = (Dense(width), Relu(), Dense(10)) if width else (Dense(10),)
    framework = get_framework("torch")
    passes, losses = [0], []
    with framework.session(seed, 1):
        model = framework.build_network(layers, x.shape[1:], draw_weights(layers, x.shape[1:], seed))
        criterion = resolve_loss("cross_entropy", framework)
        losses.append(criterion.compute(framework.predict(model, x), y))
        if isinstance(rule, GradientFreeOptimizer):
            step: Any = FreeStep(framework, model, criterion, rule, seed)
        else:
            step = framework.build_step(model, "cross_entropy", rule, FitOptions(seed=seed))
        # A step of a free rule ends with one more pass, for the metrics.
        num_passes = {"random_search": RandomSearch().tries + 2, "genetic": Genetic().population + 1}.get(rule.name, 3)
        while passes[-1] + num_passes <= NUM_PASSES:
            losses.append(step(x, y, len(losses))[0])
            passes.append(passes[-1] + num_passes)
        return Curve(passes, losses, count_weights(framework, model))


def build_searcher(name: str, value: float) -> Optimizer:
    return get_optimizer(name, **{"learning_rate" if name == "adam" else "scale": value})


class Search(NamedTuple):
    """What one rule came to on a network of one width."""

    name: str
    num_weights: int
    value: float
    """The best of the grid: Adam's rate, the others' scale."""
    curves: list[Curve]


def hold_search(pool: Executor) -> list[Search]:
    entries = [(name, width, value) for width in WIDTHS for name, centre in SEARCHERS.items() for value in list_rates(centre)]
    tuned = run_all(pool, search, [(build_searcher(name, value), width, TUNING_SEED) for name, width, value in entries])
    found: list[Search] = []
    for start in range(0, len(entries), len(FACTORS)):
        best = min(range(start, start + len(FACTORS)), key=lambda number: tuned[number].losses[-1])
        name, width, value = entries[best]
        curves = run_all(pool, search, [(build_searcher(name, value), width, seed) for seed in SEARCH_SEEDS])
        found.append(Search(name, curves[0].num_weights, value, curves))
        ends = " ".join(f"{curve.losses[-1]:.3f}" for curve in tuned[start : start + len(FACTORS)])
        print(f"{name:<14}{curves[0].num_weights:>8,} weights, best {value:<6g} of {ends}", flush=True)
    return found


def time_rule(name: str, form: Form) -> float:
    """Give the seconds of one update of 5 M weights in torch, without forward and backward pass."""
    torch: Any = importlib.import_module("torch")
    weights = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(NUM_COSTLY)]
    for weight in weights:
        weight.grad = torch.randn(1000, 1000)
    rule = get_optimizer(name, form=form)
    assert isinstance(rule, GradientOptimizer)
    return time_calls(RuleOptimizer(weights, rule).step, 20)


def time_builtin(name: str) -> float:
    """Give the seconds of one update of 5 M weights by torch's own optimizer."""
    torch: Any = importlib.import_module("torch")
    weights = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(NUM_COSTLY)]
    for weight in weights:
        weight.grad = torch.randn(1000, 1000)
    builders = {
        "sgd": lambda: torch.optim.SGD(weights, lr=0.01),
        "momentum": lambda: torch.optim.SGD(weights, lr=0.01, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(weights, lr=0.001, alpha=0.9),
        "adam": lambda: torch.optim.Adam(weights),
    }
    return time_calls(builders[name]().step, 20)


def time_calls(work: Callable[[], object], num_calls: int) -> float:
    seconds: list[float] = []
    for _ in range(num_calls + 2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def time_free(name: str) -> tuple[float, float]:
    """Give the seconds of one step on 5 M weights without its forward passes, and the bytes that it needs at its peak."""
    rule = get_optimizer(name)
    assert isinstance(rule, GradientFreeOptimizer)
    weights = {f"w{number}": np.zeros((1000, 1000), np.float32) for number in range(NUM_COSTLY)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state, random = rule.init_state(weights), np.random.default_rng(0)
    seconds: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        weights, state = rule.search(weights, lambda tried: float(tried["w0"][0, 0]), state, random)
        seconds.append(time.perf_counter() - start)
    return seconds[-1], 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def overfit(name: str, rate: float, seed: int) -> list[tuple[float, float, float]]:
    """Fit a perceptron to few rows, a fifth of them labelled at random: training loss, test loss, test accuracy by epoch."""
    (x, y), testing = load()
    random = np.random.default_rng([7, seed])
    rows = random.permutation(len(x))[:NUM_FEW]
    labels = np.where(random.random(NUM_FEW) < 0.2, random.integers(0, 10, NUM_FEW), y[rows])
    layers: tuple[Layer, ...] = (Flatten(), Dense(256), Relu(), Dense(10))
    framework = get_framework("torch")
    model = framework.build_network(layers, x.shape[1:], draw_weights(layers, x.shape[1:], seed))
    result = train(
        model,
        (x[rows], labels),
        optimizer=get_optimizer(name, learning_rate=rate),
        epochs=OVERFIT_EPOCHS,
        seed=seed,
        validation_data=testing,
        num_threads=1,
        progress=False,
    )
    return [(epoch.loss, epoch.validation_loss or 0.0, epoch.validation_metrics["accuracy"]) for epoch in result.history]
