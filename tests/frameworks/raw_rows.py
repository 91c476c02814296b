"""Train on streams of raw rows and pictures, publish, and leave what the pipeline itself answers.

    python -m tests.frameworks.raw_rows FRAMEWORK HOME FOLDER

puts the versions `people` and `pictures` of one framework into the store HOME. FOLDER holds the data that `write_rows` made, and
gets the answers, FOLDER/people.npy and FOLDER/pictures.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import Conv, Dense, Flatten, Layer, Relu, draw_weights
from argosy.store.local import Store
from argosy.train.run import train

CITIES = ["Köln", "Paris, TX", 'the "city"', "Oslo"]


def write_rows(folder: Path) -> list[tuple[float, str, int, int]]:
    """Write a table, `people.csv`, and a folder of pictures; give the table's rows."""
    import csv

    from PIL import Image

    random = np.random.default_rng(5)
    ages, cities, levels = random.normal(40, 10, 300).round(3), random.integers(0, 4, 300), random.integers(1, 4, 300)
    rows = [(float(age), CITIES[city], int(level), int(age > 40)) for age, city, level in zip(ages, cities, levels, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("age", "city", "class", "label"), *rows])
    for number in range(12):
        path = folder / "pictures" / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (9, 7 + number, 3), np.uint8)).save(path)
    return rows


def train_on(name: str, framework: Any, layers: tuple[Layer, ...], shape: tuple[int, ...], stream: Any, store: Store) -> Any:
    """Train a network on a stream, publish it, and give its answers to all rows as they stand."""
    with framework.session(0, 1):
        model = framework.build_network(layers, shape, draw_weights(layers, shape, 0))
    result = train(model, stream, epochs=1, num_threads=1, progress=False)
    result.publish(name, store)
    return np.concatenate([result.predict(rows.inputs) for rows in stream.iterate(64)])


def main() -> None:
    name, home, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    framework, store = get_framework(name), Store(home)
    table = argosy.data.open(folder / "people.csv", targets="label")
    table = table.prepare(argosy.data.learn_row(table, numbers=["age"], categories=["city", "class"]))
    np.save(folder / "people.npy", train_on("people", framework, (Dense(8), Relu(), Dense(2)), (10,), table, store))
    pictures = argosy.data.open(folder / "pictures", size=[6, 6], resize="crop", scale=1 / 255, mean=0.5)
    layers = Conv(2), Flatten(), Dense(2)
    np.save(folder / "pictures.npy", train_on("pictures", framework, layers, (3, 6, 6), pictures, store))


if __name__ == "__main__":
    main()
