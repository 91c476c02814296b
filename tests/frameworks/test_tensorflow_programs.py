"""Programs of any form as `tf.Module`s, through `argosy.train`, beside TensorFlow's own loop."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from argosy.errors import InputError
from argosy.frameworks.tensorflow import FRAMEWORK
from argosy.optim import SGD, Group, Momentum
from argosy.train.average import Ema
from argosy.train.run import train
from tests.frameworks.tensorflow_models import Affine, Embedded, Mlp, make_rows

A, B = make_rows(60, 3), make_rows(60, 3, seed=1)
KIND = (A.sum(1) > 0).astype(np.int64)
VALUE = (B @ np.array([1.0, -2.0, 0.5], np.float32))[:, None]
W = np.random.default_rng(2).random(60).astype(np.float32)
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


class Two(tf.Module):
    """Two inputs; a dict of two outputs."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Affine(3, 2), Affine(3, 1, seed=1)

    def __call__(self, a, b):
        return {"kind": self.one(a), "value": self.other(b)}


class Pair(Two):
    def __call__(self, a, b):
        return self.one(a), self.other(b)


def quick(model, data, **options):
    return train(model, data, progress=False, shuffle=False, **{"epochs": 2, "batch_size": 20, **options})


def plain_loop(model, loss_of, optimizer, *, epochs=2, weights=None):
    weights = weights or model.trainable_variables
    for _ in range(epochs):
        for start in range(0, 60, 20):
            with tf.GradientTape() as tape:
                loss = loss_of(model, slice(start, start + 20))
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))


def entropies(y, outputs):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs)


def two_losses(model, rows):
    outputs = model(A[rows], B[rows])
    kind, value = outputs.values() if isinstance(outputs, dict) else outputs
    return tf.reduce_mean(entropies(KIND[rows], kind)) + 0.25 * tf.reduce_mean((value - VALUE[rows]) ** 2)


def assert_same(one, other):
    for name, weight in FRAMEWORK.get_weights(one).items():
        np.testing.assert_allclose(weight, FRAMEWORK.get_weights(other)[name], **ROUNDING, err_msg=name)


def both(outputs, targets):
    value = tf.reduce_mean((outputs["value"] - targets["value"]) ** 2)
    return tf.reduce_mean(entropies(targets["kind"], outputs["kind"])) + 0.25 * value


LOSSES = {"loss": {"kind": "cross_entropy", "value": "mse"}, "loss_weights": {"value": 0.25}}


@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        pytest.param(Two, ({"a": A, "b": B}, {"kind": KIND, "value": VALUE}), LOSSES, id="dicts"),
        pytest.param(Pair, ((A, B), (KIND, VALUE)), {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}, id="tuples"),
        pytest.param(Two, ((A, B), {"kind": KIND, "value": VALUE}), {"loss": both}, id="function-of-all"),
        pytest.param(
            Two,
            ((A, B), {"kind": KIND, "value": VALUE}),
            {**LOSSES, "loss": {"kind": entropies, "value": lambda o, y: tf.reduce_mean((o - y) ** 2)}, "micro_batch_size": 7},
            id="functions-in-pieces",
        ),
    ],
)
def test_several_inputs_and_outputs_train_as_a_loop_by_hand(make, data, options):
    ours, theirs = make(), make()
    plain_loop(theirs, two_losses, keras.optimizers.SGD(0.1))
    result = quick(ours, data, optimizer=SGD(learning_rate=0.1), validation_data=data, **options)
    assert_same(ours, theirs)
    assert result.history[-1].validation_loss == pytest.approx(float(two_losses(theirs, slice(None))), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        tf.nn.sparse_softmax_cross_entropy_with_logits,
        lambda outputs, targets: entropies(targets, outputs),
        lambda y_true, y_pred, weights: tf.reduce_mean(entropies(y_true, y_pred) * weights),
    ],
    ids=["ours", "keras", "tensorflow's", "by-row", "weighted-itself"],
)
def test_weights_of_rows_and_classes_multiply_the_loss_of_a_row(loss):
    total = W * np.where(KIND == 1, 3.0, 1.0).astype(np.float32)

    def loss_of(model, rows):
        return tf.reduce_mean(entropies(KIND[rows], model(A[rows])) * total[rows])

    ours, theirs = Affine(3, 2), Affine(3, 2)
    plain_loop(theirs, loss_of, keras.optimizers.SGD(0.1))
    result = quick(ours, (A, KIND, W), loss=loss, class_weights={1: 3.0}, optimizer=SGD(learning_rate=0.1),
                   validation_data=(A, KIND, W))  # fmt: skip
    assert_same(ours, theirs)
    plain = float(tf.reduce_mean(entropies(KIND, theirs(A)) * W))
    assert result.history[-1].validation_loss == pytest.approx(plain, rel=1e-5)


