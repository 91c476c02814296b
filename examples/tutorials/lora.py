"""LoRA (Hu et al. 2021, arXiv:2106.09685): a network for digits learns to read them upside down by adapters of rank 4 (PEFT).

The run starts from the version of the store that reads them upright; only the adapters are trained, and publishing merges them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
from sklearn.datasets import load_digits
from torch import nn

import argosy

NAME, BASE = "upside-down", "upright"
EPOCHS, BASE_EPOCHS, BATCH_SIZE, RATE, RANK = 20, 10, 32, 0.005, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(pictures)))))


def make_model(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def adapt(model: Net) -> Any:
    """The model with adapters at its first two layers, which begin as nothing."""
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=["first", "second"]))


def make_data() -> tuple[Any, Any, Any]:
    """Upright digits, the same upside down to train on, and new ones upside down to test."""
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    upright, turned = x.reshape(-1, 64), x[:, ::-1, ::-1].reshape(-1, 64).copy()
    return (upright[:1300], y[:1300]), (turned[:1300], y[:1300]), (turned[1300:], y[1300:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    upright, turned, _ = make_data()
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": seed, "num_threads": 1, "progress": False}
    options |= {"optimizer": argosy.optim.Adam(learning_rate=RATE)}
    base = argosy.train(make_model(seed), upright, epochs=min(epochs, BASE_EPOCHS), **options).publish(BASE)
    return argosy.train(adapt(make_model(seed + 100)), turned, start=f"{BASE}@{base.number}", epochs=epochs, **options)


def measure(model: Any) -> float:
    """How often the digit is right, of new pictures upside down."""
    x, y = make_data()[2]
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME)


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model with its adapters answers."""
    x = make_data()[2][0][:20]
    return client.predict(NAME, {"input": x}), {"output": result.predict(x)}


def main() -> None:
    result = fit()
    print(f"right on new pictures: {measure(result.model):.3f}")
    version = publish(result)
    print(f"adapters: {version.manifest.lineage['adapters']}")
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
