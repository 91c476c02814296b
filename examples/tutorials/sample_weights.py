"""Sample weights: rows whose labels are doubtful count less, and the rarer class more.

A third of the labels are wrong by chance; who gave a row its label is known, and so how far to trust it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import argosy

NAME = "doubtful-labels"
EPOCHS, BATCH_SIZE, RATE = 30, 32, 0.01
CLASS_WEIGHTS = {0: 1.5}


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def make_data() -> tuple[Any, Any]:
    """Rows, labels and weights to train on; rows with true labels to test."""
    x, y = load_breast_cancer(return_X_y=True)
    random = np.random.default_rng(0)
    rows = random.permutation(len(x))
    x, y = x[rows], y[rows]
    x = ((x - x[:400].mean(0)) / x[:400].std(0)).astype(np.float32)
    is_doubtful = random.random(400) < 0.6
    told = np.where(is_doubtful & (random.random(400) < 0.5), 1 - y[:400], y[:400])
    weights = np.where(is_doubtful, 0.05, 1.0).astype(np.float32)
    return (x[:400], told, weights), (x[400:], y[400:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    return argosy.train(
        make_model(seed),
        training,
        class_weights=CLASS_WEIGHTS,
        optimizer=argosy.optim.Adam(learning_rate=RATE, weight_decay=0.001),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: nn.Module) -> float:
    """How often the true label is found, of new rows."""
    _, (x, y) = make_data()
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, labels=["malignant", "benign"])


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new rows, and what the model itself answers."""
    _, (x, _) = make_data()
    return client.predict(NAME, {"input": x[:20]}), {"output": result.predict(x[:20])}


def main() -> None:
    result = fit()
    print(f"right on new rows: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
