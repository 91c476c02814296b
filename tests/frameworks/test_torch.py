"""The torch side: losses against NumPy, networks, layers found at fault, torch's own losses and optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy.errors import InputError
from argosy.frameworks.base import Batch, FitOptions, count_weights
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.frameworks.torch import FRAMEWORK, RuleOptimizer
from argosy.optim import SGD, Adam
from argosy.train.losses import LOSSES, get_loss


def test_adam_corrects_each_weight_by_its_own_steps():
    first, late = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = RuleOptimizer([first, late], Adam(learning_rate=0.01))
    for step in range(3):
        optimizer.zero_grad()
        (first.sum() + late.sum() if step == 2 else first.sum()).backward()
        optimizer.step()
    np.testing.assert_allclose([first.item(), late.item()], [-0.03, -0.01], rtol=1e-5)


def test_norm_of_gradients_whose_squares_overflow_is_finite():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = RuleOptimizer([weight], SGD())
    weight.grad = torch.tensor([3e30, 4e30])
    assert optimizer.measure_norm() == pytest.approx(5e30, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_step_equals_the_numpy_loss(loss):
    random = np.random.default_rng(5)
    x = (4 * random.normal(size=(9, 6))).astype(np.float32)
    y = {
        "cross_entropy": random.integers(0, 5, 9),
        "binary_cross_entropy": random.integers(0, 2, (9, 5)).astype(np.float32),
        "half_mse": random.normal(size=(9, 5)).astype(np.float32),
        "mse": random.normal(size=(9, 5)).astype(np.float32),
    }[loss]
    value, outputs = FRAMEWORK.build_step(torch.nn.Linear(6, 5), loss, SGD(), FitOptions())(Batch(x, y), 1)
    # float32 against float64: 1e-7 for each of a few sums.
    assert value == pytest.approx(get_loss(loss).compute(outputs, y), rel=1e-5)


def test_network_has_the_described_layers_and_shapes():
    layers = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.5), Dense(7), Relu())
    model = FRAMEWORK.build_network(layers, (2, 6, 4), draw_weights(layers, (2, 6, 4), 0))
    assert [name for name, _ in model.named_children()] == [
        "conv1", "batchnorm1", "relu1", "maxpool1", "flatten1", "dropout1", "dense1", "relu2",
    ]  # fmt: skip
    assert FRAMEWORK.predict(model, np.ones((5, 2, 6, 4), np.float32)).shape == (5, 7)
    assert count_weights(FRAMEWORK, model) == (2 * 9 + 1) * 3 + 2 * 3 + (3 * 3 * 2 + 1) * 7


def test_predict_takes_read_only_rows_and_joins_its_pieces():
    model = torch.nn.Linear(2, 1)
    x = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    x.flags.writeable = False
    expected = x.astype(np.float64) @ model.weight.detach().numpy().T.astype(np.float64) + model.bias.detach().numpy()
    np.testing.assert_allclose(FRAMEWORK.predict(model, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        pytest.param(torch.nn.Linear(3, 1), np.ones((2, 4), np.float32), "shape (2, 4)", id="wrong-width"),
        pytest.param(
            torch.nn.LSTM(4, 2), np.ones((2, 3, 4), np.float32), "a tensor of shape (1, 3, 2)", id="states-of-another-axis"
        ),
        pytest.param(torch.nn.Flatten(0), np.ones((2, 4), np.float32), "tensor of shape (8,)", id="rows-lost"),
    ],
)
def test_predict_says_what_a_model_did_not_take_or_give(model, x, words):
    with pytest.raises(InputError) as caught:
        FRAMEWORK.predict(model, x)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


def test_unknown_rule_lists_the_known_ones():
    class Strange(SGD):
        name = "strange"

    with pytest.raises(InputError, match="Unknown optimizer of torch 'strange'; known: Adam, Momentum, RMSprop, SGD"):
        RuleOptimizer([torch.zeros(1, requires_grad=True)], Strange())


def test_session_restores_random_state_and_threads():
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    with FRAMEWORK.session(3, 2):
        first = torch.rand(4)
        assert torch.get_num_threads() == 2
    with FRAMEWORK.session(3, None):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == num_threads
