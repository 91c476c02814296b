"""The rules themselves, in NumPy, against the papers' formulas written out once more."""

from __future__ import annotations

import doctest
import json
from fractions import Fraction

import numpy as np
import pytest

from argosy.errors import InputError
from argosy.optim import (
    OPTIMIZERS,
    SGD,
    Adam,
    CosineDecay,
    LinearDecay,
    Momentum,
    RMSprop,
    StepDecay,
    get_optimizer,
    registry,
    schedules,
)
from argosy.optim.base import bias_correction

WEIGHTS = {"w": np.array([1.0, -2.0, 0.5]), "b": np.array([[0.25]])}
GRADIENTS = {"w": np.array([0.3, -0.4, 0.0]), "b": np.array([[1.2]])}


def test_sgd_moves_against_the_gradient():
    moved, state = SGD(learning_rate=0.1).update(WEIGHTS, GRADIENTS, SGD().init_state(WEIGHTS))
    np.testing.assert_allclose(moved["w"], [0.97, -1.96, 0.5], rtol=1e-15)
    np.testing.assert_allclose(moved["b"], [[0.13]], rtol=1e-15)
    assert state.step == 1


def test_adam_equals_algorithm_1_of_the_paper_over_50_steps():
    rule = Adam(learning_rate=0.05, betas=(0.8, 0.95), epsilon=1e-3)
    random = np.random.default_rng(0)
    weights, state = {"w": np.array([0.7])}, rule.init_state({"w": np.array([0.7])})
    theta, m, v = 0.7, 0.0, 0.0
    for t in range(1, 51):
        gradient = float(random.normal())
        weights, state = rule.update(weights, {"w": np.array([gradient])}, state)
        m = 0.8 * m + 0.2 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        theta -= 0.05 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)) ** 0.5 + 1e-3)
    # float64 on both sides; only the order of the operations differs.
    assert weights["w"][0] == pytest.approx(theta, rel=1e-12)
    assert state.step == 50


def test_adams_first_step_is_the_learning_rate_in_each_direction():
    rule = Adam(learning_rate=0.01)
    moved, _ = rule.update(WEIGHTS, GRADIENTS, rule.init_state(WEIGHTS))
    np.testing.assert_allclose(moved["w"] - WEIGHTS["w"], [-0.01, 0.01, 0.0], rtol=1e-6)


@pytest.mark.parametrize("rule", [SGD(), Adam()], ids=lambda rule: rule.name)
def test_update_changes_nothing_in_place_and_keeps_the_datatype(rule):
    weights = {name: w.astype(np.float32) for name, w in WEIGHTS.items()}
    gradients = {name: g.astype(np.float32) for name, g in GRADIENTS.items()}
    state = rule.init_state(weights)
    moved, _ = rule.update(weights, gradients, state)
    assert {name: w.dtype for name, w in moved.items()} == {"w": np.float32, "b": np.float32}
    np.testing.assert_array_equal(weights["w"], WEIGHTS["w"].astype(np.float32))
    assert all(not array.any() for slot in state.slots.values() for array in slot.values())


def test_clip_norm_scales_all_gradients_by_one_factor():
    norm = float(np.sqrt(0.3**2 + 0.4**2 + 1.2**2))
    moved, _ = SGD(learning_rate=1.0, clip_norm=norm / 4).update(WEIGHTS, GRADIENTS, SGD().init_state(WEIGHTS))
    np.testing.assert_allclose(WEIGHTS["w"] - moved["w"], GRADIENTS["w"] / 4, rtol=1e-14)
    np.testing.assert_allclose(WEIGHTS["b"] - moved["b"], GRADIENTS["b"] / 4, rtol=1e-14)


def test_clip_norm_leaves_smaller_gradients_alone():
    clipped, _ = SGD(clip_norm=10.0).update(WEIGHTS, GRADIENTS, SGD().init_state(WEIGHTS))
    free, _ = SGD().update(WEIGHTS, GRADIENTS, SGD().init_state(WEIGHTS))
    np.testing.assert_array_equal(clipped["w"], free["w"])


def test_weight_decay_is_added_to_the_clipped_gradient():
    moved, _ = SGD(learning_rate=1.0, clip_norm=0.13, weight_decay=0.5).update(WEIGHTS, GRADIENTS, SGD().init_state(WEIGHTS))
    np.testing.assert_allclose(WEIGHTS["w"] - moved["w"], GRADIENTS["w"] / 10 + 0.5 * WEIGHTS["w"], rtol=1e-12)


def test_learning_rate_falls_linearly_to_zero_and_stays_there():
    rule = SGD(learning_rate=LinearDecay(0.8, steps=4))
    np.testing.assert_allclose([rule.rate_at(step) for step in range(1, 8)], [0.8, 0.6, 0.4, 0.2, 0, 0, 0], atol=1e-15)
    assert SGD(learning_rate=0.8).rate_at(10**9) == 0.8


def test_learning_rate_follows_half_a_cosine_after_a_linear_warm_up():
    schedule = CosineDecay(0.8, steps=4, end=0.2, warmup_steps=2)
    expected = [0.4, 0.8, 0.8, 0.5 + 0.3 * np.cos(np.pi / 4), 0.5, 0.5 - 0.3 * np.cos(np.pi / 4), 0.2, 0.2]
    np.testing.assert_allclose([schedule.rate_at(step) for step in range(1, 9)], expected, rtol=1e-12)


