"""The runs behind benchmarks/optimizers.py: the race, the search without gradients, the cost of a step, the run that overfits."""

from __future__ import annotations

import functools
import importlib
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_args

import numpy as np

from argosy.errors import ModelError
from argosy.frameworks.base import Batch, FitOptions, count_weights, get_framework
from argosy.frameworks.layers import Conv, Dense, Flatten, Layer, MaxPool, Relu, draw_weights
from argosy.frameworks.torch import RuleOptimizer
from argosy.optim import Genetic, GradientFreeOptimizer, GradientOptimizer, LinearDecay, Optimizer, RandomSearch, get_optimizer
from argosy.optim.base import Form
from argosy.train import train
from argosy.train.data import iterate_batches
from argosy.train.datasets import Dataset, load_mnist
from argosy.train.free import FreeStep
from argosy.train.losses import resolve_loss
from optimizers_plot import Curve

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
EPOCHS = 3
BATCH_SIZE = 32
NUM_LAST = 100
"""Steps whose mean training loss is the loss at the end."""

NUM_PASSES = 1000
"""Forward passes of a search; a backward pass counts as two."""
NUM_SEARCH_ROWS = 128
SEARCH_PASSES = {"adam": 3, "random_search": RandomSearch().tries + 2, "genetic": Genetic().population + 1}
"""Of a step. One of those without gradients ends with a pass for the metrics."""

NUM_COSTLY = 5
"""Arrays of 1,000 x 1,000 weights whose update is timed: 5 M."""
NUM_TURNS = 50
NUM_FEW = 200
"""Rows of the run that overfits; a fifth of them are labelled at random."""
OVERFIT_EPOCHS = 60


class Run(NamedTuple):
    losses: list[float]
    """Of every step, on its batch; infinite from the step at which the run diverged."""
    accuracy: float
    """On the test rows, after the last step."""

    @property
    def end(self) -> float:
        return statistics.fmean(self.losses[-NUM_LAST:])


@functools.cache
def load() -> tuple[Dataset, Dataset]:
    return load_mnist()


def count_race_steps() -> int:
    return EPOCHS * math.ceil(len(load()[0].x) / BATCH_SIZE)


def race(name: str, form: Form, rate: float, seed: int) -> Run:
    """Let one rule train the network, its rate falling to zero over the run, as recipes do."""
    (x, y), testing = load()
    framework = get_framework("torch")
    rule = get_optimizer(name, learning_rate=LinearDecay(rate, count_race_steps()), form=form)
    losses: list[float] = []
    with framework.session(seed, 1):
        model = framework.build_network(NETWORK, x.shape[1:], draw_weights(NETWORK, x.shape[1:], seed))
        step = framework.build_step(model, "cross_entropy", rule, FitOptions(seed=seed))
        for epoch in range(EPOCHS):
            for rows in iterate_batches(len(x), BATCH_SIZE, shuffle=True, seed=seed, epoch=epoch):
                try:
                    losses.append(step(Batch(x[rows], y[rows]), len(losses) + 1)[0])
                except ModelError:
                    return Run(losses + [math.inf] * (count_race_steps() - len(losses)), 0.0)
        is_right: np.ndarray[Any, Any] = framework.predict(model, testing.x).argmax(axis=1) == testing.y
        return Run(losses, float(np.mean(is_right)))


@functools.cache
def shrink_rows() -> Dataset:
    """Give a few rows as mean grey values of 3 x 3 fields, scaled to mean 0 and variance 1."""
    x, y = load()[0]
    rows = np.random.default_rng(0).permutation(len(x))[:NUM_SEARCH_ROWS]
    blocks = x[rows, 0, :27, :27].reshape(-1, 3, 9, 3, 9)
    fields: np.ndarray[Any, Any] = blocks.mean(axis=(2, 4)).reshape(-1, 9)
    scaled: np.ndarray[Any, Any] = (fields - fields.mean(axis=0)) / fields.std(axis=0)
    return Dataset(scaled.astype(np.float32), y[rows])


