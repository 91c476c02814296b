"""Race the optimizers, measure what each costs, and fill the tables and figures of docs/optimizers.md and of the method cards.

    python benchmarks/optimizers.py

Two processes of one thread each. No test row decides anything: learning rates are chosen by the training loss of a seed
that does not race.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from argosy.optim import OPTIMIZERS
from argosy.optim.base import FORMS, Form
from machine import describe_machine
from optimizers_plot import TITLES, WINDOW, Curve, Trace, draw_race, draw_search
from optimizers_runs import OVERFIT_EPOCHS, Run, load, overfit, race, search, time_free, time_rules

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CARDS = ROOT / "src" / "argosy" / "optim"

RULES = ("sgd", "momentum", "rmsprop", "adam")
FREE_RULES = ("random_search", "genetic")
SEEDS = range(5)
SEARCH_SEEDS = range(3)
TUNING_SEED = 99
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""A grid of the race is these times its centre."""
SEARCH_FACTORS = (0.3, 1.0, 3.0)
RATES: dict[tuple[str, Form], float] = {
    ("sgd", "common"): 0.1,  # The text form is the same rule, so that one races for both.
    ("momentum", "common"): 0.03,
    ("momentum", "text"): 0.3,
    ("rmsprop", "common"): 0.01,
    ("rmsprop", "text"): 0.01,
    ("adam", "common"): 0.01,
    ("adam", "text"): 0.003,
}
"""Centres of the grids of the race; a best rate at the edge of its grid would call for another."""
SEARCHES: dict[tuple[int, str], float] = {
    (0, "adam"): 1.0,
    (0, "random_search"): 0.1,
    (0, "genetic"): 0.3,
    (500, "adam"): 0.01,
    (500, "random_search"): 0.01,
    (500, "genetic"): 0.03,
    (5000, "adam"): 0.003,
    (5000, "random_search"): 0.003,
    (5000, "genetic"): 0.01,
}
"""Centres by the width of the hidden layer: 100, 10,010 and 100,010 weights. Of values as good to 0.01, the smallest is taken."""
OVERFITS = {"sgd": 0.1, "adam": 0.001}


class Place(NamedTuple):
    """What one rule in one form came to."""

    name: str
    form: Form
    ends: dict[float, float]
    """Loss at the end by learning rate, of the seed that does not race."""
    rate: float
    runs: list[Run]

    @property
    def label(self) -> str:
        return "both forms" if self.name == "sgd" else self.form


class Search(NamedTuple):
    """What one rule came to on a network of one size."""

    name: str
    value: float
    """The best of the grid: Adam's rate, the others' scale."""
    is_edge: bool
    curves: list[Curve]

    @property
    def middle(self) -> np.ndarray[Any, Any]:
        return np.median([curve.losses for curve in self.curves], axis=0)


def list_grid(centre: float, factors: Sequence[float]) -> list[float]:
    return [float(f"{centre * factor:.1g}") for factor in factors]


def run_all(pool: Executor, work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
    return list(pool.map(work, *zip(*jobs, strict=True)))


def hold_race(pool: Executor) -> list[Place]:
    entries: list[tuple[str, Form, float]] = [
        (name, form, rate) for (name, form), centre in RATES.items() for rate in list_grid(centre, FACTORS)
    ]
    tuned = run_all(pool, race, [(*entry, TUNING_SEED) for entry in entries])
    found: dict[tuple[str, Form], dict[float, float]] = {entry: {} for entry in RATES}
    for entry, run in zip(entries, tuned, strict=True):
        found[entry[0], entry[1]][entry[2]] = run.end
    best = {entry: min(ends, key=lambda rate: ends[rate]) for entry, ends in found.items()}
    runs = run_all(pool, race, [(*entry, best[entry], seed) for entry in RATES for seed in SEEDS])
    return [
        Place(entry[0], entry[1], found[entry], best[entry], runs[number * len(SEEDS) : (number + 1) * len(SEEDS)])
        for number, entry in enumerate(RATES)
    ]


def hold_search(pool: Executor) -> list[Search]:
    entries = [(name, width, value) for (width, name), centre in SEARCHES.items() for value in list_grid(centre, SEARCH_FACTORS)]
    tuned = run_all(pool, search, [(*entry, TUNING_SEED) for entry in entries])
    found: list[Search] = []
    for start in range(0, len(entries), len(SEARCH_FACTORS)):
        best = min(range(start, start + len(SEARCH_FACTORS)), key=lambda number: round(tuned[number].losses[-1], 2))
        curves = run_all(pool, search, [(*entries[best], seed) for seed in SEARCH_SEEDS])
        found.append(Search(entries[best][0], entries[best][2], best in (start, start + len(SEARCH_FACTORS) - 1), curves))
    return found


def tabulate(*rows: Iterable[object]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]])


def tabulate_race(places: list[Place]) -> str:
    rows: list[tuple[object, ...]] = [("rule", "form", "rate", "training loss", "test accuracy, %", "lowest", "loss 0.5 at step")]
    for place in places:
        accuracies = [100 * run.accuracy for run in place.runs]
        middle = np.median([np.convolve(run.losses, np.full(WINDOW, 1 / WINDOW), "valid") for run in place.runs], axis=0)
        reached = np.flatnonzero(middle < 0.5)
        rows.append(
            (
                TITLES[place.name],
                place.label,
                f"{place.rate:g}",
                f"{statistics.median(run.end for run in place.runs):.3f}",
                f"{statistics.median(accuracies):.1f}",
                f"{min(accuracies):.1f}",
                reached[0] + WINDOW if len(reached) else "never",
            )
        )
    return tabulate(*rows)


