"""The beginner's logistic regression in PyTorch: its own loop and `argosy.train`, both published and served.

    pip install 'argosy[torch]'
    python examples/classic_torch.py

As it is handed around, the program stops three times: the loader is never made, the sigmoid is called by a name that
was never imported, and each epoch ends by dividing the summed losses by a count that stays 0, after the weights have
moved. Labels drawn as whole numbers are refused by the loss as well: it takes them as floats. Mended here by a loader
(of 32 rows, for which the program has no number), the missing import, and a loss divided by the number of batches.

Rows and labels are drawn by chance, and have nothing to do with one another: the accuracy to expect on new rows is one
half, whoever trains. So both forms run on rows that can be told apart as well, to see that they learn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import argosy


class Net(nn.Module):
    """One weight for each of the 100 numbers, and a bias; gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(100, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc1(x))


def make_data(seed: int, is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each; by chance, or with 50 numbers larger by the label."""
    random = np.random.default_rng(seed)
    x, y = random.random((1000, 100)), random.integers(0, 2, (1000, 1))
    if not is_chance:
        x[:, :50] += y
    return x.astype(np.float32), y.astype(np.float32)


def make_loader(x: np.ndarray, y: np.ndarray) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=32)


def run_own_loop(x: np.ndarray, y: np.ndarray) -> Net:
    torch.manual_seed(0)
    net = Net()
    criterion = nn.BCELoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01)
    loader = make_loader(x, y)
    for epoch in range(10):
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        print(f"epoch {epoch + 1}: loss {running_loss / len(loader):.3f}")
    return net


def run_argosy(x: np.ndarray, y: np.ndarray) -> argosy.TrainResult:
    torch.manual_seed(0)
    net = Net()
    optimizer = optim.SGD(net.parameters(), lr=0.01)
    return argosy.train(net, make_loader(x, y), loss=nn.BCELoss(), optimizer=optimizer, epochs=10, progress=False)


def predict(net: Net, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def measure_accuracy(model: Net, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((predict(model, x) > 0.5) == y))


def compare(is_chance: bool) -> tuple[Net, argosy.TrainResult]:
    """Train by both forms; say how often each is right."""
    x, y = make_data(0, is_chance)
    own, result = run_own_loop(x, y), run_argosy(x, y)
    rows = "by chance" if is_chance else "told apart"
    for form, model in (("own loop", own), ("argosy.train", result.model)):
        seen, new = measure_accuracy(model, x, y), measure_accuracy(model, *make_data(1, is_chance))
        print(f"rows {rows}, {form}: accuracy {seen:.3f} on rows that it was trained on, {new:.3f} on new ones")
    return own, result


def main() -> None:
    compare(is_chance=False)
    own, result = compare(is_chance=True)
    x, _ = make_data(0, is_chance=True)
    argosy.publish(own, "torch-own-loop", sample=x)
    result.publish("torch-argosy")
    with argosy.serve("torch-own-loop", "torch-argosy") as server, server.client() as client:
        for name, model in (("torch-own-loop", own), ("torch-argosy", result.model)):
            served = client.predict(name, {"input": x[:3]})["output"]
            print(f"{name}: served {served.ravel().round(5)}, in PyTorch {predict(model, x[:3]).ravel().round(5)}")


if __name__ == "__main__":
    main()
