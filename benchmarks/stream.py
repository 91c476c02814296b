"""What a Parquet set larger than memory costs beside the same rows in memory.

    python benchmarks/stream.py [--gigabytes 4] [--rounds 5] [--json]

A set of 16 files is written below the system's temporary folder (float32 rows of 1000 numbers, row groups of 32 MB), and removed
afterwards. A command of its own then trains one epoch of all of it: the time from the command to its first step, and the most
memory that it had resident. After that, in one process and in turn, a part of 256 MB is trained as a stream and as the same
arrays in memory, with a step of 5 ms at least on one thread; medians of the rounds' samples/s and of their ratios, from each
run's first step to its last.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import argosy

WIDTH = 1000
BATCH = 128
GROUP_ROWS = 8000
NUM_FILES = 16
NUM_CLASSES = 10


class Timed(torch.nn.Module):
    """A perceptron that says when its steps began."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, NUM_CLASSES))
        self.times: list[float] = []
        self.cpu_times: list[float] = []

    def forward(self, x: Any) -> Any:
        if len(x) == BATCH:
            self.times.append(time.monotonic())
            self.cpu_times.append(time.process_time())
        return self.layers(x)


def write_files(folder: Path, num_bytes: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    rows = max(GROUP_ROWS, num_bytes // (4 * WIDTH) // NUM_FILES)
    for number in range(NUM_FILES):
        with pq.ParquetWriter(
            folder / f"{number:02}.parquet", pa.schema({"x": pa.list_(pa.float32(), WIDTH), "y": pa.int64()})
        ) as file:
            for start in range(0, rows, GROUP_ROWS):
                count = min(GROUP_ROWS, rows - start)
                x = random.standard_normal((count, WIDTH), np.float32)
                y = random.integers(0, NUM_CLASSES, count)
                columns = [pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH), pa.array(y)]
                file.write_table(pa.table(columns, ["x", "y"]), row_group_size=GROUP_ROWS)


def fit(model: Timed, data: Any, seed: int) -> tuple[float, float]:
    """Train an epoch; samples/s from the first step to the last, and microseconds of all threads for each."""
    model.times.clear()
    model.cpu_times.clear()
    argosy.train(model, data, batch_size=BATCH, epochs=1, optimizer="sgd", seed=seed, metrics=[], progress=False, num_threads=1)
    num_rows = BATCH * (len(model.times) - 1)
    return num_rows / (model.times[-1] - model.times[0]), 1e6 * (model.cpu_times[-1] - model.cpu_times[0]) / num_rows


def run_child(folder: Path, hidden: int) -> None:
    """Train on all files, and print when the first step began and how much memory there was."""
    model = Timed(hidden)
    rate, _ = fit(model, argosy.data.open(folder, inputs="x", targets="y"), 0)
    # Not what getrusage says, which a new program inherits from its parent.
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
    print(json.dumps({"first_s": model.times[0], "peak_mib": peak / 1024, "rate": rate, "steps": len(model.times)}))


def choose_width() -> int:
    """Find a model whose step takes 5 ms."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((BATCH * 40, WIDTH), np.float32), random.integers(0, NUM_CLASSES, BATCH * 40)
    for hidden in (512, 768, 1024, 1536, 2048, 3072, 4096):
        model = Timed(hidden)
        fit(model, rows, 0)
        if statistics.median(np.diff(model.times)) >= 0.005:
            break
    return hidden


def compare(files: list[Path], hidden: int, rounds: int) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Give what `fit` found of the stream and of the same rows in memory."""
    stream = argosy.data.open(files, inputs="x", targets="y")
    parts = list(stream.iterate(1000))
    rows = np.concatenate([part.inputs for part in parts]), np.concatenate([part.targets for part in parts])
    del parts
    for seed in range(rounds):
        pair = [fit(Timed(hidden), data, seed) for data in ((stream, rows) if seed % 2 else (rows, stream))]
        yield (pair[0], pair[1]) if seed % 2 else (pair[1], pair[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(Path(arguments.child[0]), int(arguments.child[1]))
        return
    with tempfile.TemporaryDirectory(prefix="argosy-stream-") as name:
        folder = Path(name)
        write_files(folder, int(arguments.gigabytes * 1e9))
        hidden = choose_width()
        started = time.monotonic()
        command = [sys.executable, __file__, "--child", name, str(hidden)]
        child = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        files = sorted(folder.iterdir())[: max(1, int(256e6 // (arguments.gigabytes * 1e9 / NUM_FILES)))]
        pairs = list(compare(files, hidden, arguments.rounds))
    figures = {
        "gigabytes": arguments.gigabytes,
        "hidden": hidden,
        "first_step_s": round(child["first_s"] - started, 2),
        "peak_mib": round(child["peak_mib"]),
        "epoch_samples_per_s": round(child["rate"]),
        "step_ms": round(1e3 * BATCH / statistics.median(memory[0] for _, memory in pairs), 2),
        "stream_samples_per_s": round(statistics.median(stream[0] for stream, _ in pairs)),
        "memory_samples_per_s": round(statistics.median(memory[0] for _, memory in pairs)),
        "ratio": round(statistics.median(stream[0] / memory[0] for stream, memory in pairs), 3),
        "ratios": [round(stream[0] / memory[0], 3) for stream, memory in pairs],
        "stream_cpu_us": round(statistics.median(stream[1] for stream, _ in pairs), 1),
        "memory_cpu_us": round(statistics.median(memory[1] for _, memory in pairs), 1),
    }
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name:22}{value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