def tabulate_grids(places: list[Place]) -> str:
    header = ("rule", "form", "middle rate", *(f"x {factor:g}" for factor in FACTORS))
    return tabulate(
        header,
        *(
            (TITLES[place.name], place.label, f"{[*place.ends][2]:g}", *(f"{end:.2f}" for end in place.ends.values()))
            for place in places
        ),
    )


def tabulate_search(searches: list[Search]) -> str:
    rows: list[tuple[object, ...]] = [("weights", "rule", "rate or scale", "loss", "Adam is there after")]
    adams = {found.curves[0].num_weights: found for found in searches if found.name == "adam"}
    for found in searches:
        adam = adams[found.curves[0].num_weights]
        first = int(np.flatnonzero(adam.middle <= found.middle[-1])[0])
        there = f"{adam.curves[0].passes[first]:,} passes" if found.name != "adam" else ""
        value = f"{found.value:g}" + (" (end of the grid)" if found.is_edge else "")
        rows.append((f"{found.curves[0].num_weights:,}", TITLES[found.name], value, f"{found.middle[-1]:.3f}", there))
    return tabulate(*rows)


def tabulate_cost(seconds: Mapping[tuple[str, str], float], names: Iterable[str]) -> str:
    header = ("rule", *(f"form {form}, ms" for form in FORMS), "torch's own, ms")
    columns = (*FORMS, "torch")
    return tabulate(header, *((TITLES[name], *(f"{1e3 * seconds[name, column]:.1f}" for column in columns)) for name in names))


def tabulate_free_cost(costs: Mapping[str, tuple[float, float]]) -> str:
    header = ("rule", "s a step, beside its forward passes", "memory beside the weights, at its peak")
    return tabulate(header, *((TITLES[name], f"{spent:.1f}", f"{size / 1e6:,.0f} MB") for name, (spent, size) in costs.items()))


def tabulate_overfit(pool: Executor) -> str:
    end = f"after epoch {OVERFIT_EPOCHS}"
    rows = [("rule", "lowest test loss", "in epoch", f"training loss {end}", f"test loss {end}", f"test accuracy {end}")]
    for name, rate in OVERFITS.items():
        fits = run_all(pool, overfit, [(name, rate, seed) for seed in SEEDS])
        lowest, epoch, loss, test_loss, accuracy = (statistics.median(values) for values in zip(*fits, strict=True))
        rows.append(
            (f"{TITLES[name]}, {rate:g}", f"{lowest:.2f}", f"{epoch}", f"{loss:.3f}", f"{test_loss:.2f}", f"{accuracy:.3f}")
        )
    return tabulate(*rows)


def fill(path: Path, blocks: Mapping[str, str]) -> None:
    """Replace the blocks of a page that stand between `<!-- measured: NAME -->` and `<!-- end -->`."""
    text = path.read_text()
    for name, block in blocks.items():
        head, *rest = text.split(f"<!-- measured: {name} -->\n")
        if len(rest) != 1 or "<!-- end -->" not in rest[0]:
            raise SystemExit(f"{path} has {len(rest)} places for the block {name}, expected one that ends")
        tail = rest[0].partition("<!-- end -->")[2]
        text = f"{head}<!-- measured: {name} -->\n\n{block}\n\n<!-- end -->{tail}"
    path.write_text(text)


def describe(load_average: float) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = f"{describe_machine()} ({model[1] if model else 'unknown'})"
    return (
        f"`make bench-optimizers` on {machine}, {versions}, one thread a process, load average {load_average:.1f} at the start."
    )


def main() -> None:
    start, load_average = time.monotonic(), os.getloadavg()[0]
    load()
    seconds = time_rules(RULES)
    free_costs = {name: time_free(name) for name in FREE_RULES}
    print(f"costs {time.monotonic() - start:.0f} s", flush=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        overfits = tabulate_overfit(pool)
        places = hold_race(pool)
        print(f"race {time.monotonic() - start:.0f} s", flush=True)
        searches = hold_search(pool)
    traces = [Trace(p.name, p.label, np.array([run.losses for run in p.runs]), [run.accuracy for run in p.runs]) for p in places]
    draw_race(traces, DOCS / "optimizers.svg")
    draw_search([(found.name, found.curves) for found in searches], DOCS / "optimizers-free.svg")
    where = {"where": describe(load_average)}
    tables = {"race": tabulate_race(places), "grids": tabulate_grids(places), "search": tabulate_search(searches)}
    fill(DOCS / "optimizers.md", where | tables | {"cost": tabulate_cost(seconds, RULES)})
    for name in RULES:
        overfitted = {"overfit": overfits} if name == "adam" else {}
        fill(CARDS / f"{name}.md", where | {"cost": tabulate_cost(seconds, [name])} | overfitted)
    fill(CARDS / "free.md", where | {"cost": tabulate_free_cost(free_costs), "search": tables["search"]})
    assert {*RULES, *FREE_RULES} == set(OPTIMIZERS)
    assert all(math.isfinite(run.end) for place in places for run in place.runs)
    for table in (*tables.values(), overfits, tabulate_cost(seconds, RULES), tabulate_free_cost(free_costs)):
        print(f"\n{table}")
    print(f"\n{where['where']} {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
