"""What the concepts say of the text that Argosy follows, where no other test shows it."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import argosy
from argosy.frameworks.base import count_weights, framework_of

NUM_BASES = 3_055_000_000
"""Base pairs of a human genome: S. Nurk et al. 2022, doi:10.1126/science.abj6987."""


def make_rows(num_rows: int, num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((num_rows, num_inputs)), random.integers(0, 2, (num_rows, 1)).astype(float)


def convolve(num_inputs: int, num_outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_inputs, num_outputs, size), nn.BatchNorm2d(num_outputs))


@pytest.mark.parametrize(("num_blocks", "expected"), [(20, 23e6), (40, 46e6)])
def test_alphago_zero_has_fewer_weights_than_the_genome_has_bases(num_blocks: int, expected: float) -> None:
    """The network of D. Silver et al. 2017, doi:10.1038/nature24270: one block, then residual ones, and two heads."""
    with torch.device("meta"):
        tower = [convolve(17, 256, 3), *(convolve(256, 256, 3) for _ in range(2 * (num_blocks - 1)))]
        policy = [convolve(256, 2, 1), nn.Linear(2 * 19 * 19, 362)]
        value = [convolve(256, 1, 1), nn.Linear(19 * 19, 256), nn.Linear(256, 1)]
        network = nn.Sequential(*tower, *policy, *value)
    num_weights = sum(weight.numel() for weight in network.parameters())
    assert num_weights == pytest.approx(expected, rel=0.05)
    assert 60 * num_weights < NUM_BASES


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_training_changes_weights_and_not_how_many_there_are(optimizer: str) -> None:
    model = nn.Linear(8, 1)
    before = model.weight.detach().clone()
    framework = framework_of(model)
    num_before = count_weights(framework, model)
    argosy.train(model, make_rows(16, 8), loss="binary_cross_entropy", optimizer=optimizer, epochs=1, progress=False)
    assert not torch.equal(model.weight.detach(), before)
    assert count_weights(framework, model) == num_before == 9


def test_sgd_by_one_sample_is_a_batch_of_one() -> None:
    x, y = make_rows(6, 4)
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    w = model.weight.detach().numpy().T.copy()
    rule = argosy.optim.SGD(learning_rate=0.1)
    argosy.train(model, (x, y), loss="half_mse", optimizer=rule, batch_size=1, epochs=1, shuffle=False, progress=False)
    for row, label in zip(x, y, strict=True):
        w = w - 0.1 * np.outer(row, row @ w - label)
    np.testing.assert_allclose(model.weight.detach().numpy().T, w, rtol=1e-12)


def test_printed_gradient_is_that_of_another_loss() -> None:
    """The mean of h - y has a gradient that knows no labels; X^T (h - Y) / m is that of the cross-entropy of a sigmoid."""
    x, y = (torch.from_numpy(array) for array in make_rows(10, 4))
    w = torch.zeros((4, 1), dtype=torch.float64, requires_grad=True)

    def differentiate(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, w)[0]

    errors = [differentiate((x @ w - labels).mean()) for labels in (y, 1 - y)]
    torch.testing.assert_close(errors[0], errors[1], rtol=0.0, atol=0.0)
    printed = x.T @ (torch.sigmoid(x @ w) - y) / len(x)
    torch.testing.assert_close(differentiate(nn.functional.binary_cross_entropy_with_logits(x @ w, y)), printed)


def test_loader_never_has_all_rows_in_memory() -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def collate(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal most
        x = torch.ones((len(rows), 8))
        alive.add(x)
        most = max(most, len(alive))
        return x, x[:, :1]

    loader = DataLoader(range(400), batch_size=4, collate_fn=collate)  # pyright: ignore[reportArgumentType]
    result = argosy.train(nn.Linear(8, 1), loader, loss="mse", epochs=2, progress=False)
    assert len(result.history) == 2
    assert most < 10  # of 100
