"""Contrastive pairs: an encoder that learns from pictures without labels, by a step of one's own.

Two views of a picture are to be nearer to one another than to any other picture of the batch (Chen et al. 2020,
arXiv:2002.05709).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME = "digits-encoder"
EPOCHS, BATCH_SIZE, RATE, TEMPERATURE = 20, 128, 0.003, 0.2


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))


def make_data() -> tuple[Any, Any]:
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    return (x[:1300], digits.target[:1300]), (x[1300:], digits.target[1300:])


def make_view(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures with noise, moved by up to one place."""
    moves = torch.randint(-1, 2, (2,)).tolist()
    moved = torch.roll(pictures.reshape(-1, 8, 8), moves, dims=(1, 2)).reshape(-1, 64)
    return moved + 0.15 * torch.randn_like(moved)


def contrast(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    one, other = (nn.functional.normalize(model(make_view(batch))) for _ in range(2))
    return nn.functional.cross_entropy(one @ other.T / TEMPERATURE, torch.arange(len(batch)))


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    (x, _), _ = make_data()
    return argosy.train(
        make_model(seed),
        x,
        step=lambda model, batch, fit: contrast(model, batch),
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: nn.Module) -> float:
    """How often the nearest known picture shows the same digit, of new ones."""
    (known, names), (new, truth) = make_data()
    with torch.no_grad():
        one, other = (nn.functional.normalize(model.eval()(torch.from_numpy(x))) for x in (new, known))
    return float((names[(one @ other.T).argmax(1).numpy()] == truth).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, input_name="picture", output_name="vector")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    _, (x, _) = make_data()
    return client.predict(NAME, {"picture": x[:20]}), {"vector": result.predict(x[:20])}


def main() -> None:
    result = fit()
    print(f"the nearest shows the same digit: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['vector'][0, :4]}, in PyTorch {expected['vector'][0, :4]}")


if __name__ == "__main__":
    main()
