"""Images from a folder: one folder a class, read as a stream; the server takes the files as they are."""

from __future__ import annotations

import atexit
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME = "pictures"
EPOCHS, BATCH_SIZE, RATE = 8, 32, 0.003
SIZE, NUM_TRAINING = 8, 1300


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 10)
    )


@functools.cache
def write_files() -> Path:
    """Write pictures of digits as train/DIGIT/NUMBER.png and test/DIGIT/NUMBER.png."""
    folder = tempfile.TemporaryDirectory(prefix="pictures-")
    atexit.register(folder.cleanup)
    digits = load_digits()
    for number, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = Path(folder.name, "train" if number < NUM_TRAINING else "test", str(digit), f"{number:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 15).astype(np.uint8)).save(path)
    return Path(folder.name)


def open_part(part: str) -> Any:
    return argosy.data.open(write_files() / part, size=[SIZE, SIZE], channels="grey", scale=1 / 255)


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    return argosy.train(
        make_model(seed),
        open_part("train"),
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: nn.Module) -> float:
    """How often the digit is right, of new pictures."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for rows in open_part("test").iterate(100):
            right += int((model(torch.from_numpy(rows.inputs)).argmax(1).numpy() == rows.targets).sum())
            total += len(rows.targets)
    return right / total


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME)


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers to files, and what the model answers to the stream's rows."""
    rows = next(iter(open_part("test").iterate(20)))
    files = sorted((write_files() / "test").rglob("*.png"))[:20]
    return client.predict(NAME, {"image": [file.read_bytes() for file in files]}), {"output": result.predict(rows.inputs)}


def main() -> None:
    result = fit()
    print(f"right on new pictures: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