def test_learning_rate_falls_in_steps():
    np.testing.assert_allclose([StepDecay(1.0, steps=3).rate_at(step) for step in (1, 3, 4, 7)], [1, 1, 0.1, 0.01], rtol=1e-12)


def _scalar_moves(rule, gradients):
    weights = {"w": np.array([0.7])}
    state, places = rule.init_state(weights), []
    for gradient in gradients:
        weights, state = rule.update(weights, {"w": np.array([gradient])}, state)
        places.append(weights["w"][0])
    return places


def _write_out(name, form, gradients):
    """The table of both forms, a line each, with rate 0.1, beta and rho 0.9, betas 0.9 and 0.999, epsilon 1e-3."""
    w, v, m, places = 0.7, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        match name, form:
            case "momentum", "text":
                v = 0.9 * v + (1 - 0.9) * g
                w = w - 0.1 * v
            case "momentum", "common":
                v = 0.9 * v + g
                w = w - 0.1 * v
            case "rmsprop", "text":
                v = 0.9 * v + (1 - 0.9) * g**2
                w = w - 0.1 * g / (v + 1e-3) ** 0.5
            case "rmsprop", "common":
                v = 0.9 * v + (1 - 0.9) * g**2
                w = w - 0.1 * g / (v**0.5 + 1e-3)
            case "adam", "text":
                m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2
                w = w - 0.1 * m / (v**0.5 + 1e-3)
            case "adam", "common":
                m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2
                w = w - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-3)
            case _:
                w = w - 0.1 * g
        places.append(w)
    return places


@pytest.mark.parametrize("form", ["common", "text"])
@pytest.mark.parametrize("kind", [SGD, Momentum, RMSprop, Adam], ids=lambda kind: kind.name)
def test_each_form_equals_its_formula_over_50_steps(kind, form):
    gradients = np.random.default_rng(1).normal(size=50).tolist()
    epsilon = {"epsilon": 1e-3} if kind in (RMSprop, Adam) else {}
    got = _scalar_moves(kind(learning_rate=0.1, form=form, **epsilon), gradients)
    np.testing.assert_allclose(got, _write_out(kind.name, form, gradients), rtol=1e-11)


def test_nesterov_looks_one_step_ahead():
    got = _scalar_moves(Momentum(learning_rate=0.1, nesterov=True), [1.0, 0.5])
    np.testing.assert_allclose(got, [0.7 - 0.1 * 1.9, 0.7 - 0.1 * 1.9 - 0.1 * (0.5 + 0.9 * 1.4)], rtol=1e-12)


def test_decoupled_decay_shrinks_weights_beside_the_update():
    plain, decayed = (
        Adam(learning_rate=0.1, weight_decay=decay, decoupled_decay=True).update(WEIGHTS, GRADIENTS, Adam().init_state(WEIGHTS))[
            0
        ]
        for decay in (0.0, 0.5)
    )
    np.testing.assert_allclose(decayed["w"], plain["w"] - 0.1 * 0.5 * WEIGHTS["w"], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.999999])
def test_bias_correction_is_exact_where_the_plain_form_cancels(beta):
    for step in (1, 2, 10, 1000):
        exact = float(1 - Fraction(beta) ** step)
        # The logarithm of a beta near 1 is itself rounded: 1e-16 of it, over 1 - beta.
        assert bias_correction(beta, step) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"learning_rate": 0.0}),
        ("sgd", {"learning_rate": float("nan")}),
        ("sgd", {"learning_rate": "0.1"}),
        ("sgd", {"learning_rate": True}),
        ("sgd", {"weight_decay": -1e-3}),
        ("sgd", {"clip_norm": 0.0}),
        ("sgd", {"form": "prose"}),
        ("momentum", {"beta": 1.0}),
        ("momentum", {"nesterov": True, "form": "text"}),
        ("rmsprop", {"rho": -0.1}),
        ("rmsprop", {"epsilon": 0.0}),
        ("sgd", {"betas": (0.9, 0.999)}),
        ("adam", {"betas": (0.9, 1.0)}),
        ("adam", {"betas": (0.9,)}),
        ("adam", {"epsilon": 0.0}),
        ("adam", {"learning_rate": float("inf")}),
    ],
    ids=str,
)
def test_bad_parameters_are_named(name, options):
    with pytest.raises(InputError) as caught:
        get_optimizer(name, **options)
    assert caught.value.key == "bad_option"
    assert next(iter(options)) in caught.value.message


def test_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(InputError, match="Unknown optimizer 'adan'; known: adam, genetic, momentum, random_search, rmsprop, sgd"):
        get_optimizer("adan")


def test_get_optimizer_sets_options_of_an_object_and_keeps_the_others():
    rule = get_optimizer(Adam(learning_rate=0.1, epsilon=1e-4), weight_decay=0.2)
    assert rule == Adam(learning_rate=0.1, epsilon=1e-4, weight_decay=0.2)
    assert get_optimizer(rule) == rule


def test_description_is_json_and_names_every_parameter():
    described = json.loads(json.dumps(Adam(learning_rate=LinearDecay(0.1, 5), clip_norm=1.0).describe()))
    assert described == {
        "name": "adam",
        "learning_rate": {"name": "linear_decay", "learning_rate": 0.1, "steps": 5, "end": 0.0, "warmup_steps": 0},
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "form": "common",
        "betas": [0.9, 0.999],
        "epsilon": 1e-8,
        "decoupled_decay": False,
    }
    assert {rule().describe()["name"] for rule in OPTIMIZERS.values()} == set(OPTIMIZERS)


@pytest.mark.parametrize("module", [registry, schedules], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
