"""The methods of argosy.search at equal trials on surfaces that are known, so that nothing but the methods is measured.

    python benchmarks/search_methods.py [SEEDS]

Four tables: an objective and a size under a guard; curves of 27 steps, with and without early stopping; a rate that has to fall
while it trains; precision by layer, where scores of each choice are known.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from argosy.errors import ConflictError
from argosy.search import Score, Study
from machine import describe_machine

SPACE = {"lr": "1e-4:1.0:log", "units": "8:256", "depth": "1:4", "act": ["relu", "gelu", "tanh"], "drop": "0.0:0.5"}
STEPS = 27
LAYERS = {f"layer{place}": ["int4", "int8", "float"] for place in range(12)}
MAX_LOSS = 1.0
START, DESCENT = 100.0, 96
"""Squared error before, and steps of noisy descent."""


def measure_accuracy(point: Mapping[str, Any]) -> float:
    """A network's, made up: a best learning rate, more units the better, and so on."""
    lost = 0.03 * (math.log10(point["lr"]) + 2.2) ** 2 + 0.6 / point["units"] + 0.01 * abs(point["depth"] - 2)
    return max(0.1, 0.985 - lost - 0.02 * (point["act"] == "tanh") - 0.08 * (point["drop"] - 0.15) ** 2)


def measure_size(point: Mapping[str, Any]) -> float:
    """Kilobytes."""
    return (point["units"] ** 2 * point["depth"] * 4 + point["units"] * 40) / 1e3


def compare_fronts(seeds: range) -> None:
    """Hypervolume and the smallest within the guard, after 60 trials."""
    print("| method | hypervolume: median (lowest to highest) | kB within the guard | ms a trial |\n|---|---|---|---|")
    for method in ("random", "tpe", "genetic"):
        volumes: list[float] = []
        sizes: list[float] = []
        started = time.perf_counter()
        for seed in seeds:
            objectives = {"accuracy": "maximize", "size": "minimize"}
            with Study(SPACE, objectives, method=method, seed=seed, guard={"accuracy": 0.96}) as study:
                for _ in range(60):
                    trial = study.ask()
                    point = trial.parameters
                    study.tell(trial, {"accuracy": measure_accuracy(point), "size": measure_size(point)})
                volumes.append(study.hypervolume({"accuracy": 0.9, "size": 400.0}))
                best = study.best()
                sizes.append(math.inf if best is None else best.values["size"])
        cost = 1e3 * (time.perf_counter() - started) / 60 / len(seeds)
        print(f"| {method} | {describe(volumes, 1)} | {describe(sizes, 0)} | {cost:.1f} |")


def compare_stopping(seeds: range) -> None:
    """Best accuracy and steps that were taken, of 60 trials of 27 steps each."""
    print("\n| method | bad trials | best accuracy: median (lowest to highest) | steps taken |\n|---|---|---|---|")
    for method, stops in [*itertools.product(("random", "tpe", "genetic"), (False, True)), ("hyperband", True)]:
        scores: list[float] = []
        num_steps = 0
        for seed in seeds:
            with Study(SPACE, {"accuracy": "maximize"}, method=method, seed=seed) as study:
                for _ in range(60):
                    num_steps += run_curve(study, stops)
                best = study.best()
                assert best is not None
                scores.append(best.values["accuracy"])
        part = num_steps / (60 * STEPS * len(seeds))
        print(f"| {method} | {'stopped early' if stops else 'run to their end'} | {describe(scores, 4)} | {part:.0%} |")


def run_curve(study: Study, stops: bool) -> int:
    """One trial; returns the steps that it took."""
    trial = study.ask()
    last = measure_accuracy(trial.parameters)
    for step in range(1, STEPS + 1):
        trial.report(step, last * (1 - 0.6 * math.exp(-step / 4)))
        if stops and trial.should_stop():
            study.stop(trial)
            return step
    study.tell(trial, last)
    return STEPS


