"""Hold what a search of `argosy compress` chooses against every recipe of the catalogue, each measured as served.

    python benchmarks/compress_served.py [--models mlp,cnn,minilm] [--objective latency] [--repeats 3] [--recipes 99] [--finals 5]

1. The search: one call of `argosy.compress`, timed.
2. The grid: every recipe that the catalogue lists for the model is made, judged by the guard, and served beside the original,
   `--repeats` times; the time that this takes is that of an exhaustive search. Each row shows the latency that was expected of it
   (its own, and what serving adds to the original's) beside the one that a client saw.
3. The finals: the search's choice and the three best of the grid are served together, `--finals` times. The choice is compared,
   run by run, with the one that has the best median.

Wanted: a ratio of at least 0.95, the search in at most a quarter of the grid's time, and expected latencies within 10 %.
Needs the extras compress and minilm.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.bench.artifact import Artifact, open_version
from argosy.compress import Guard
from argosy.compress.catalogue import list_recipes
from argosy.compress.jury import Jury
from argosy.compress.kind import find_meaning
from argosy.compress.measure import Cost, Served
from argosy.compress.recipe import Recipe, run_recipe
from argosy.compress.result import Tried
from argosy.compress.run import compress
from argosy.compress.sample import split_sample, take_sample
from argosy.compress.served import Candidate, Stage
from argosy.compress.steps.base import Workshop
from argosy.errors import ArgosyError, ConflictError
from argosy.importers.onnx import import_onnx
from argosy.train.recipes import load_data_for
from argosy.train.recipes import run_recipe as train_recipe
from machine import describe_machine
from models import make_mlp
from ratios import Ratio, find_interval, judge

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

WIDTHS = (256, 2048, 2048, 64)


@dataclass(frozen=True)
class Case:
    """A model with rows of its kind, and how much may be lost."""

    version: argosy.Version
    data: Any
    guard: Guard


@dataclass(frozen=True)
class Point:
    """A recipe of the grid, measured."""

    recipe: Recipe
    artifact: Artifact
    before: Cost
    after: Cost
    seen: list[tuple[Served, Served]]

    def value(self, objective: str) -> float:
        """Of the objective, as a part of the original's: the less the better."""
        return statistics.median(read(new, objective) / read(old, objective) for old, new in self.seen)

    @property
    def latency(self) -> tuple[float, float]:
        """What was expected, from the original's alone, and what was seen; medians."""
        expected = statistics.median(old.p50_s + self.after.latency_s - self.before.latency_s for old, _ in self.seen)
        return expected, statistics.median(new.p50_s for _, new in self.seen)


def read(served: Served, objective: str) -> float:
    return served.p50_s if objective == "latency" else 1 / served.rows_per_s


def make_wide(store: argosy.Store, folder: Path) -> Case:
    """A perceptron of wide layers with random weights, and random rows."""
    rows = np.random.default_rng(3).standard_normal((600, WIDTHS[0])).astype("f4")
    return Case(import_onnx(store, make_mlp(folder / "mlp.onnx", WIDTHS), "mlp"), rows, Guard("cosine", 0.01))


def make_cnn(store: argosy.Store, folder: Path) -> Case:
    """The digits network, trained for three epochs, and its own rows with their labels."""
    version = train_recipe("digits", epochs=3, publish_as="cnn", store=store, progress=False).version
    assert version is not None
    data = load_data_for(version)
    assert data is not None
    images = np.concatenate([data[0].x, data[1].x])
    return Case(version, (images, np.concatenate([data[0].y, data[1].y])), Guard())


def make_minilm(store: argosy.Store, folder: Path) -> Case:
    """The sentence encoder, and sentences of the standard library's docstrings."""
    from minilm import publish_minilm, tokenize

    publish_minilm(store, folder)
    sentences = list_sentences()[:800]
    return Case(store.get_version("minilm"), [dict(tokenize([text])) for text in sentences], Guard("cosine", 0.003))


def list_sentences() -> list[str]:
    found: dict[str, None] = {}
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                for text in re.split(r"(?<=[.!?])\s+", ast.get_docstring(node) or ""):
                    words = " ".join(text.split())
                    if 20 < len(words) < 300:
                        found[words] = None
    sentences = list(found)
    np.random.default_rng(0).shuffle(sentences)
    return sentences


MODELS = {"mlp": make_wide, "cnn": make_cnn, "minilm": make_minilm}


