"""A recurrent network: digits read line by line, as sequences of eight steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME = "digits-by-line"
EPOCHS, BATCH_SIZE, RATE = 12, 32, 0.005


class Reader(nn.Module):
    """An LSTM over the lines, and a layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, lines: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(lines)
        return self.head(states[:, -1])


def make_model(seed: int) -> Reader:
    torch.manual_seed(seed)
    return Reader()


def make_data() -> tuple[Any, Any]:
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    return (x[:1300], y[:1300]), (x[1300:], y[1300:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    return argosy.train(
        make_model(seed),
        training,
        optimizer=argosy.optim.Adam(learning_rate=RATE, clip_norm=1.0),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: Reader) -> float:
    """How often the digit is right, of new pictures."""
    _, (x, y) = make_data()
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME)


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    _, (x, _) = make_data()
    return client.predict(NAME, {"input": x[:20]}), {"output": result.predict(x[:20])}


def main() -> None:
    result = fit()
    print(f"right on new pictures: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
