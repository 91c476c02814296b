"""Transfer with frozen layers: what was learnt of the digits 0 to 4 helps to tell 5 to 9 from a hundred examples.

The first model is a version of the store. The second starts from its body, which is frozen, and learns a head of its own; its
lineage says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME, BASE = "five-to-nine", "zero-to-four"
EPOCHS, BASE_EPOCHS, BATCH_SIZE, RATE = 60, 15, 20, 0.005


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()
        self.body = nn.Sequential(*convolutions, nn.Flatten())
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pictures))


def make_model(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def make_data() -> tuple[Any, Any, Any]:
    """The lower digits, a hundred of the upper ones to train on, and the others of these to test."""
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32)[:, None], digits.target
    upper, names = x[y >= 5], y[y >= 5] - 5
    return (x[y < 5], y[y < 5]), (upper[:100], names[:100]), (upper[100:], names[100:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    lower, upper, _ = make_data()
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": seed, "num_threads": 1, "progress": False}
    options |= {"optimizer": argosy.optim.Adam(learning_rate=RATE)}
    base = argosy.train(make_model(seed), lower, epochs=min(epochs, BASE_EPOCHS), **options).publish(BASE)
    start = argosy.Start(f"{BASE}@{base.number}", parts=["body"])
    return argosy.train(make_model(seed + 100), upper, start=start, freeze="body", epochs=epochs, **options)


def measure(model: Net) -> float:
    """How often the digit is right, of new pictures of the upper ones."""
    x, y = make_data()[2]
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, labels=["5", "6", "7", "8", "9"])


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    x = make_data()[2][0][:20]
    return client.predict(NAME, {"input": x}), {"output": result.predict(x)}


def main() -> None:
    result = fit()
    print(f"right on new pictures: {measure(result.model):.3f}")
    version = publish(result)
    print(f"started from {version.manifest.lineage['training']['start']}")
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
