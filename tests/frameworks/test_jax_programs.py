"""Programs of any form in flax, held against loops by hand: trees, weights, steps of one's own, groups, frozen weights."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from argosy.errors import InputError
from argosy.frameworks.base import get_framework
from argosy.optim import SGD, Adam, Group, Momentum
from argosy.train.average import Ema
from argosy.train.run import train

FRAMEWORK = get_framework("jax")
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 24, 3)).astype(np.float32)
KIND = (A.sum(1) > 0).astype(np.int32)
VALUE = (B @ np.array([1.0, -2.0, 0.5]))[:, None].astype(np.float32)


class Two(nnx.Module):
    """Two inputs; a dict of two outputs."""

    def __init__(self):
        self.one, self.other = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1))

    def __call__(self, a, b):
        return {"kind": self.one(a), "value": self.other(b)}


class Pair(Two):
    def __call__(self, a, b):
        return self.one(a), self.other(b)


class Words(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(20, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))

    def __call__(self, ids):
        return self.head(self.norm(self.embed(ids).mean(axis=1)))


def make_linear():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def weights_of(model):
    return np.concatenate([weight.ravel() for weight in FRAMEWORK.get_weights(model).values()])


def quick(model, data, **options):
    return train(model, data, progress=False, **{"epochs": 2, "batch_size": 12, "shuffle": False, **options})


def plain_loop(model, loss_of, transformation):
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for _ in range(2):
        for start in (0, 12):
            gradients = nnx.grad(loss_of)(model, slice(start, start + 12))
            optimizer.update(model, gradients)


def cross_entropy(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


def two_losses(model, rows):
    outputs = model(A[rows], B[rows])
    kind, value = outputs.values() if isinstance(outputs, dict) else outputs
    return cross_entropy(kind, KIND[rows]).mean() + 0.25 * jnp.square(value - VALUE[rows]).mean()


def of_all(outputs, targets):
    return cross_entropy(outputs["kind"], targets["kind"]).mean() + 0.25 * jnp.square(outputs["value"] - targets["value"]).mean()


BY_OUTPUT = {"loss": {"kind": "cross_entropy", "value": "mse"}, "loss_weights": {"value": 0.25}}


@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        pytest.param(Two, ({"a": A, "b": B}, {"kind": KIND, "value": VALUE}), {"micro_batch_size": 5, **BY_OUTPUT}, id="pieces"),
        pytest.param(Pair, ((A, B), (KIND, VALUE)), {"loss": (cross_entropy, "mse"), "loss_weights": (1, 0.25)}, id="tuples"),
        pytest.param(Two, ((A, B), {"kind": KIND, "value": VALUE}), {"loss": of_all}, id="function-of-all"),
        pytest.param(
            Two,
            {"a": A, "b": B, "kind": KIND, "value": VALUE},
            {"targets": ("kind", "value"), "metrics": {"kind": ["accuracy"], "value": ["mse"]}, **BY_OUTPUT},
            id="columns",
        ),
    ],
)
def test_several_inputs_and_outputs_train_as_a_loop_by_hand(make, data, options):
    ours, theirs = make(), make()
    plain_loop(theirs, two_losses, optax.sgd(0.1))
    result = quick(ours, data, optimizer=SGD(learning_rate=0.1), **options)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    if "targets" in options:
        assert result.settings.metrics == ("kind_accuracy", "value_mse")
        assert result.history[-1].metrics.keys() == {"kind_accuracy", "value_mse"}


def weighted_itself(outputs, targets, weights):
    return (cross_entropy(outputs, targets) * weights).mean()


@pytest.mark.parametrize("loss", ["cross_entropy", cross_entropy, weighted_itself], ids=["ours", "by-row", "weighted-itself"])
def test_weights_of_rows_and_classes_multiply_the_loss_of_a_row(loss):
    w = RANDOM.random(24).astype(np.float32)
    total = w * np.where(KIND == 1, 3.0, 1.0).astype(np.float32)
    ours, theirs = make_linear(), make_linear()
    plain_loop(theirs, lambda model, rows: (cross_entropy(model(A[rows]), KIND[rows]) * total[rows]).mean(), optax.sgd(0.1))
    options = {"optimizer": SGD(learning_rate=0.1), "class_weights": {1: 3.0}, "validation_data": (A, KIND, w)}
    result = quick(ours, (A, KIND, w), loss=loss, **options)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    plain = float((cross_entropy(ours(A), KIND) * w).mean())
    assert result.history[-1].validation_loss == pytest.approx(plain, rel=1e-5)


def test_groups_clipping_by_value_and_metrics_of_flax():
    theirs = make_linear()
    clip = optax.clip(0.05)
    parts = {
        "slow": optax.chain(clip, optax.add_decayed_weights(0.3), optax.sgd(0.01)),
        "plain": optax.chain(clip, optax.sgd(0.1)),
    }

    def label(weights):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "slow" if "kernel" in jax.tree_util.keystr(path) else "plain", weights
        )

    plain_loop(theirs, lambda model, rows: cross_entropy(model(A[rows]), KIND[rows]).mean(), optax.multi_transform(parts, label))
    ours = make_linear()
    rule = SGD(
        learning_rate=0.1, weight_decay=0.3, clip_value=0.05, groups=(Group("*bias", weight_decay=0.0), Group("kernel", 0.1))
    )
    recall = {"recall": lambda outputs, targets: (outputs.argmax(1)[targets == 1] == 1).mean()}
    result = quick(ours, (A, KIND), optimizer=rule, metrics=[nnx.metrics.Accuracy()], validation_data=(A, KIND))
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    assert result.history[-1].validation_metrics["Accuracy"] == pytest.approx(result.evaluate(A, KIND)["Accuracy"])
    again = quick(make_linear(), (A, KIND), optimizer=rule, metrics=recall, validation_data=(A, KIND))
    assert again.history[-1].validation_metrics["recall"] == pytest.approx(recall["recall"](np.asarray(ours(A)), KIND))


def test_frozen_layers_stay_with_their_statistics_and_integers_are_inputs():
    ids = RANDOM.integers(0, 20, (24, 5))
    model = Words()
    before = FRAMEWORK.get_weights(model)
    result = quick(model, (ids, KIND), freeze=["norm", "embed*"], optimizer=SGD(learning_rate=0.1))
    after = FRAMEWORK.get_weights(model)
    assert [name for name in after if not np.array_equal(after[name], before[name])] == ["head.bias", "head.kernel"]
    assert result.describe_lineage()["weights"]["trained"] == 10
    theirs = Words()
    theirs.norm.use_running_average = True

    def loss_of(head, rows):
        return cross_entropy(head(theirs.norm(theirs.embed(ids[rows]).mean(axis=1))), KIND[rows]).mean()

    plain_loop(theirs.head, loss_of, optax.sgd(0.1))
    np.testing.assert_allclose(weights_of(model), weights_of(theirs), atol=1e-6)


class Gan(nnx.Module):
    def __init__(self):
        self.generator, self.discriminator = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Linear(1, 1, rngs=nnx.Rngs(1))
        self.rngs = nnx.Rngs(3)

    def __call__(self, noise):
        return self.generator(noise)


def tell(model, real, fake):
    loss = optax.sigmoid_binary_cross_entropy
    return loss(model.discriminator(real), jnp.ones((len(real), 1))).mean() + loss(model.discriminator(fake), 0.0).mean()


def fool(model, noise):
    return optax.sigmoid_binary_cross_entropy(model.discriminator(model.generator(noise)), 1.0).mean()


def adversaries(model, batch, fit):
    noise = jax.random.normal(jax.random.key(fit.seed), (len(batch), 2)) + model.rngs.params.uniform((1, 2))
    told = fit.minimize(lambda model: tell(model, batch, jax.lax.stop_gradient(model.generator(noise))), "discriminator")
    fooled = fit.minimize(lambda model: fool(model, noise), "generator")
    fit.log(discriminator=told, generator=fooled)
    return told + fooled


def test_adversaries_train_by_two_optimizers_and_resume_bit_for_bit(tmp_path):
    optimizers = {"generator": Adam(learning_rate=0.01), "discriminator": optax.adam(0.02)}

    def run(epochs, folder, resume=False):
        model = Gan()
        options = {"optimizer": optimizers, "checkpoints": tmp_path / folder, "resume": resume, "average": Ema(decay=0.5)}
        return quick(model, VALUE, step=adversaries, epochs=epochs, **options)

    result = run(4, "whole")
    assert result.history[-1].metrics.keys() == {"discriminator", "generator"}
    run(2, "broken")
    np.testing.assert_array_equal(weights_of(run(4, "broken", resume=True).model), weights_of(result.model))


def test_two_optimizers_move_as_those_of_a_loop_by_hand():
    noise = RANDOM.normal(size=(12, 2)).astype(np.float32)

    def step(model, batch, fit):
        fit.minimize(lambda model: tell(model, batch, jax.lax.stop_gradient(model.generator(noise))), "discriminator")
        fit.minimize(lambda model: fool(model, noise), "generator")

    ours, theirs = Gan(), Gan()
    rules = {"generator": Adam(learning_rate=0.1), "discriminator": optax.sgd(0.1)}
    quick(ours, VALUE, step=step, optimizer=rules)
    adam = nnx.Optimizer(theirs.generator, optax.adam(0.1), wrt=nnx.Param)
    sgd = nnx.Optimizer(theirs.discriminator, optax.sgd(0.1), wrt=nnx.Param)
    for _ in range(2):
        for real in (VALUE[:12], VALUE[12:]):
            fake = theirs.generator(noise)

            def told(part, real=real, fake=fake):
                return tell(type("Parts", (), {"discriminator": part}), real, fake)

            sgd.update(theirs.discriminator, nnx.grad(told)(theirs.discriminator))
            other = theirs.discriminator
            moved = nnx.grad(lambda part, other=other: optax.sigmoid_binary_cross_entropy(other(part(noise)), 1.0).mean())
            adam.update(theirs.generator, moved(theirs.generator))
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-5)


def test_returned_loss_is_made_small_and_a_step_that_looks_at_numbers_is_not_compiled(caplog):
    def step(model, batch, fit):
        x, y = batch
        fit.log(number=fit.number)
        return cross_entropy(model(x), y).mean()

    def looking(model, batch, fit):
        return step(model, batch, fit) if float(batch[0].sum()) < 1e9 and fit.number % 2 < 2 else None

    ours, other, theirs = make_linear(), make_linear(), make_linear()
    plain_loop(theirs, lambda model, rows: cross_entropy(model(A[rows]), KIND[rows]).mean(), optax.sgd(0.1))
    result = quick(ours, (A, KIND), step=step, optimizer=optax.sgd(0.1))
    assert result.history[-1].metrics == {"number": 3.5}
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        quick(other, (A, KIND), step=looking, optimizer=optax.sgd(0.1))
    assert "it is not compiled" in caplog.text
    for model in (ours, other):
        np.testing.assert_allclose(weights_of(model), weights_of(theirs), atol=1e-6)


@pytest.mark.parametrize("make", [lambda: Momentum(learning_rate=0.1), lambda: optax.sgd(0.1, momentum=0.9)], ids=["rule", "own"])
def test_ruinous_batch_is_left_out_and_rates_are_halved(make):
    x = np.concatenate([A[:12], np.full((12, 3), 3e38, np.float32), A[12:]])
    y = np.concatenate([KIND[:12], KIND])
    ours, theirs = make_linear(), make_linear()
    result = quick(ours, (x, y), optimizer=make())
    assert [(skip.epoch, skip.batch) for skip in result.skipped] == [(1, 1), (2, 1)]
    halved = optax.sgd(lambda count: jnp.array([0.1, 0.05, 0.1, 0.05])[count], momentum=0.9)
    plain_loop(theirs, lambda model, rows: cross_entropy(model(A[rows]), KIND[rows]).mean(), halved)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"loss": lambda o, y: jax.lax.stop_gradient(o).sum()}, "a number without a gradient", id="no-gradient"),
        pytest.param({"loss": lambda o, y: o[:2].sum(1)}, "a tensor of shape (2,)", id="no-rows"),
        pytest.param({"loss": lambda o, y: 3.0}, "builtins.float", id="a-float"),
        pytest.param({"step": lambda m, b, f: m(b[0])}, "a tensor of shape (12, 2)", id="step-gives-no-scalar"),
        pytest.param({"step": lambda m, b, f: None}, "builtins.NoneType", id="step-gives-nothing"),
        pytest.param({"step": lambda m, b, f: f.minimize(lambda m: m(b[0]).sum(), "head")}, "expected None", id="no-optimizer"),
        pytest.param({"step": lambda m, b, f: f.minimize(m(b[0]).sum())}, "a function of the model", id="computed-already"),
        pytest.param({"step": lambda m, b, f: f.minimize(lambda m: b[0].sum())}, "without a gradient", id="no-weight"),
        pytest.param({"step": lambda m, b, f: f.log(a=b[0])}, "`fit.log(a)`", id="logs-no-scalar"),
        pytest.param({"class_weights": {1: 2.0}, "loss": lambda o, y: o.sum()}, "a loss that gives a scalar", id="unweighable"),
        pytest.param({"freeze": "tail"}, "`freeze` is 'tail'", id="no-such-weight"),
        pytest.param({"optimizer": {"kernel": SGD(), "bias": SGD()}}, "with a step of one's own", id="optimizers-without-step"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was(options, words):
    model = make_linear()
    with pytest.raises(InputError) as caught:
        quick(model, (A, KIND), **options)
    assert words in caught.value.message
    np.testing.assert_array_equal(weights_of(model), weights_of(make_linear()))