def compare_schedules(seeds: range) -> None:
    """What is left of a squared error of 100 after 96 steps of noisy descent, at as many steps in all as 8 whole trials take."""
    print("\n| method | squared error left: median (lowest to highest) |\n|---|---|")
    best = START
    for _ in range(DESCENT):
        best = descend(best, best / (best + 1.0), 1)
    constant = min(descend(START, 10 ** (-3 + place / 200), DESCENT) for place in range(601))
    print(f"| the best schedule there is | {best:.4f} |\n| the best constant rate | {constant:.4f} |")
    for method in ("random", "tpe", "hyperband", "pbt"):
        print(f"| {method} | {describe([search_rate(method, seed) for seed in seeds], 4)} |")


def search_rate(method: str, seed: int) -> float:
    """The best of as many steps as 8 whole trials take; a trial of `pbt` is an interval of 8 steps."""
    kept: dict[int, float] = {}
    left = 8 * DESCENT
    with Study({"rate": "1e-3:1.0:log"}, method=method, seed=seed) as study:
        while left > 0:
            trial = study.ask()
            error = START if trial.parent is None else kept[trial.parent]
            for step in range(1, (8 if method == "pbt" else DESCENT) + 1):
                error = descend(error, trial.parameters["rate"], 1)
                left -= 1
                trial.report(step, error)
                if method != "pbt" and trial.should_stop():
                    study.stop(trial)
                    break
            else:
                kept[trial.number] = error
                study.tell(trial, error)
        best = study.best()
        assert best is not None
        return best.values["value"]


def descend(error: float, rate: float, steps: int) -> float:
    """The expected squared error on a parabola whose gradients have noise of variance 1."""
    for _ in range(steps):
        error = (1 - rate) ** 2 * error + rate**2
    return error


def compare_layers(seeds: range) -> None:
    """Cost within the guard, of 12 layers in one of three precisions each, after 10 and 60 trials."""
    print("\n| method | cost within the guard after 10 trials | after 60 |\n|---|---|---|")
    for method in ("random", "tpe", "genetic", "gradient"):
        columns: list[list[float]] = [[], []]
        for seed in seeds:
            for column, trials in zip(columns, (10, 60), strict=True):
                column.append(search_layers(method, seed, trials))
        print(f"| {method} | {describe(columns[0], 2)} | {describe(columns[1], 2)} |")


def search_layers(method: str, seed: int, trials: int) -> float:
    """Cost of the best within the guard, as a part of all layers in float; what is lost is not quite the sum of the scores."""
    random = np.random.default_rng(seed)
    losses, costs = random.lognormal(-1.5, 1.0, len(LAYERS)), random.uniform(1.0, 8.0, len(LAYERS))
    scores = {
        name: {"int4": Score(loss, cost / 8), "int8": Score(loss / 16, cost / 4), "float": Score(0.0, cost)}
        for name, loss, cost in zip(LAYERS, losses.tolist(), costs.tolist(), strict=True)
    }
    noise = random.uniform(0.6, 1.6, len(LAYERS))
    given = scores if method == "gradient" else None
    objectives = {"cost": "minimize", "loss": "minimize"}
    with Study(LAYERS, objectives, method=method, seed=seed, guard={"loss": MAX_LOSS}, scores=given) as study:
        for _ in range(trials):
            try:
                trial = study.ask()
            except ConflictError:  # The linear programme has no other point.
                break
            chosen = [scores[name][value] for name, value in trial.parameters.items()]
            lost = sum(score.loss * factor for score, factor in zip(chosen, noise.tolist(), strict=True))
            study.tell(trial, {"cost": sum(score.cost for score in chosen) / costs.sum(), "loss": lost})
        best = study.best()
        return math.inf if best is None else best.values["cost"]


def describe(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print the tables."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
    print(f"{describe_machine()}; {len(seeds)} seeds\n")
    compare_fronts(seeds)
    compare_stopping(seeds)
    compare_schedules(seeds)
    compare_layers(seeds)


if __name__ == "__main__":
    main()
