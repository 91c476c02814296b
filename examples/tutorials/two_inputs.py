"""Two inputs and two outputs: of two pictures of digits, what their sum is and whether they are the same.

Inputs and targets are dicts by name, and so are the losses; the loss of the run is their weighted sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME = "two-digits"
EPOCHS, BATCH_SIZE, RATE = 15, 64, 0.003
LOSSES: dict[str, Any] = {"sum": "cross_entropy", "same": "binary_cross_entropy"}
WEIGHTS = {"same": 0.5}


class Pair(nn.Module):
    """One encoder for both pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.sum = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 19))
        self.same = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        one, other = self.encoder(left), self.encoder(right)
        return {"sum": self.sum(torch.cat([one, other], dim=1)), "same": self.same((one - other).abs())}


def make_model(seed: int) -> Pair:
    torch.manual_seed(seed)
    return Pair()


def make_data() -> tuple[Any, Any]:
    """Pairs of known pictures to train on, and pairs of new ones to test; a third are two of the same digit."""
    pictures, digits = load_digits(return_X_y=True)
    pictures = (pictures / 16).astype(np.float32)
    random = np.random.default_rng(0)
    parts = []
    for rows, count in ((slice(1300), 4000), (slice(1300, None), 1000)):
        known, names = pictures[rows], digits[rows]
        left, right = random.integers(len(known), size=(2, count))
        for place in range(count // 3):
            right[place] = random.choice(np.flatnonzero(names == names[left[place]]))
        same = (names[left] == names[right]).astype(np.float32)[:, None]
        parts.append(({"left": known[left], "right": known[right]}, {"sum": names[left] + names[right], "same": same}))
    return parts[0], parts[1]


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    return argosy.train(
        make_model(seed),
        training,
        loss=LOSSES,
        loss_weights=WEIGHTS,
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: Pair) -> float:
    """How often the sum is right, and whether they are the same: the mean of both, on new pictures."""
    _, (pictures, targets) = make_data()
    with torch.no_grad():
        found = model.eval()(*(torch.from_numpy(pictures[side]) for side in ("left", "right")))
    sums, same = found["sum"].argmax(1).numpy(), found["same"].numpy() > 0
    return float(np.mean([(sums == targets["sum"]).mean(), (same == targets["same"]).mean()]))


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME)


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    _, (pictures, _) = make_data()
    some = {side: rows[:20] for side, rows in pictures.items()}
    return client.predict(NAME, some), result.predict(some)


def main() -> None:
    result = fit()
    print(f"right on new pictures: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['same'][:3].ravel()}, in PyTorch {expected['same'][:3].ravel()}")


if __name__ == "__main__":
    main()
