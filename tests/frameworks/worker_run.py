"""Train a small network with one worker and with several, whose run ends early and is resumed; print how the weights differ.

    python -m tests.frameworks.worker_run FRAMEWORK FOLDER [NUM_STEPS]

Prints as JSON the largest difference of a weight between one worker and several, as `apart`; with a number of steps also whether
a resumed run gives the weights of an undisturbed one bit for bit, as `resumed`. The network that is compared has neither dropout
nor batch normalisation; the one that is resumed then has both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Relu, draw_weights
from argosy.optim import Adam
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train

PLAIN = (Conv(4), Relu(), Flatten(), Dense(16), Relu(), Dense(3))
RANDOM = (Conv(4), BatchNorm(), Relu(), Flatten(), Dropout(0.3), Dense(16), Relu(), Dense(3))
ROW = (1, 6, 6)
NUM_ROWS = 100
BATCH_SIZE = 22
"""The last of an epoch has 12."""


def make_data() -> tuple[Any, Any, Any]:
    """Rows with weights, so that they count unequally."""
    random = np.random.default_rng(0)
    x = random.standard_normal((NUM_ROWS, *ROW)).astype(np.float32)
    return x, random.integers(0, 3, NUM_ROWS), random.uniform(0.5, 2.0, NUM_ROWS).astype(np.float32)


def fit(name: str, layers: Any, workers: int, epochs: int, **options: Any) -> dict[str, Any]:
    framework = get_framework(name)
    model = framework.build_network(layers, ROW, draw_weights(layers, ROW, 0))
    options = {"optimizer": Adam(learning_rate=0.003), "batch_size": BATCH_SIZE, "progress": False, **options}
    train(model, make_data(), workers=workers, epochs=epochs, **options)
    return framework.get_weights(model)


def fit_in_two(name: str, layers: Any, workers: int, epochs: int, folder: Path) -> dict[str, Any]:
    """End a run before its last epoch, and resume it."""
    kept: dict[str, Any] = {"checkpoints": Checkpoints(folder=folder, every_steps=1)}
    fit(name, layers, workers, epochs - 1, **kept)
    return fit(name, layers, workers, epochs, resume=True, **kept)


def main() -> None:
    name, folder, is_long = sys.argv[1], Path(sys.argv[2]), len(sys.argv) > 3
    epochs = int(sys.argv[3]) // 5 if is_long else 2
    alone = fit(name, PLAIN, 1, epochs)
    several = [fit_in_two(name, PLAIN, count, epochs, folder / str(count)) for count in ((2, 4) if is_long else (2,))]
    told: dict[str, Any] = {"apart": max(float(np.abs(alone[key] - found[key]).max()) for found in several for key in alone)}
    if is_long:
        whole, resumed = fit(name, RANDOM, 2, 3), fit_in_two(name, RANDOM, 2, 3, folder / "random")
        told["resumed"] = all(np.array_equal(whole[key], resumed[key]) for key in whole)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