def measure_grid(store: argosy.Store, case: Case, work: Path, options: argparse.Namespace) -> list[Point]:
    """Make, judge and serve every recipe; those that cannot be made, or lose too much, are told and left out."""
    parent = open_version(store, case.version)
    rows, targets = case.data if isinstance(case.data, tuple) else (case.data, None)
    calibration, _, sample = split_sample(take_sample(parent.signature, rows, targets, folder=parent.folder))
    workshop = Workshop(work / "made", calibration)
    found: list[Point] = []
    with (
        Stage(parent, case.version, sample.rows, work / "stage") as stage,
        Jury(parent, find_meaning(case.version), case.guard, sample, work / "jury") as jury,
    ):
        for recipe in list_recipes(parent, workshop)[: options.recipes]:
            title = Tried(recipe).title
            try:
                artifact = run_recipe(recipe, parent, workshop)
                judged = jury.judge(artifact, title, budget_s=1.0)
            except ArgosyError as error:
                print(f"  {title}: {error.message[:100]}", flush=True)
                continue
            if problem := case.guard.find_problem(judged.score):
                print(f"  {title}: {problem}", flush=True)
                continue
            candidate = Candidate(recipe, artifact, judged.after.threads)
            seen = serve_together(stage, [candidate], judged.before, options.repeats)[0]
            point = Point(recipe, artifact, judged.before, judged.after, seen)
            found.append(point)
            expected, got = point.latency
            print(
                f"  {title}: {point.value(options.objective):.3f} of the original; latency expected {expected * 1e3:.3f} ms,"
                f" seen {got * 1e3:.3f} ms ({expected / got - 1:+.1%})",
                flush=True,
            )
    return found


def serve_together(stage: Stage, candidates: list[Candidate], before: Cost, repeats: int) -> list[list[tuple[Served, Served]]]:
    """Serve candidates beside one another and the original, again and again; gives what was seen of each."""
    found: list[list[tuple[Served, Served]]] = [[] for _ in candidates]
    for _ in range(repeats):
        # Whatever the objective is, nobody is left out: all are to be compared.
        for seen, one in zip(found, stage.race(candidates, before, "size"), strict=True):
            if isinstance(one, str):
                sys.exit(f"cannot be served: {one}")
            seen.append(one)
    return found


def compare(store: argosy.Store, name: str, folder: Path, options: argparse.Namespace) -> bool:
    case = MODELS[name](store, folder)
    objective = options.objective
    before_s = time.monotonic()
    try:
        result = compress(
            case.version,
            objective=objective,
            data=case.data,
            guard=case.guard,
            publish=False,
            store=store,
            say=lambda text: print(f"  search: {text}", flush=True),
        )
    except ConflictError as error:
        # That no recipe is better is a choice, too: of the original.
        print(f"  search: {error.message[:200]}", flush=True)
        result = None
    search_s = time.monotonic() - before_s
    before_s = time.monotonic()
    grid = measure_grid(store, case, folder / f"grid-{name}", options)
    grid_s = time.monotonic() - before_s
    grid.sort(key=lambda point: point.value(objective))
    work = folder / f"finals-{name}"
    parent = open_version(store, case.version)
    rows, targets = case.data if isinstance(case.data, tuple) else (case.data, None)
    calibration, _, sample = split_sample(take_sample(parent.signature, rows, targets, folder=parent.folder))
    finals = {point.recipe: Candidate(point.recipe, point.artifact, point.after.threads) for point in grid[:3]}
    if result is not None and result.recipe not in finals:
        made = run_recipe(result.recipe, parent, Workshop(work / "made", calibration))
        finals[result.recipe] = Candidate(result.recipe, made, result.after.threads)
    with Stage(parent, case.version, sample.rows, work / "stage") as stage:
        seen = serve_together(stage, list(finals.values()), grid[0].before, options.finals)
    took = {recipe: [read(new, objective) for _, new in one] for recipe, one in zip(finals, seen, strict=True)}
    took[()] = [read(old, objective) for old, _ in seen[0]]
    choice = () if result is None else result.recipe
    best = min(((), *(point.recipe for point in grid[:3])), key=lambda recipe: statistics.median(took[recipe]))
    ratios = [other / mine for mine, other in zip(took[choice], took[best], strict=True)]
    ratio = Ratio(statistics.median(ratios), *find_interval(ratios), f"{len(ratios)}")
    errors = [abs(expected / got - 1) for expected, got in (point.latency for point in grid)]
    original = statistics.median(took[()])
    for what, recipe in (("the search chose", choice), (f"best of {len(grid)} is", best)):
        part = statistics.median(took[recipe]) / original
        print(f"{name}: {what} {Tried(recipe).title or 'the original'}: {part:.3f} of the original")
    print(f"{name}: ratio {ratio}, limit 0.95: {judge(0.95, math.inf, ratio)}")
    print(f"{name}: {search_s:.0f} s beside {grid_s:.0f} s: {search_s / grid_s:.2f} of the time, limit 0.25")
    print(
        f"{name}: expected latency is off by {statistics.median(errors):.1%}, at most {max(errors):.1%}, limit 10 %", flush=True
    )
    return ratio.high >= 0.95 and search_s <= 0.25 * grid_s and max(errors) <= 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--objective", default="latency", choices=("latency", "throughput"))
    parser.add_argument("--repeats", type=int, default=3, help="of each point of the grid, of at least 5 rounds each")
    parser.add_argument("--recipes", type=int, default=99, help="so many of the catalogue's alone")
    parser.add_argument("--finals", type=int, default=5)
    options = parser.parse_args()
    print(f"{describe_machine()}; {options.objective}")
    with tempfile.TemporaryDirectory(prefix="argosy-served-") as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        good = [compare(store, model, folder, options) for model in options.models.split(",")]
    print("PASS" if all(good) else "FAIL")


if __name__ == "__main__":
    main()
