"""Programs as JSON data: alike for models that are built alike, another for every other setting."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

from argosy.frameworks.base import get_framework
from argosy.frameworks.describe import Describer, find_difference
from argosy.frameworks.layers import Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights

LAYERS = (Conv(2), Relu(), MaxPool(), Flatten(), Dropout(0.3), Dense(3))
DESCRIBER = Describer((), lambda value: None, lambda value: None)
RATE = 0.5


@pytest.mark.parametrize("name", ["torch", "keras", pytest.param("tensorflow", marks=pytest.mark.needs("tensorflow")), "jax"])
def test_program_of_every_framework_holds_the_settings_of_layers(name):
    framework = get_framework(name)

    def describe(layers, seed=0):
        model = framework.build_network(layers, (1, 4, 4), draw_weights(layers, (1, 4, 4), seed))
        return json.loads(json.dumps(framework.describe_program(model)))

    program = describe(LAYERS)
    assert find_difference(program, describe(LAYERS, seed=1)) is None
    where, one, other = find_difference(program, describe((*LAYERS[:4], Dropout(0.4), LAYERS[-1])))
    assert (where.rpartition(".")[2] in ("rate", "p"), one, other) == (True, 0.3, 0.4)
    assert describe((*LAYERS[:1], *LAYERS[2:])) != program
    assert framework.training_methods[0] in ("compute_loss", "train_step", "training_step")


def make_scale(factor, limit=3):
    def scale(x):
        """Say what it does."""
        return min(factor * x, limit) + RATE

    return scale


class Layer:
    rate = 0.1

    def __init__(self, size):
        self.size = size
        self.count = 0
        self.inner = [self, {"scale": make_scale(size)}]

    def call(self, x):
        self.count += 1
        return x * self.rate


class Faster(Layer):
    rate = 0.2


class Slower(Layer):
    def call(self, x):
        self.count += 1
        return x / self.rate


def test_values_are_alike_exactly_if_they_would_do_the_same():
    counted = Layer(2)
    counted.call(1)
    assert DESCRIBER.describe(Layer(2)) == DESCRIBER.describe(counted)
    different = [
        *(Layer(2), Layer(3), Faster(2), Slower(2)),
        *(make_scale(2), make_scale(3), make_scale(2, 4), lambda x: 2 * x, lambda x: 3 * x),
        *(functools.partial(make_scale(2), 1), functools.partial(make_scale(2), x=1), np.tanh, np.cos, min),
        *(np.arange(3), np.arange(3.0), np.arange(4), np.arange(100), list(range(100)), list(range(101))),
        *({"a", "b"}, {"a", "c"}, ["a", "d"], {"a": 1}, {"a": 1.5}, None, True, "x", b"x", float("nan"), np.float32(2.5)),
    ]
    described = [json.dumps(DESCRIBER.describe(value)) for value in different]
    assert len(set(described)) == len(different)
    assert not any("0x" in text for text in described)


def test_global_that_a_function_uses_is_part_of_it(monkeypatch):
    before = DESCRIBER.describe(make_scale(2))
    monkeypatch.setitem(globals(), "RATE", 0.6)
    assert find_difference(before, DESCRIBER.describe(make_scale(2))) == ("uses.RATE", 0.5, 0.6)


def test_things_that_hold_one_another_come_to_an_end():
    @dataclasses.dataclass
    class Node:
        other: object = None

    node = Node()
    node.other = Node({"back": [node]})
    assert DESCRIBER.describe(node)["other"]["other"]["back"] == ["that of the whole"]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        pytest.param({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ("a.1.b", 2, 3), id="nested"),
        pytest.param({"a": 1}, {"a": 1, "b": 2}, ("b", "missing", 2), id="more"),
        pytest.param([1, 2], [1], ("1", 2, "missing"), id="fewer"),
        pytest.param({"a": [1]}, {"a": [1]}, None, id="none"),
    ],
)
def test_difference_is_named_by_its_place(one, other, found):
    assert find_difference(one, other) == found
