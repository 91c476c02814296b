"""Programs of any form in Gluon, held against loops by hand: trees, weights, steps of one's own, groups, frozen weights."""

from __future__ import annotations

import pytest

from tests.frameworks.mxnet_run import run_cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return run_cases("mxnet_programs", tmp_path_factory.mktemp("mxnet"))


@pytest.mark.parametrize("name", ["tuples", "pieces", "loader", "function-of-all"])
def test_several_inputs_and_outputs_train_as_a_loop_by_hand(cases, name):
    assert cases("trees")[name] < 1e-6


def test_metrics_may_be_those_of_mxnet_and_ones_own(cases):
    found = cases("metrics")
    assert found["measured"].keys() == {"share", "f1"} and found["trained"] == ["share"]
    assert found["measured"]["share"] == pytest.approx(found["accuracy"])
    assert found["recall"][0] == pytest.approx(found["recall"][1])


@pytest.mark.parametrize("loss", ["ours", "gluon", "itself"])
def test_weights_of_rows_and_classes_multiply_the_loss_of_a_row(cases, loss):
    assert max(cases("weights")[loss]) < 3e-6


def test_groups_have_rates_and_decays_of_their_own_and_gradients_are_clipped_by_value(cases):
    assert cases("groups") < 1e-6


@pytest.mark.parametrize("optimizer", ["rule", "trainer"])
def test_frozen_layers_stay_with_their_statistics(cases, optimizer):
    found = cases("frozen")[optimizer]
    assert found["distance"] < 1e-6
    assert found["moved"] == ["head.weight", "head.bias"] and found["as-it-was"] is False


def test_adversaries_train_by_two_optimizers_and_resume_bit_for_bit(cases):
    assert cases("adversaries_resume") == [True, ["discriminator", "generator"]]
    assert cases("two_optimizers") < 1e-6


def test_returned_loss_is_made_small(cases):
    distance, metrics = cases("returned_loss")
    assert distance < 1e-6 and metrics == {"number": 3.5}


@pytest.mark.parametrize("optimizer", ["rule", "text", "own"])
def test_ruinous_batch_is_left_out_and_rates_are_halved(cases, optimizer):
    skipped, distance = cases("rescue")[optimizer]
    assert skipped == [[1, 1], [2, 1]] and distance < 1e-6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-gradient", "a number without a gradient"),
        ("no-rows", "a tensor of shape (2,)"),
        ("a-float", "builtins.float"),
        ("no-scalar", "a tensor of shape (12, 2)"),
        ("nothing", "builtins.NoneType"),
        ("no-optimizer", "expected None"),
        ("no-weight", "without a gradient"),
        ("logs-no-scalar", "`fit.log(a)`"),
        ("unweighable", "a loss that gives a scalar"),
        ("no-such-weight", "`freeze` is 'tail'"),
        ("optimizers-without-step", "with a step of one's own"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was(cases, name, words):
    key, message, distance = cases("refusals")[name]
    assert key in ("bad_loss", "bad_option") and words in message
    assert distance == 0