def search(name: str, width: int, value: float, seed: int) -> Curve:
    """Let one rule fit a network with a hidden layer of some width (0: none) to the same rows at every step.

    `value` is Adam's learning rate, or the scale of a rule without gradients.
    """
    x, y = shrink_rows()
    layers: tuple[Layer, ...] = (Dense(width), Relu(), Dense(10)) if width else (Dense(10),)
    rule: Optimizer = get_optimizer(name, **{"learning_rate" if name == "adam" else "scale": value})
    framework = get_framework("torch")
    with framework.session(seed, 1):
        model = framework.build_network(layers, x.shape[1:], draw_weights(layers, x.shape[1:], seed))
        criterion = resolve_loss("cross_entropy", framework)
        passes, losses = [0], [criterion.compute(framework.predict(model, x), y)]
        if isinstance(rule, GradientFreeOptimizer):
            step: Any = FreeStep(framework, model, criterion, rule, seed)
        else:
            step = framework.build_step(model, "cross_entropy", rule, FitOptions(seed=seed))
        while passes[-1] + SEARCH_PASSES[name] <= NUM_PASSES:
            losses.append(step(Batch(x, y), len(losses))[0])
            passes.append(passes[-1] + SEARCH_PASSES[name])
        return Curve(passes, losses, count_weights(framework, model))


def time_rules(names: Iterable[str]) -> dict[tuple[str, str], float]:
    """Give the seconds of one update of 5 M weights in torch, without forward and backward pass; `torch`: its own rule's.

    All take turns, and the fastest turn of each counts, so that other work on the cores slows none more than the others.
    """
    torch: Any = importlib.import_module("torch")
    framework = get_framework("torch")
    with framework.session(0, 1):
        weights = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(NUM_COSTLY)]
        for weight in weights:
            weight.grad = torch.randn(1000, 1000)
        builtin = {
            "sgd": functools.partial(torch.optim.SGD, weights, lr=1e-6),
            "momentum": functools.partial(torch.optim.SGD, weights, lr=1e-6, momentum=0.9),
            "rmsprop": functools.partial(torch.optim.RMSprop, weights, lr=1e-6, alpha=0.9),
            "adam": functools.partial(torch.optim.Adam, weights, lr=1e-6),
        }
        steps: dict[tuple[str, str], Callable[[], object]] = {}
        for name in names:
            for form in get_args(Form):
                rule = get_optimizer(name, learning_rate=1e-6, form=form)
                assert isinstance(rule, GradientOptimizer)
                steps[name, form] = RuleOptimizer(weights, rule).step
            steps[name, "torch"] = builtin[name]().step
        seconds = dict.fromkeys(steps, math.inf)
        keys: list[tuple[str, str]] = [*steps]
        random = np.random.default_rng(0)
        for _ in range(NUM_TURNS):
            # In a new order each turn: what a rule leaves behind in the allocator doubles the next one's time.
            order: list[int] = random.permutation(len(keys)).tolist()
            for key in [keys[number] for number in order]:
                start = time.perf_counter()
                steps[key]()
                seconds[key] = min(seconds[key], time.perf_counter() - start)
    return seconds


def time_free(name: str) -> tuple[float, float]:
    """Give the seconds of one step on 5 M weights without its forward passes, and the most bytes held beside the weights."""
    rule = get_optimizer(name)
    assert isinstance(rule, GradientFreeOptimizer)
    weights = {f"w{number}": np.zeros((1000, 1000), np.float32) for number in range(NUM_COSTLY)}
    tracemalloc.start()
    state, random = rule.init_state(weights), np.random.default_rng(0)
    seconds = 0.0
    for _ in range(2):  # The first step of the genetic rule draws the population.
        start = time.perf_counter()
        weights, state = rule.search(weights, lambda tried: float(tried["w0"][0, 0]), state, random)
        seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, float(peak)


class Fit(NamedTuple):
    """What came of a run that overfits."""

    lowest: float
    """Lowest test loss of any epoch."""
    lowest_epoch: int
    loss: float
    """On the training rows after the last epoch."""
    test_loss: float
    """After the last epoch, as the accuracy."""
    test_accuracy: float


def overfit(name: str, rate: float, seed: int) -> Fit:
    """Fit a perceptron to few rows, a fifth of them labelled at random."""
    (x, y), testing = load()
    random = np.random.default_rng([7, seed])
    rows = random.permutation(len(x))[:NUM_FEW]
    labels = np.where(random.random(NUM_FEW) < 0.2, random.integers(0, 10, NUM_FEW), y[rows])
    layers: tuple[Layer, ...] = (Flatten(), Dense(256), Relu(), Dense(10))
    model = get_framework("torch").build_network(layers, x.shape[1:], draw_weights(layers, x.shape[1:], seed))
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
    tests = [epoch.validation_loss or math.inf for epoch in result.history]
    lowest = int(np.argmin(tests))
    last = result.history[-1]
    loss = result.evaluate(x[rows], labels)["loss"]
    return Fit(tests[lowest], lowest + 1, loss, tests[-1], last.validation_metrics["accuracy"])
