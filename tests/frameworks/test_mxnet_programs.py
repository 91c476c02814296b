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


@pytest.mark.parametrize("form", ["onnx", "native"])
def test_run_starts_from_a_version(cases, form):
    assert cases("start")[form] == {"distance": pytest.approx(0, abs=1e-25), "told": 7}


def test_run_starts_from_parts_of_a_version_alone(cases):
    found = cases("start")
    assert found["part"] == found["all"] == ["embed.weight", "norm.gamma", "norm.beta", "head.weight", "head.bias"]
    key, message = found["misfit"]
    assert key == "bad_start" and "it has no bias, weight" in message


@pytest.mark.parametrize("optimizer", ["rule", "scheduled"])
@pytest.mark.parametrize("poison", ["nan", "1000000.0"], ids=["nan", "huge"])
def test_poisoned_batch_costs_no_accuracy(cases, optimizer, poison):
    clean, found = (cases("poisoned")[f"{optimizer} {name}"] for name in ("None", poison))
    assert found["accuracy"] == pytest.approx(clean["accuracy"], abs=0.03) and clean["accuracy"] > 0.9
    # Weights that are not trained yet may bear the huge one.
    assert found["skipped"][-4:] == [[epoch, 6] for epoch in range(2, 6)] and clean["skipped"] == []
    assert found["finite"]


def test_rescue_under_a_schedule_of_mxnet_resumes_bit_for_bit(cases):
    assert cases("poisoned_resume") == [1, True, True, 2]


@pytest.mark.parametrize("optimizer", ["rule", "text", "own", "scheduled"])
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
