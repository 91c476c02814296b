"""The beginner's logistic regression in PyTorch: trained by `argosy.train`, published, served.

    pip install 'argosy[torch]'
    python examples/classic_torch.py

As people first meet this program it does not run: `import torch` stands there, but `nn` and `optim` are used without
their imports; accuracy is a sum divided by `total`, which is 0 and stays 0. And it cannot learn: the labels are drawn by
chance and have nothing to do with the rows. So it runs twice here: on chance, where no program does better than the
most frequent label, and on rows that differ by their label.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import argosy


def make_data(is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((1000, 100)), random.integers(0, 2, 1000)
    if not is_chance:
        x += np.where(y == 1, 0.25, -0.25)[:, None]
    return x.astype(np.float32), y.astype(np.float32)


def train(name: str, is_chance: bool) -> None:
    x, y = make_data(is_chance)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 1), nn.Sigmoid())
    result = argosy.train(
        model,
        (x, y),
        loss=nn.BCELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        batch_size=32,
        epochs=10,
        validation_split=0.2,
        metrics=["accuracy"],
    )
    print(f"{name}: accuracy {result.history[-1].validation_metrics['accuracy']:.2f} on rows that it was not trained on")
    result.publish(name)
    with argosy.serve(name) as server, server.client() as client:
        served = client.predict(name, {"input": x[:3]})["output"]
        print(f"{name}: served {served.ravel().round(3)}, in PyTorch {result.predict(x[:3]).ravel().round(3)}")


if __name__ == "__main__":
    train("torch-chance", is_chance=True)
    train("torch-logistic", is_chance=False)
