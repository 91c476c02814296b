"""The method cards against the code: names, defaults, memory; and what they say of the text's prose, on tiny problems."""

from __future__ import annotations

import dataclasses
import doctest
import re

import numpy as np
import pytest

from argosy.optim import OPTIMIZERS, SGD, Adam, Genetic, GradientOptimizer, LinearDecay, Momentum, RMSprop
from tests.scripts import ROOT

CARDS = ROOT / "src" / "argosy" / "optim"
PAGE = ROOT / "docs" / "optimizers.md"
CARD_OF = {name: name if issubclass(kind, GradientOptimizer) else "free" for name, kind in OPTIMIZERS.items()}
GRADIENT_CARDS = [name for name, card in CARD_OF.items() if card == name]


def read_card(rule: str) -> str:
    return (CARDS / f"{CARD_OF[rule]}.md").read_text()


def read_table(rule: str) -> dict[str, str]:
    """Parameters and defaults of the table that follows the rule's class name."""
    (table,) = re.findall(rf"\(`{OPTIMIZERS[rule].__name__}\(\.\.\.\)`\)\n\n((?:\|.*\n)+)", read_card(rule))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert all(why for _, _, why in cells)
    return {name.strip("`"): default for name, default, _ in cells}


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_card_lists_every_parameter_with_its_default(rule):
    assert read_table(rule) == {key.name: repr(key.default) for key in dataclasses.fields(OPTIMIZERS[rule])}


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_card_says_how_many_numbers_the_rule_keeps_for_each_weight(rule):
    weights = {"w": np.ones((3, 2)), "b": np.ones(5)}
    slots = OPTIMIZERS[rule]().init_state(weights).slots
    kept = sum(array.size for arrays in slots.values() for array in arrays.values()) // 11
    sections = re.split(r"^## ", read_card(rule), flags=re.MULTILINE)
    (section,) = [section for section in sections if f"`{OPTIMIZERS[rule].__name__}(...)`" in section]
    assert re.findall(r"Memory: (\d+) numbers? for each weight", section) == [str(kept)]
    (counts,) = re.findall(r"^Numbers kept for each weight: (.*)\.$", PAGE.read_text(), re.MULTILINE)
    assert f"{rule.replace('_', ' ')} {kept}" in counts.lower()


def test_every_card_is_of_a_rule():
    assert {path.stem for path in CARDS.glob("*.md")} == set(CARD_OF.values())


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_card_has_all_its_parts(rule):
    text = read_card(rule)
    for part in ("What.", "Rule.", "Parameters, and why these defaults", "Cost.", "When.", "Source."):
        assert f"**{part}**" in text
    assert "**Limits" in text
    assert re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.|lecture", text)
    if rule in GRADIENT_CARDS:
        assert 'form="common"' in text
        assert 'form="text"' in text


