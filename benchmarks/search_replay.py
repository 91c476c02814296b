"""Gradient, random, genetic and TPE at equal trials on the same problems, measured once: recipes of MiniLM, networks for MNIST.

    python benchmarks/search_replay.py FOLDER [--small] [--seeds 5] [--plot docs/searching.svg]

FOLDER has the tables of benchmarks/search_tables.py, which take hours once: whichever is not there is left out. Each method
asks, and is told what was measured; the volume is that between its front within the guard and a point at the guard and at the
cost of the original (the largest network). Then trials of networks are stopped early, epoch by epoch as they were measured.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from argosy.compress.gradient import GradientPlan
from argosy.compress.recipe import get_recipe
from argosy.compress.space import COMPRESSED, RECIPE, RecipeSpace
from argosy.errors import ConflictError
from argosy.search import Record, Score, Space, Study
from argosy.search.journal import JOURNAL_FILE
from argosy.search.linear import LinearPlan
from argosy.search.methods import Plan
from argosy.search.space import Value
from machine import describe_machine
from search_tables import EPOCHS, MAX_LOSS, open_grid, open_mnist, read_table

METHODS: Final = ("random", "genetic", "tpe", "gradient")
STYLES: Final = {"random": "#9AA5B4", "genetic": "#D55E00", "tpe": "#0072B2", "gradient": "#007A57"}
WITHIN: Final = 0.02
"""Of the best error, which networks may lose."""

Points = dict[tuple[Any, ...], Record]


class Problem(NamedTuple):
    """A table, and what is to be found in it."""

    title: str
    space: Space
    points: Points
    objectives: dict[str, str]
    guard: dict[str, float]
    reference: dict[str, float]
    trials: int
    first: Sequence[dict[str, Value]]
    """Tried first by every method."""
    make_plan: Callable[[], Plan]
    """Of the method `gradient`."""


class OneAtATime:
    """Scores where nothing else gives them: each parameter is changed alone, from a point in the middle."""

    def __init__(self, space: Space, loss: str, cost: str) -> None:
        self._space, self._loss, self._cost = space, loss, cost
        values = {name: list(parameter.values or ()) for name, parameter in space.items()}
        middle = {name: known[len(known) // 2] for name, known in values.items()}
        self._looks = [middle]
        self._looks += [{**middle, name: value} for name in space for value in values[name] if value != middle[name]]

    def describe(self) -> Any:
        """Nothing else."""
        return None

    def choose(self, records: Sequence[Record]) -> dict[str, Value] | None:
        """First the looks, then what follows from them."""
        known = {tuple(record.parameters.values()): record for record in records}
        for look in self._looks:
            if tuple(look.values()) not in known:
                return look
        middle = known[tuple(self._looks[0].values())].values
        scores: dict[str, dict[Value, Score]] = {name: {} for name in self._space}
        for look in self._looks:
            found = known[tuple(look.values())].values
            score = Score(found[self._loss] - middle[self._loss], found[self._cost] - middle[self._cost])
            for name in self._space:
                if look is self._looks[0] or look[name] != self._looks[0][name]:
                    scores[name][look[name]] = score
        return LinearPlan(self._space, scores).choose(records)


def open_recipes(folder: Path) -> Problem:
    """Give the problem of MiniLM's recipes."""
    path = folder / "search" / "minilm"
    settings = find_settings(path)
    with open_grid(folder, "minilm", read_described(settings["space"]), settings["objectives"], settings["about"]) as study:
        space, points = read_table(study)
    looks: dict[str, Any] = json.loads((path / "looks.json").read_text())
    recipes = RecipeSpace([get_recipe("simplify")], 0)
    recipes.space, recipes.groups = space, [name for name in space if name != RECIPE]
    titles = [str(title) for title in space[RECIPE].values or ()]
    recipes.recipes = {title: get_recipe("int8" if title in looks else "simplify") for title in titles}
    first: list[dict[str, Value]] = [{RECIPE: title, **dict.fromkeys(recipes.groups, COMPRESSED)} for title in titles]
    return Problem(
        "recipes of MiniLM: loss of cosine and time of a row",
        space,
        points,
        settings["objectives"],
        {"loss": MAX_LOSS},
        {"loss": MAX_LOSS, "throughput": 1.0},
        min(len(points), len(first) + 16),
        first,
        lambda: GradientPlan(recipes, "throughput", lambda title: looks[title], lambda text: None),
    )


def find_settings(path: Path) -> dict[str, Any]:
    """Read what a journal searches."""
    for line in (path / JOURNAL_FILE).read_text().splitlines():
        found: Any = json.loads(line).get("user_attr", {}).get("search")
        if found:
            return found
    raise SystemExit(f"{path} is no table")


def read_described(given: dict[str, Any]) -> Space:
    """Give the space of `Space.describe`."""
    return Space({name: {"options": entry["options"]} for name, entry in given.items()})


