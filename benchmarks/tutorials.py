"""Train each tutorial of `examples/tutorials` by `argosy.train` and by the framework's own loop, over some seeds; serve it.

    python benchmarks/tutorials.py [--seeds 5] [--only text,gan]

A tutorial passes if the mean of its scores is not below that of the own loop (the 95 % interval of the difference over the seeds,
by Student's t, does not lie below zero), and what is served differs from the framework's answers by at most 1e-5 of the largest.
Exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from machine import describe_machine
from tutorial_loops import LOOPS

FOLDER = Path(__file__).parents[1] / "examples" / "tutorials"
COVERAGE = 0.95
SERVED_WITHIN = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", type=lambda names: names.split(","), default=[*LOOPS])
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    torch.set_num_threads(1)  # As the tutorials ask for; small models gain nothing by more.
    print(f"{describe_machine()}; {given.seeds} seeds; mean ± half of the interval of {COVERAGE:.0%}")
    print("| tutorial | argosy.train | own loop | difference | served, largest difference | s a run, own loop | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="tutorials-") as home:
        os.environ["ARGOSY_HOME"] = home
        passed = [run(name, range(given.seeds)) for name in given.only]
    sys.exit(0 if all(passed) else 1)


def run(name: str, seeds: Sequence[int]) -> bool:
    """Train by both ways, serve the last, and print a line."""
    import argosy

    tutorial = load(name)
    ours: list[float] = []
    own: list[float] = []
    spent = [0.0, 0.0]
    result: Any = None
    for seed in seeds:
        began = time.perf_counter()
        result = tutorial.fit(seed=seed)
        middle = time.perf_counter()
        model = LOOPS[name](tutorial, seed)
        spent[0] += middle - began
        spent[1] += time.perf_counter() - middle
        ours.append(tutorial.measure(result.model))
        own.append(tutorial.measure(model))
    tutorial.publish(result)
    with argosy.serve(tutorial.NAME) as server, server.client() as client:
        served, expected = tutorial.ask(client, result)
    gap = max(float(np.abs(served[output] - answers).max() / np.abs(answers).max()) for output, answers in expected.items())
    differences = [one - other for one, other in zip(ours, own, strict=True)]
    is_good = statistics.mean(differences) + half_width(differences) >= 0 and gap <= SERVED_WITHIN
    cells = [name, *map(show, (ours, own, differences)), f"{gap:.1e}", " , ".join(f"{part / len(seeds):.1f}" for part in spent)]
    print(f"| {' | '.join(cells)} | {'PASS' if is_good else 'FAIL'} |", flush=True)
    return is_good


def load(name: str) -> Any:
    spec = util.spec_from_file_location(f"tutorial_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def half_width(values: Sequence[float]) -> float:
    """Half of the interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return float("inf")
    return float(student.ppf((1 + COVERAGE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def show(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {half_width(values):.4f}"


if __name__ == "__main__":
    main()