@pytest.mark.parametrize("page", [*sorted(CARDS.glob("*.md")), PAGE], ids=lambda path: path.stem)
def test_measurements_are_filled_in_and_links_lead_somewhere(page):
    text = page.read_text()
    blocks = re.findall(r"<!-- measured: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert "where" in dict(blocks)
    assert all(block.strip() for _, block in blocks)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("rule", GRADIENT_CARDS)
def test_examples_on_the_card_run(rule):
    outcome = doctest.testfile(str(CARDS / f"{rule}.md"), module_relative=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def descend(rule, num_steps, start=(1.0,), differentiate=lambda w: w):
    """Places of a weight on the way down a loss, by default w^2 / 2, whose gradient is w; shape (steps, weights)."""
    weights = {"w": np.array(start)}
    state, places = rule.init_state(weights), []
    for _ in range(num_steps):
        weights, state = rule.update(weights, {"w": differentiate(weights["w"])}, state)
        places.append(weights["w"])
    return np.array(places)


def test_gradient_is_not_divided_by_the_rows_again():
    # 100 steps of w - 0.1 w: 0.9 to the power of 100, exact but for rounding.
    assert descend(SGD(learning_rate=0.1), 100)[-1, 0] == pytest.approx(0.9**100, rel=1e-12)
    assert descend(SGD(learning_rate=0.1 / 32), 100)[-1, 0] > 0.7


def test_momentum_as_printed_climbs_and_the_mended_one_descends():
    w, v, printed = 1.0, 0.0, []
    for _ in range(50):
        v = 0.9 * v + (1 - 0.9) * w
        w = w + v
        printed.append(w * w / 2)
    assert np.all(np.diff(printed) > 0)
    assert printed[-1] > 1e9
    mended = descend(Momentum(learning_rate=0.1, form="text"), 50)[:, 0] ** 2 / 2
    assert np.all(mended < 0.5)
    assert mended[-1] < 0.01


def test_momentum_text_is_momentum_common_at_a_tenth_of_the_rate():
    text = descend(Momentum(learning_rate=0.1, form="text"), 50)
    np.testing.assert_allclose(text, descend(Momentum(learning_rate=0.01), 50), rtol=1e-12)


def test_momentum_stands_still_once_the_rate_is_zero():
    places = descend(Momentum(learning_rate=LinearDecay(0.1, steps=10)), 20)[:, 0]
    np.testing.assert_array_equal(places[10:], places[10])
    # With the rate inside the running sum instead, the weight goes on.
    w, v, inside = 1.0, 0.0, []
    for step in range(20):
        v = 0.9 * v + 0.1 * max(0.0, 1 - step / 10) * w
        w = w - v
        inside.append(w)
    assert abs(inside[-1] - inside[10]) > 0.05


@pytest.mark.parametrize("form", ["common", "text"])
def test_rmsprop_moves_weights_alike_whatever_the_scale_of_their_gradients(form):
    scales = np.array([1.0, 1e-2])
    ways = 1.0 - descend(RMSprop(learning_rate=0.01, form=form), 50, start=(1.0, 1.0), differentiate=lambda w: scales)[-1]
    assert ways[1] == pytest.approx(ways[0], rel=1e-3)  # epsilon is a part of 1e-4 of the smaller mean square
    mean, unrooted = np.zeros(2), np.zeros(2)
    for _ in range(50):
        mean = 0.9 * mean + 0.1 * scales**2
        unrooted += 0.01 * scales / (mean + 1e-8)
    assert unrooted[1] > 90 * unrooted[0]


@pytest.mark.parametrize("form", ["common", "text"])
def test_adam_settles_where_adam_without_memory_jumps_about_for_ever(form):
    settled = descend(Adam(learning_rate=0.01, form=form), 1000)[-50:, 0]
    assert np.max(np.abs(settled)) < 1e-6
    w, forgetful = 1.0, []
    for _ in range(1000):
        w = w - 0.01 * 0.1 * w / (np.sqrt(0.001 * w**2) + 1e-8)
        forgetful.append(w)
    # 3.2 times the rate in every step, so that the larger of two neighbours is at least half of that away.
    steps = np.abs(np.diff(forgetful))
    np.testing.assert_allclose(steps, 0.01 * 0.1 / np.sqrt(0.001), rtol=1e-4)
    assert np.max(np.abs(forgetful[-2:])) > 0.015


def test_adam_text_takes_larger_first_steps_than_the_rate():
    differentiate = np.ones_like
    text = -np.diff(descend(Adam(learning_rate=0.01, form="text"), 1001, differentiate=differentiate)[:, 0], prepend=1.0)
    common = -np.diff(descend(Adam(learning_rate=0.01), 1001, differentiate=differentiate)[:, 0], prepend=1.0)
    np.testing.assert_allclose(common, 0.01, rtol=1e-6)
    assert text[0] == pytest.approx(0.0316, rel=0.01)
    assert text.argmax() + 1 == 12
    assert text[11] == pytest.approx(0.0657, rel=0.01)
    assert 0.012 < text[900] < 0.013


@pytest.mark.parametrize("rule", [SGD(learning_rate=0.5), Adam(learning_rate=0.01)], ids=lambda rule: rule.name)
def test_adam_overfits_as_sgd_does(rule):
    """Logistic regression with more weights than rows, of which a fifth is labelled wrongly."""
    random = np.random.default_rng(0)
    x, direction = random.standard_normal((1040, 60)), random.standard_normal(60)
    y = (x @ direction > 0).astype(float)
    few, labels = x[:40], np.where(np.arange(40) % 5 == 0, 1 - y[:40], y[:40])

    def measure(w, rows, targets):
        z = rows @ w
        return float(np.mean(np.logaddexp(0.0, z) - z * targets))

    places = descend(
        rule, 1000, start=np.zeros(60), differentiate=lambda w: few.T @ (1 / (1 + np.exp(-few @ w)) - labels) / len(few)
    )
    tests = [measure(w, x[40:], y[40:]) for w in places]
    assert measure(places[-1], few, labels) < 0.05
    assert tests[-1] > 1.2 * min(tests)


def test_genetic_rule_is_worse_than_a_gradient_at_equal_forward_passes():
    target = np.random.default_rng(0).standard_normal(100)
    weights = {"w": np.zeros(100)}

    def measure(tried):
        return float(np.mean((tried["w"] - target) ** 2))

    rule = Genetic(scale=0.3)
    state = rule.init_state(weights)
    for step in range(30):
        weights, state = rule.search(weights, measure, state, np.random.default_rng([0, step]))
    adam = descend(Adam(learning_rate=0.1), 10 * 32, start=np.zeros(100), differentiate=lambda w: 2 * (w - target) / 100)
    assert measure({"w": adam[-1]}) < 0.1 * measure(weights)
    assert measure(weights) < 0.9 * measure({"w": np.zeros(100)})