class Gan(tf.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = Affine(2, 1), Affine(1, 1, seed=1)

    def __call__(self, noise):
        return self.generator(noise)


def tell(model, real, noise):
    return tf.reduce_mean(tf.nn.softplus(-model.discriminator(real)) + tf.nn.softplus(model.discriminator(model(noise))))


def fool(model, noise):
    return tf.reduce_mean(tf.nn.softplus(-model.discriminator(model(noise))))


NOISES = []


def adversaries(model, batch, fit):
    noise = tf.random.normal((len(batch), 2))
    NOISES.append(noise)
    told = tell(model, batch, noise)
    value = fit.minimize(told, "discriminator")
    fooled = fit.minimize(lambda model: fool(model, noise), "generator")
    fit.log(fooled=fooled, told=told)
    assert value == pytest.approx(float(told))
    return value + fooled


@pytest.mark.parametrize("own", [False, True], ids=["ours", "keras"])
def test_adversaries_train_by_two_optimizers_as_by_hand_and_resume_bit_for_bit(own, tmp_path):
    def run(epochs, folder, resume=False):
        NOISES.clear()
        make = (lambda rate: keras.optimizers.SGD(rate, 0.9)) if own else (lambda rate: Momentum(learning_rate=rate, beta=0.9))
        options = {"optimizer": {"generator": make(0.02), "discriminator": make(0.05)}, "checkpoints": tmp_path / folder}
        return quick(Gan(), A[:, :1], step=adversaries, epochs=epochs, resume=resume, **options)

    theirs, optimizers = Gan(), (keras.optimizers.SGD(0.05, 0.9), keras.optimizers.SGD(0.02, 0.9))
    result = run(3, "whole")
    for number, noise in enumerate(NOISES):
        real = A[number % 3 * 20 : number % 3 * 20 + 20, :1]
        for part, optimizer in zip((theirs.discriminator, theirs.generator), optimizers, strict=True):
            with tf.GradientTape() as tape:
                value = fool(theirs, noise) if part is theirs.generator else tell(theirs, real, noise)
            weights = part.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
    assert_same(result.model, theirs)
    assert result.history[-1].metrics.keys() == {"fooled", "told"}
    run(1, "broken")
    again = run(3, "broken", resume=True)
    for name, weight in FRAMEWORK.get_weights(result.model).items():
        np.testing.assert_array_equal(weight, FRAMEWORK.get_weights(again.model)[name])


def test_loss_that_a_step_returns_is_made_small():
    def contrast(model, batch, fit):
        left, right = (tf.math.l2_normalize(model(part), axis=1) for part in batch)
        return tf.reduce_mean(entropies(tf.range(len(left)), left @ tf.transpose(right) / 0.1))

    ours, theirs = Affine(3, 4), Affine(3, 4)
    plain_loop(theirs, lambda model, rows: contrast(model, (A[rows], A[rows] + 0.05 * B[rows]), None), keras.optimizers.SGD(0.1))
    quick(ours, (A, A + 0.05 * B), step=contrast, optimizer=SGD(learning_rate=0.1))
    assert_same(ours, theirs)


@pytest.mark.parametrize("clip", [{}, {"clip_value": 0.05}, {"clip_norm": 0.1}], ids=["plain", "value", "norm"])
def test_groups_and_clipping_are_those_of_loops_by_hand(clip):
    ours, theirs = Pair(), Pair()
    limits = {"clipvalue": clip.get("clip_value"), "global_clipnorm": clip.get("clip_norm")}
    limited = keras.optimizers.SGD(0.1, **limits)
    plain_loop(theirs, two_losses, limited)
    data = ((A, B), (KIND, VALUE))
    losses = {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}
    quick(ours, data, optimizer=SGD(learning_rate=0.1, **clip), **losses)
    assert_same(ours, theirs)

    ours, theirs = Pair(), Pair()
    for _ in range(2):
        for start in range(0, 60, 20):
            with tf.GradientTape() as tape:
                loss = two_losses(theirs, slice(start, start + 20))
            named = {"one": theirs.one, "other": theirs.other}
            gradients = tape.gradient(loss, {n: (layer.kernel, layer.offset) for n, layer in named.items()})
            for name, layer in named.items():
                rate = 0.01 if name == "one" else 0.1
                layer.kernel.assign_sub(rate * (gradients[name][0] + 0.3 * layer.kernel))
                layer.offset.assign_sub(0.1 * gradients[name][1])
    rule = SGD(learning_rate=0.1, weight_decay=0.3, groups=(Group("*/offset", weight_decay=0.0), Group("one", 0.1)))
    quick(ours, data, optimizer=rule, **losses)
    assert_same(ours, theirs)


class Still(tf.Module):
    """A layer that counts what it sees while it is trained."""

    def __init__(self):
        super().__init__()
        self.kernel, self.mean = tf.Variable(make_rows(3, 3)), tf.Variable(np.zeros(3, np.float32), trainable=False)

    def __call__(self, x, training=False):
        if training:
            self.mean.assign_add(tf.reduce_mean(x, axis=0))
        return x @ self.kernel - self.mean


class Tuned(tf.Module):
    def __init__(self):
        super().__init__()
        self.base, self.head = Still(), Affine(3, 2)

    def __call__(self, x, training=False):
        return self.head(self.base(x, training))


def test_frozen_layers_stay_with_what_they_count():
    model, whole = Tuned(), Tuned()
    before = FRAMEWORK.get_weights(model)
    result = quick(model, (A, KIND), freeze=["base"])
    quick(whole, (A, KIND))
    changed = [name for name, weight in FRAMEWORK.get_weights(model).items() if not np.array_equal(weight, before[name])]
    assert changed == ["head/kernel", "head/offset"]
    assert not np.array_equal(FRAMEWORK.get_weights(whole)["base/mean"], before["base/mean"])
    assert result.describe_lineage()["weights"]["trained"] == 8


def test_average_labels_and_own_metrics_of_an_embedding():
    ids, names = np.random.default_rng(0).integers(0, 30, (60, 6)), np.array(["a", "b", "c"])[np.arange(60) % 3]
    model, seen = Embedded(), []

    def recall(outputs, targets):
        return ((outputs.argmax(1) == 1) & (targets == 1)).sum() / (targets == 1).sum()

    expected = FRAMEWORK.get_weights(model)
    result = quick(model, (ids, names), average=Ema(decay=0.5), metrics={"recall": recall}, validation_data=(ids, names),
                   on_step=lambda step: seen.append(FRAMEWORK.get_weights(model)))  # fmt: skip
    for count, weights in enumerate(seen, 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = {name: decay * mean + (1 - decay) * weights[name] for name, mean in expected.items()}
    for name, mean in FRAMEWORK.get_weights(model).items():
        np.testing.assert_allclose(mean, expected[name], atol=1e-6)
    assert result.labels == ("a", "b", "c")
    assert result.history[-1].validation_metrics["recall"] == pytest.approx(recall(result.predict(ids), np.arange(60) % 3))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: SGD(learning_rate=0.1), id="ours"),
        pytest.param(lambda: keras.optimizers.SGD(0.1), id="keras"),
        pytest.param(
            lambda: keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.1, 0.01])), id="scheduled"
        ),
    ],
)
def test_ruinous_batch_is_left_out(optimizer):
    x = A.copy()
    x[30] = np.nan
    optimizer = optimizer()
    loader = tf.data.Dataset.from_tensor_slices((x, KIND)).batch(20)
    result = quick(Affine(3, 2), loader, optimizer=optimizer, batch_size=None)
    assert [(skip.epoch, skip.batch) for skip in result.skipped] == [(1, 1), (2, 1)]
    theirs, rate = Affine(3, 2), 0.1
    for _ in range(2):
        for batch in (0, 2):
            rows = slice(batch * 20, batch * 20 + 20)
            rate = 0.1 * 0.5 ** (batch == 2)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(entropies(KIND[rows], theirs(A[rows])))
            for weight, gradient in zip(theirs.trainable_variables, tape.gradient(loss, theirs.trainable_variables), strict=True):
                weight.assign_sub(rate * gradient)
    assert_same(result.model, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"loss": lambda o, y: tf.stop_gradient(tf.reduce_sum(o))}, "a number without a gradient", id="no-gradient"),
        pytest.param({"loss": lambda o, y: tf.reduce_sum(o, axis=0)}, "a tensor of shape (1,)", id="no-row"),
        pytest.param({"loss": lambda o, y: 3.0}, "builtins.float", id="a-float"),
        pytest.param({"loss": lambda a, b: tf.reduce_sum(a)}, "a function of (a, b)", id="unnamed"),
        pytest.param({"loss": {"kind": "mse"}}, "losses for what the model gives: one tensor of shape", id="form"),
        pytest.param({"step": lambda m, b, f: m(b[0])}, "a tensor of shape (20, 1)", id="step-gives-no-scalar"),
        pytest.param({"step": lambda m, b, f: None}, "builtins.NoneType", id="step-gives-nothing"),
        pytest.param({"step": lambda m, b, f: tf.constant(1.0)}, "without a gradient", id="step-without-gradient"),
        pytest.param({"step": lambda m, b, f: f.minimize(tf.reduce_sum(m(b[0])), "head")}, "expected None", id="no-optimizer"),
        pytest.param({"optimizer": {"hidden": SGD(), "last": SGD()}}, "with a step of one's own", id="without-step"),
        pytest.param({"class_weights": {1: 2.0}, "loss": lambda o, y: tf.reduce_sum(o)}, "gives a scalar", id="unweighable"),
        pytest.param({"freeze": "head"}, "`freeze` is 'head'", id="freeze"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was(options, words):
    model, before = Mlp(), FRAMEWORK.get_weights(Mlp())
    with pytest.raises(InputError) as caught:
        quick(model, (make_rows(60, 4), VALUE), **{"loss": None if "step" in options else "mse", **options})
    assert words in caught.value.message
    for name, weight in FRAMEWORK.get_weights(model).items():
        np.testing.assert_array_equal(weight, before[name])


def test_callbacks_of_keras_are_refused_for_a_module():
    with pytest.raises(InputError, match="none with a model of tensorflow"):
        quick(Mlp(), (make_rows(60, 4), VALUE), loss="mse", callbacks=[keras.callbacks.History()])
