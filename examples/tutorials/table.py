"""Tabular data with categories, from CSV: how far a car goes on a gallon.

The file is a stream; numbers are scaled and categories become places by a step that is learnt once and recorded with the version:
the server takes a line of the file as it stands.
"""

from __future__ import annotations

import atexit
import csv
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlxtend.data import autompg_data
from torch import nn

import argosy

NAME = "cars"
EPOCHS, BATCH_SIZE, RATE = 40, 32, 0.01
NUMBERS = ["cylinders", "displacement", "horsepower", "weight", "acceleration", "year"]
ORIGINS = {1: "usa", 2: "europe", 3: "japan"}


def make_model(seed: int, width: int = 10) -> nn.Module:
    """Numbers, and a place for each origin and for unknown ones."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))


@functools.cache
def write_files() -> tuple[Path, Path]:
    """Write the cars as two files, those to train on and those to test."""
    folder = tempfile.TemporaryDirectory(prefix="cars-")
    atexit.register(folder.cleanup)
    x, y = autompg_data()
    order = np.random.default_rng(0).permutation(len(x))
    files = Path(folder.name, "train.csv"), Path(folder.name, "test.csv")
    for path, rows in zip(files, (order[:300], order[300:]), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*NUMBERS, "origin", "mpg"])
            writer.writerows([*map(float, x[row, :6]), ORIGINS[int(x[row, 6])], float(y[row])] for row in rows)
    return files


def open_training() -> Any:
    path, _ = write_files()
    stream = argosy.data.open(path, targets="mpg")
    return stream.prepare(argosy.data.learn_row(stream, numbers=NUMBERS, categories=["origin"]))


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    return argosy.train(
        make_model(seed),
        open_training(),
        loss="mse",
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def read_test() -> tuple[np.ndarray, np.ndarray]:
    """The cars to test, as the model takes them."""
    training, (_, path) = open_training(), write_files()
    stream = argosy.data.open(path, targets="mpg").prepare(training.preprocess[0])
    rows = next(iter(stream.iterate(1000)))
    return rows.inputs, rows.targets


def measure(model: nn.Module) -> float:
    """The part of the variance of new cars' mileage that is told."""
    x, y = read_test()
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(x)).numpy().ravel()
    return float(1 - ((found - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, output_name="mpg")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers to lines of the file, less the mileage, and what the model answers to rows of the stream."""
    lines = write_files()[1].read_text().splitlines()[1:21]
    rows = [line.rpartition(",")[0].encode() for line in lines]
    return client.predict(NAME, {"row": rows}), {"mpg": result.predict(read_test()[0][:20])}


def main() -> None:
    result = fit()
    print(f"of new cars is told: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['mpg'][:3].ravel()}, in PyTorch {expected['mpg'][:3].ravel()}")


if __name__ == "__main__":
    main()
