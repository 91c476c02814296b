"""Train a small network with dropout and batch normalisation, keeping checkpoints, and print the digest of its weights.

    python -m tests.frameworks.small_run FRAMEWORK FOLDER [PAUSE_S]

goes on from the checkpoints in FOLDER. Steps are numerous and may be slowed, so that a kill meets the middle of the run.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.optim import Adam, CosineDecay
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train
from argosy.train.source import ArraySource

LAYERS = (Conv(4), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(16), Relu(), Dense(3))
ROW = (1, 8, 8)
NUM_ROWS = 100
EPOCHS = 12


def slow_down(pause_s: float) -> None:
    iterate = ArraySource.iterate

    def wait(self: ArraySource, epoch: int, start: int) -> Iterator[Any]:
        for batch in iterate(self, epoch, start):
            time.sleep(pause_s)
            yield batch

    ArraySource.iterate = wait  # type: ignore[method-assign]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    slow_down(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    random = np.random.default_rng(0)
    data = random.standard_normal((NUM_ROWS, *ROW)).astype(np.float32), random.integers(0, 3, NUM_ROWS)
    framework = get_framework(name)
    with framework.session(0, 1):  # TensorFlow takes its number of threads before its first operation.
        model = framework.build_network(LAYERS, ROW, draw_weights(LAYERS, ROW, 0))
    result = train(
        model,
        data,
        optimizer=Adam(learning_rate=CosineDecay(0.01, steps=60), clip_norm=1.0, weight_decay=1e-3),
        batch_size=16,
        epochs=EPOCHS,
        validation_split=0.1,
        patience=EPOCHS,
        checkpoints=Checkpoints(folder=folder, every_steps=1),
        resume=True,
        num_threads=1,
        progress=False,
    )
    digest = hashlib.sha256()
    for key, array in sorted(framework.get_weights(model).items()):
        digest.update(key.encode() + array.tobytes())
    history = [(epoch.loss, epoch.validation_loss) for epoch in result.history]
    print(digest.hexdigest(), hashlib.sha256(repr(history).encode()).hexdigest(), result.num_steps)


if __name__ == "__main__":
    main()
