"""Train a small network with dropout and batch normalisation, keeping checkpoints, and print the digest of its weights.

    python -m tests.frameworks.small_run FRAMEWORK FOLDER PAUSE_S [DATA]

goes on from the checkpoints in FOLDER, with as many workers as the variable WORKERS says. Steps are numerous and may be slowed,
so that a kill meets the middle of the run. The rows are in memory, or a stream of the Parquet files in DATA, which `write_data`
made.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.optim import Adam, CosineDecay
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train
from argosy.train.sharing import SharedArrays
from argosy.train.source import ArraySource, StreamSource

LAYERS = (Conv(4), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(16), Relu(), Dense(3))
ROW = (1, 8, 8)
NUM_ROWS = 100
EPOCHS = 12
NUM_WORKERS = int(os.environ.get("WORKERS", "1"))


def slow_down(kind: Any, pause_s: float) -> None:
    iterate = kind.iterate

    def wait(self: Any, epoch: int, start: int) -> Iterator[Any]:
        for batch in iterate(self, epoch, start):
            time.sleep(pause_s)
            yield batch

    kind.iterate = wait


def make_data() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((NUM_ROWS, *ROW)).astype(np.float32), random.integers(0, 3, NUM_ROWS)


def write_data(folder: Path) -> None:
    """Write the rows as three Parquet files of several row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for number, (x, y) in enumerate(zip(*(np.array_split(part, 3) for part in make_data()), strict=True)):
        pq.write_table(pa.table({"x": x.tolist(), "y": y}), folder / f"{number}.parquet", row_group_size=12)


def open_data(folder: Path) -> tuple[Any, Any]:
    """Give a stream to train on, and one to validate on."""
    return argosy.data.split(
        argosy.data.open(folder, inputs="x", targets="y", schema={"x": "float32"}, buffer_rows=40), (0.9, 0.1)
    )


def run(name: str, folder: Path, stream: Path | None = None) -> str:
    """Train, and say what came of it."""
    data: dict[str, Any] = {"data": make_data(), "validation_split": 0.1}
    if stream is not None:
        data = dict(zip(("data", "validation_data"), open_data(stream), strict=True))
    framework = get_framework(name)
    with framework.session(0, 1):  # TensorFlow takes its number of threads before its first operation.
        model = framework.build_network(LAYERS, ROW, draw_weights(LAYERS, ROW, 0))
    result = train(
        model,
        **data,
        optimizer=Adam(learning_rate=CosineDecay(0.01, steps=60), clip_norm=1.0, weight_decay=1e-3),
        batch_size=16,
        epochs=EPOCHS,
        patience=EPOCHS,
        checkpoints=Checkpoints(folder=folder, every_steps=1),
        resume=True,
        workers=NUM_WORKERS,
        num_threads=1,
        progress=False,
    )
    digest = hashlib.sha256()
    for key, array in sorted(framework.get_weights(model).items()):
        digest.update(key.encode() + array.tobytes())
    history = [(epoch.loss, epoch.validation_loss) for epoch in result.history]
    return f"{digest.hexdigest()} {hashlib.sha256(repr(history).encode()).hexdigest()} {result.num_steps}"


def main() -> None:
    name, folder, pause_s, *stream = sys.argv[1:]
    arrays = ArraySource if NUM_WORKERS == 1 else SharedArrays
    slow_down(StreamSource if stream else arrays, float(pause_s))
    print(run(name, Path(folder), *map(Path, stream)))


if __name__ == "__main__":
    main()