def open_networks(folder: Path, *, is_small: bool) -> Problem:
    """Give the problem of MNIST's networks."""
    with open_mnist(folder, is_small=is_small) as study:
        space, points = read_table(study)
    best = min(record.values["error"] for record in points.values())
    largest = max(record.values["kB"] for record in points.values())
    bound = best + WITHIN
    objectives = {"error": "minimize", "kB": "minimize"}
    reference = {"error": bound * 1.0001, "kB": largest}
    return Problem(
        f"networks for MNIST: error (at most {bound:.3f}) and size",
        space,
        points,
        objectives,
        {"error": bound},
        reference,
        min(60, 2 * len(points) // 3),
        [],
        lambda: OneAtATime(space, "error", "kB"),
    )


def replay(problem: Problem, method: str, seed: int) -> list[float]:
    """Search a table; returns the volume after each trial, as part of what all of the table has."""
    whole = measure_whole(problem)
    plan = problem.make_plan() if method == "gradient" else None
    volumes: list[float] = []
    with Study(problem.space, problem.objectives, method=method, seed=seed, guard=problem.guard, plan=plan) as study:
        if plan is None:
            for point in problem.first:
                study.enqueue(point)
        while len(volumes) < problem.trials:
            try:
                trial = study.ask()
            except ConflictError:
                break
            known = problem.points[tuple(trial.parameters.values())]
            if known.state == "done":
                study.tell(trial, known.values, constraint=known.constraint)
            else:
                study.fail(trial, known.reason)
            volumes.append(study.hypervolume(problem.reference) / whole)
    return volumes


def measure_whole(problem: Problem) -> float:
    """The volume of the whole table."""
    with Study(problem.space, problem.objectives, method="random", guard=problem.guard) as study:
        for record in problem.points.values():
            study.enqueue(record.parameters)
            trial = study.ask()
            if record.state == "done":
                study.tell(trial, record.values, constraint=record.constraint)
            else:
                study.fail(trial, record.reason)
        return study.hypervolume(problem.reference) or 1.0


def compare(problem: Problem, seeds: range) -> dict[str, list[list[float]]]:
    """Print the table of a problem; returns volumes by method, seed and trial."""
    print(f"\n{problem.title}; {len(problem.points)} points measured, {problem.trials} trials, {len(seeds)} seeds\n")
    half = problem.trials // 2
    print(f"| method | part of the hypervolume of all points after {half} trials | after {problem.trials} | trials asked |")
    print("|---|---|---|---|")
    found: dict[str, list[list[float]]] = {}
    for method in METHODS:
        runs = found[method] = [replay(problem, method, seed) for seed in seeds]
        early, late = ([run[min(at, len(run)) - 1] for run in runs] for at in (half, problem.trials))
        asked = statistics.median(len(run) for run in runs)
        print(f"| {method} | {describe(early, 3)} | {describe(late, 3)} | {asked:.0f} |")
    return found


def compare_stopping(problem: Problem, seeds: range) -> None:
    """Print what early stopping saves on the networks as they were trained, for the error alone."""
    print(f"\n| method | bad trials | best error: median (lowest to highest) | epochs of {EPOCHS} taken |\n|---|---|---|---|")
    for method, stops in [(name, way) for name in ("random", "genetic", "tpe") for way in (False, True)] + [("hyperband", True)]:
        errors: list[float] = []
        taken = total = 0
        for seed in seeds:
            with Study(problem.space, {"error": "minimize"}, method=method, seed=seed) as study:
                for _ in range(problem.trials):
                    taken += run_curve(study, problem.points, stops)
                    total += EPOCHS
                best = study.best()
                errors.append(math.inf if best is None else best.values["error"])
        way = "stopped early" if stops else "run to their end"
        print(f"| {method} | {way} | {describe(errors, 4)} | {taken / total:.0%} |")


def run_curve(study: Study, points: Points, stops: bool) -> int:
    """Carry one trial out; returns the epochs that it took."""
    trial = study.ask()
    known = points[tuple(trial.parameters.values())]
    for epoch, error in known.steps.items():
        trial.report(epoch, error)
        if stops and trial.should_stop():
            study.stop(trial)
            return epoch
    study.tell(trial, known.values["error"])
    return EPOCHS


def draw(found: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Draw the volumes by trial: the median over the seeds as a line, the lowest to the highest as a band."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "argosy", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2 * len(found), 3.8), layout="constrained")
        for place, (title, methods) in enumerate(found.items()):
            axes: Any = figure.add_subplot(1, len(found), place + 1)
            for method, runs in methods.items():
                # A method that has ended stays where it is.
                length = max(map(len, runs))
                columns = list(zip(*([*run, *run[-1:] * (length - len(run))] for run in runs), strict=True))
                numbers = range(1, length + 1)
                middle = [statistics.median(column) for column in columns]
                axes.plot(numbers, middle, color=STYLES[method], label=method, linewidth=2)
                axes.fill_between(numbers, list(map(min, columns)), list(map(max, columns)), color=STYLES[method], alpha=0.15)
                axes.plot(length, middle[-1], "o", color=STYLES[method])
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("Trials")
            axes.set_ylabel("Part of the hypervolume of all points")
            axes.set_ylim(0, 1.05)
            axes.grid(color="#E4E7EC")
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
        path.write_text("\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")


def describe(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print the tables, and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    seeds = range(given.seeds)
    print(describe_machine())
    found: dict[str, dict[str, list[list[float]]]] = {}
    if (given.folder / "search" / "minilm" / "looks.json").exists():
        problem = open_recipes(given.folder)
        found[problem.title] = compare(problem, seeds)
    if (given.folder / "search" / ("mnist-small" if given.small else "mnist") / JOURNAL_FILE).exists():
        problem = open_networks(given.folder, is_small=given.small)
        found[problem.title] = compare(problem, seeds)
        compare_stopping(problem, seeds)
    if given.plot is not None and found:
        draw(found, given.plot)


if __name__ == "__main__":
    main()
