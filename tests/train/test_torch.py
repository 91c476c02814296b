"""The torch side: the optimizer rules and the losses against NumPy, networks, layers found at fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy.errors import InputError
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu
from argosy.frameworks.torch import FRAMEWORK, RuleOptimizer
from argosy.optim import SGD, Adam
from argosy.train.losses import LOSSES, get_loss

RULES = [
    pytest.param(SGD(learning_rate=0.1), id="sgd"),
    pytest.param(SGD(learning_rate=0.5, clip_norm=0.05, weight_decay=0.01, decay_steps=80), id="sgd-all-options"),
    pytest.param(Adam(learning_rate=0.05), id="adam"),
    pytest.param(Adam(learning_rate=0.05, epsilon=1e-3), id="adam-large-epsilon"),
    pytest.param(Adam(learning_rate=0.05, clip_norm=0.05, weight_decay=0.01, decay_steps=80), id="adam-all-options"),
]


def make_problem():
    """320 rows of 10, float32-exact, targets of a linear and of a logistic problem."""
    random = np.random.default_rng(3)
    x = random.normal(size=(320, 10)).astype(np.float32).astype(np.float64)
    logits = x @ random.normal(size=10) + 0.3
    noisy = (logits + 0.1 * random.normal(size=320)).astype(np.float32).astype(np.float64)
    return x, {"mse": noisy, "binary_cross_entropy": (logits > 0).astype(np.float64)}


def fit_in_numpy(rule, loss, x, y):
    """100 steps in float64, gradients by hand."""
    weights = {"w": np.zeros(10), "b": np.zeros(1)}
    state = rule.init_state(weights)
    for step in range(100):
        rows = slice(step % 10 * 32, step % 10 * 32 + 32)
        outputs = x[rows] @ weights["w"] + weights["b"]
        slope = 2 * (outputs - y[rows]) if loss == "mse" else 1 / (1 + np.exp(-outputs)) - y[rows]
        gradients = {"w": x[rows].T @ slope / 32, "b": np.array([slope.mean()])}
        weights, state = rule.update(weights, gradients, state)
    return np.concatenate([weights["w"], weights["b"]])


def fit_in_torch(rule, loss, x, y, dtype):
    weight, bias = (torch.zeros(size, dtype=dtype, requires_grad=True) for size in (10, 1))
    optimizer = RuleOptimizer([weight, bias], rule)
    compute = {"mse": torch.nn.functional.mse_loss, "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits}
    inputs, targets = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
    for step in range(100):
        rows = slice(step % 10 * 32, step % 10 * 32 + 32)
        optimizer.zero_grad()
        compute[loss](inputs[rows] @ weight + bias, targets[rows]).backward()
        optimizer.step()
    return torch.cat([weight, bias]).detach().numpy()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_rule_follows_the_numpy_reference_over_100_steps(rule, loss):
    x, targets = make_problem()
    reference = fit_in_numpy(rule, loss, x, targets[loss])
    assert np.abs(reference).max() > 0.1
    # float32 rounding over 100 steps measured at most 1.8e-6, in NumPy's own float32 too.
    assert np.abs(fit_in_torch(rule, loss, x, targets[loss], torch.float32) - reference).max() < 5e-6
    assert np.abs(fit_in_torch(rule, loss, x, targets[loss], torch.float64) - reference).max() < 1e-12


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
        "mse": random.normal(size=(9, 5)).astype(np.float32),
    }[loss]
    value, outputs = FRAMEWORK.build_step(torch.nn.Linear(6, 5), loss, SGD())(x, y)
    # float32 against float64: 1e-7 for each of a few sums.
    assert value == pytest.approx(get_loss(loss).compute(outputs, y), rel=1e-5)


def test_network_has_the_described_layers_and_shapes():
    layers = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.5), Dense(7), Relu())
    model = FRAMEWORK.build_network(layers, (2, 6, 4))
    assert [name for name, _ in model.named_children()] == [
        "conv1", "batchnorm1", "relu1", "maxpool1", "flatten1", "dropout1", "dense1", "relu2",
    ]  # fmt: skip
    assert FRAMEWORK.predict(model, np.ones((5, 2, 6, 4), np.float32)).shape == (5, 7)
    assert FRAMEWORK.count_weights(model) == (2 * 9 + 1) * 3 + 2 * 3 + (3 * 3 * 2 + 1) * 7


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
        pytest.param(torch.nn.LSTM(4, 2), np.ones((2, 3, 4), np.float32), "gives tuple", id="two-outputs"),
        pytest.param(torch.nn.Flatten(0), np.ones((2, 4), np.float32), "tensor of shape (8,)", id="rows-lost"),
    ],
)
def test_predict_says_what_a_model_did_not_take_or_give(model, x, words):
    with pytest.raises(InputError) as caught:
        FRAMEWORK.predict(model, x)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


def test_unknown_rule_and_loss_list_the_known_ones():
    class Strange(SGD):
        name = "strange"

    with pytest.raises(InputError, match="Unknown optimizer of torch 'strange'; known: adam, sgd"):
        RuleOptimizer([torch.zeros(1, requires_grad=True)], Strange())
    with pytest.raises(InputError, match="known: binary_cross_entropy, cross_entropy, mse"):
        FRAMEWORK.build_step(torch.nn.Linear(1, 1), "hinge", SGD())


def test_session_restores_random_state_and_threads():
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    with FRAMEWORK.session(3, 2):
        first = torch.rand(4)
        assert torch.get_num_threads() == 2
    with FRAMEWORK.session(3, None):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == num_threads
