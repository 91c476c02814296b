"""The MXNet side, as computed by `mxnet_cases.py` and `mxnet_states.py` in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.frameworks.torch import FRAMEWORK as TORCH
from tests.frameworks.mxnet_run import run, run_cases

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mxnet")


@pytest.fixture(scope="module")
def cases(folder: Path) -> Callable[[str], Any]:
    return run_cases("mxnet_cases", folder)


@pytest.fixture(scope="module")
def states(folder: Path) -> Callable[[str], Any]:
    return run_cases("mxnet_states", folder)


# networks and prediction


def test_network_has_the_described_layers_and_answers_as_torch_does(cases):
    found = cases("network")
    assert found["children"] == [
        "conv1", "batchnorm1", "relu1", "maxpool1", "flatten1", "dropout1", "dense1", "relu2", "dense2",
    ]  # fmt: skip
    layers = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(7), Relu(), Dense(3))
    model = TORCH.build_network(layers, (2, 6, 4), draw_weights(layers, (2, 6, 4), 3))
    rows = np.random.default_rng(5).standard_normal((5, 2, 6, 4)).astype(np.float32)
    # float32, summed in another order.
    np.testing.assert_allclose(found["outputs"], TORCH.predict(model, rows), atol=1e-5)
    assert (found["dtypes"], found["owner"]) == (["float32", "float64"], "mxnet")


def test_trainable_weights_follow_the_layers_each_weight_before_its_bias(cases):
    found = cases("network")
    assert found["trainable"] == [
        "conv1.weight", "conv1.bias", "batchnorm1.gamma", "batchnorm1.beta",
        "dense1.weight", "dense1.bias", "dense2.weight", "dense2.bias",
    ]  # fmt: skip
    assert {*found["weights"]} - {*found["trainable"]} == {"batchnorm1.running_mean", "batchnorm1.running_var"}


def test_names_of_weights_do_not_count_the_blocks_of_the_process(cases):
    found = cases("names_do_not_count_blocks")
    assert found["names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert found["stray"] == ["0.weight", "0.bias", "extra"]
    assert found["set"] == [0, 1, 2, 3]


def test_predict_takes_read_only_rows_and_joins_its_pieces(cases):
    assert cases("predict_pieces") < 1e-6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong-width", "shape (12, 3) and type float32: Error in operator"),
        ("no-values", "has not been initialized"),
        ("rows-lost", "tensor of shape (48,)"),
        ("two-outputs", "a tensor of shape (1,"),
        ("no-such-type", "uint16"),
        ("found-late", "potrf failed"),
    ],
)
def test_predict_says_what_a_model_did_not_take_or_give(cases, name, words):
    key, message = cases("predict_refusals")[name]
    assert key == "bad_data"
    assert words in message


def test_numpy_interface_is_refused(cases):
    key, message = cases("numpy_interface_is_refused")
    assert key == "bad_option"
    assert "reset_np" in message


# losses and optimizers


def test_named_losses_equal_the_numpy_losses(cases):
    for name, (value, expected) in cases("named_losses").items():
        assert value == pytest.approx(expected, rel=1e-12 if "float64" in name else 1e-6), name


def test_gluon_losses_train_as_the_named_ones_do(cases):
    for name, difference in cases("own_losses").items():
        assert difference < 1e-6, name


def test_losses_are_described_with_their_parameters(cases):
    sigmoid, probability, log, huber, function, nothing = cases("loss_descriptions")
    assert sigmoid == ["SigmoidBinaryCrossEntropyLoss", {"batch_axis": 0, "from_sigmoid": False}, True]
    assert [described[2] for described in (probability, log, huber, function)] == [False] * 4
    assert huber[1]["rho"] == 2
    assert function[0] == "distance"
    assert nothing is None


def test_own_optimizers_take_the_steps_of_the_loop_that_a_user_writes(cases):
    # The mean is taken before the gradient here, by the Trainer there.
    for name, difference in cases("own_optimizers").items():
        assert difference < 1e-6, name


def test_optimizers_are_described_as_json(cases):
    optimizer, trainer, ours = cases("optimizer_descriptions")
    assert optimizer == trainer
    assert (optimizer["name"].rpartition(".")[2], optimizer["lr"], optimizer["lr_scheduler"]["factor"]) == ("Adam", 0.5, 0.5)
    assert "num_update" not in optimizer
    assert ours is None


def test_rule_optimizer_follows_its_rule_in_a_users_trainer(cases):
    for name, difference in cases("rule_alone").items():
        assert difference < (1e-14 if "float64" in name else 1e-6), name


def test_learning_rate_of_zero_keeps_the_momentum(cases):
    got, expected = cases("rate_of_zero_keeps_the_momentum")
    assert got == pytest.approx(expected, rel=1e-6)


def test_multipliers_of_a_parameter_hold(cases):
    found = cases("multipliers")
    assert (found["bias"], found["weight"]) == (0, 0)
    assert found["moved"] > 0.01


def test_sparse_gradients_train_as_dense_ones_do(cases):
    assert cases("sparse_gradients") == 0


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("frozen", "bad_option", "weights to train"),
        ("no-values", "bad_option", "initialize()"),
        ("devices", "bad_option", "2 devices"),
        ("foreign-trainer", "bad_option", "this model's collect_params()"),
        ("state-elsewhere", "bad_option", "not LBSGD"),
        ("mixed-types", "bad_option", "float32 and float64"),
        ("eager-bfloat16", "bad_option", "HybridBlock"),
        ("double-bfloat16", "bad_option", "other than float32"),
        ("wrong-targets", "bad_data", "y of float32 (12,): Error in operator"),
        ("wrong-loss", "bad_loss", "builtins.float"),
    ],
)
def test_build_step_refuses_what_cannot_be_fitted(cases, name, key, words):
    got, message = cases("fit_refusals")[name]
    assert got == key
    assert words in message


# steps


def test_micro_batches_train_as_the_whole_batch_does(cases):
    found = cases("micro_batches")
    for name in ("rule", "own"):
        # float32, summed in pieces; a piece that holds the batch is the batch.
        assert found[name][0] < 1e-6
        assert found[name][1] == 0
        assert found[f"{name} loss"] < 1e-6


def test_gradients_that_a_parameter_adds_up_are_those_of_the_step_alone(cases):
    assert cases("added_gradients") == 0


def test_blocks_that_are_not_hybrid_train(cases):
    assert max(cases("eager_models")) < 1e-6


def test_weights_without_gradient_stay(cases):
    trainable, changed = cases("frozen_weights")
    assert trainable == changed == ["dense2.weight", "dense2.bias"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loss", "step 7: the loss is not finite in layer 1"),
        ("loss-eager", "step 7: the loss is not finite in layer 1"),
        ("gradient", "step 7: the gradient is not finite in layer 0"),
        ("dense", "step 7: the loss is not finite in layer 0"),
    ],
)
def test_what_is_not_finite_is_found_in_its_layer_before_weights_change(cases, name, words):
    found = cases("not_finite")
    key, message, is_unchanged = found[name]
    assert key == "not_finite"
    assert words in message
    assert is_unchanged
    assert found[f"{name} active"]


def test_rows_that_are_not_finite_are_found_in_the_first_layer(cases):
    assert "loss is not finite in layer dense1" in cases("not_finite")["rows"][1]


def test_bfloat16_trains_float32_weights_nearly_as_float32_does(cases):
    found = cases("bfloat16")
    if "refused" in found:
        assert "avx512" in found["refused"]
        return
    assert {*found["types"]} == {"float32"}
    # bfloat16 has three digits.
    np.testing.assert_allclose(*found["losses"], rtol=5e-3)
    assert 0 < found["distance"] < 5e-3


# state


def test_run_is_repeated_and_resumed_in_another_process_bit_for_bit(states, folder):
    whole = states("whole_runs")
    resumed = run("mxnet_states", folder, "resume")
    for kind, (first, second) in whole.items():
        assert first == second == resumed[kind], kind


def test_state_has_names_of_places_and_is_checked(states):
    found = states("state_names")
    assert {"weights/batchnorm1.running_mean", "optimizer/dense1.weight/v", "optimizer/dense1.weight/step"} <= {*found["names"]}
    assert {"optimizer/dense1.weight/0", "optimizer/settings/m_schedule", "optimizer/schedule/count"} <= {*found["own"]}
    assert found["missing"][0] == found["shape"][0] == "bad_checkpoint"
    assert "optimizer/dense1.weight/v" in found["missing"][1]
    assert "(2,)" in found["shape"][1]


def test_session_bounds_threads_and_restores_them_and_all_random_numbers(states):
    found = states("sessions")
    before, inside, after = found["threads"]
    assert (inside, after) == (2, before)
    assert found["same"] and found["restored"] and found["followed"]


# loaders


def test_loaders_give_their_batches_without_padding(states):
    found = states("loaders")
    assert found["owner"] == ["mxnet", "mxnet"]
    batches = [[0, 1, 2], [3, 4, 5], [6]]
    for read in (*found["padded"], found["gluon"]):
        assert [x for x, _ in read] == [y for _, y in read] == batches
    assert [y for _, y in found["discarded"]] == batches[:2]


def test_shuffled_epochs_follow_from_the_seed_alone(states):
    found = states("loaders")
    assert found["shuffled"] == [True, True, True]
    first, second = found["gluon-shuffled"]
    assert first == second
    assert sorted(value for _, y in first for value in y) == list(range(7))


def test_loaders_may_give_inputs_alone(states):
    found = states("loaders")
    assert found["alone"] == found["unlabelled"] == [[0, 1, 2], [3, 4, 5], [6]]


def test_iterator_gives_what_it_has_and_one_that_depends_on_the_past_is_refused(states):
    found = states("loaders")
    assert found["several"] == [2, 2, 2]
    key, message = found["rolled"]
    assert key == "bad_data"
    assert "rolls rows over" in message
