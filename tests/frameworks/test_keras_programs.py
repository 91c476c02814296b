"""Programs of any form as Keras models, through `argosy.train`, beside Keras' own loop.

All of it runs on the backend of the process, TensorFlow unless KERAS_BACKEND says otherwise; see `test_keras_backends.py`.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from argosy.errors import InputError
from argosy.frameworks.keras import FRAMEWORK
from argosy.optim import SGD, Group, LinearDecay, Momentum
from argosy.train.average import Ema
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train
from tests.frameworks.keras_models import make_embedding, make_mlp, make_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

A, B = make_rows(60, 3), make_rows(60, 3, seed=1)
KIND = (A.sum(1) > 0).astype(np.int64)
VALUE = (B @ np.array([1.0, -2.0, 0.5], np.float32))[:, None]
W = np.random.default_rng(2).random(60).astype(np.float32)
ROUNDING = {"rtol": 1e-5, "atol": 2e-6}
ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_two():
    """Functional: two inputs and outputs by name."""
    random.seed(3)
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    outputs = {"kind": keras.layers.Dense(2, name="kind")(a), "value": keras.layers.Dense(1, name="value")(b)}
    return keras.Model({"a": a, "b": b}, outputs)


def make_list():
    random.seed(3)
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    return keras.Model([a, b], [keras.layers.Dense(2, name="kind")(a), keras.layers.Dense(1, name="value")(b)])


class Pair(keras.Model):
    """Of a class of its own: an argument for each input."""

    def __init__(self):
        super().__init__()
        random.seed(3)
        self.one, self.other = keras.layers.Dense(2), keras.layers.Dense(1)

    def call(self, a, b):
        return {"kind": self.one(a), "value": self.other(b)}


def make_linear(units=2, size=3):
    random.seed(3)
    return keras.Sequential([keras.Input((size,)), keras.layers.Dense(units, name="last")])


def quick(model, data, **options):
    return train(model, data, progress=False, shuffle=False, **{"epochs": 2, "batch_size": 20, **options})


def plain_fit(model, x, y, w=None, *, optimizer=None, epochs=2, **compiled):
    model.compile(optimizer or keras.optimizers.SGD(0.1), **compiled)
    return model.fit(x, y, sample_weight=w, batch_size=20, epochs=epochs, shuffle=False, verbose=0)


def assert_same(one, other):
    theirs = other if isinstance(other, dict) else FRAMEWORK.get_weights(other)
    for mine, its in zip(FRAMEWORK.get_weights(one).values(), theirs.values(), strict=True):
        np.testing.assert_allclose(mine, its, **ROUNDING)


def both(outputs, targets):
    kind = keras.losses.sparse_categorical_crossentropy(targets["kind"], outputs["kind"], from_logits=True)
    return keras.ops.mean(kind) + 0.25 * keras.ops.mean(keras.ops.square(outputs["value"] - targets["value"]))


ROWS = {"a": A, "b": B}, {"kind": KIND, "value": VALUE}
LOSSES = {"loss": {"kind": ENTROPY, "value": "mse"}, "loss_weights": {"kind": 1.0, "value": 0.25}}


@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        pytest.param(make_two, ROWS, LOSSES, id="functional", marks=pytest.mark.backend),
        pytest.param(
            make_list, ((A, B), (KIND, VALUE)), {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}, id="list"
        ),
        pytest.param(Pair, ROWS, {"loss": both}, id="arguments-and-function-of-all"),
        pytest.param(make_two, ROWS, {**LOSSES, "micro_batch_size": 7}, id="in-pieces"),
    ],
)
def test_several_inputs_and_outputs_train_as_keras_fits_them(make, data, options):
    ours, theirs = make(), make_two()
    if isinstance(ours, Pair):
        FRAMEWORK.predict(ours, data[0])
    theirs.set_weights([*map(np.array, FRAMEWORK.get_weights(ours).values())])
    history = plain_fit(theirs, *ROWS, **LOSSES)
    result = quick(ours, data, optimizer=SGD(learning_rate=0.1), validation_data=data, **options)
    assert_same(ours, theirs)
    assert result.history[-1].loss == pytest.approx(history.history["loss"][-1], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "data", "compiled"),
    [
        pytest.param(make_two, ROWS, LOSSES | {"metrics": {"kind": ["accuracy"]}}, id="by-name"),
        pytest.param(
            make_list, ((A, B), (KIND, VALUE)),
            {"loss": [ENTROPY, "mse"], "loss_weights": [1.0, 0.25], "metrics": [["accuracy"], []]}, id="in-order",
        ),
        pytest.param(make_list, ((A, B), (KIND, VALUE)), LOSSES | {"metrics": {"kind": ["accuracy"]}}, id="list-by-name"),
    ],
)  # fmt: skip
def test_losses_factors_and_metrics_of_a_compiled_model_are_taken(make, data, compiled):
    ours, theirs = make(), make_two()
    theirs.set_weights([*map(np.array, FRAMEWORK.get_weights(ours).values())])
    history = plain_fit(theirs, *ROWS, **LOSSES, metrics={"kind": ["accuracy"]})
    ours.compile(keras.optimizers.SGD(0.1), **compiled)
    result = quick(ours, data)
    assert_same(ours, theirs)
    assert result.history[-1].loss == pytest.approx(history.history["loss"][-1], rel=1e-5)
    ((name, value),) = result.history[-1].metrics.items()
    assert name == ("kind_accuracy" if make is make_two else "0_accuracy")
    assert value == pytest.approx(history.history["kind_accuracy"][-1])


def by_row(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        ENTROPY,
        pytest.param(lambda outputs, targets: by_row(targets, outputs), marks=pytest.mark.backend),
        lambda y_true, y_pred, weights: keras.ops.mean(by_row(y_true, y_pred) * weights),
    ],
    ids=["ours", "keras", "by-row", "weighted-itself"],
)
def test_weights_of_rows_and_classes_multiply_the_loss_of_a_row(loss):
    ours, theirs = make_linear(), make_linear()
    plain_fit(theirs, A, KIND, W * np.where(KIND == 1, 3.0, 1.0).astype(np.float32), loss=ENTROPY)
    data = (A, KIND, W)
    result = quick(ours, data, loss=loss, class_weights={1: 3.0}, optimizer=SGD(learning_rate=0.1), validation_data=data)
    assert_same(ours, theirs)
    logits = result.predict(A)
    plain = np.mean((np.log(np.exp(logits).sum(1)) - logits[np.arange(60), KIND]) * W)
    assert result.history[-1].validation_loss == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("clip", "limits"),
    [({}, {}), ({"clip_value": 0.05}, {"clipvalue": 0.05}), ({"clip_norm": 0.1}, {"global_clipnorm": 0.1})],
    ids=["plain", "value", "norm"],
)
def test_clipping_is_that_of_keras(clip, limits):
    ours, theirs = make_linear(), make_linear()
    plain_fit(theirs, A, KIND, loss=ENTROPY, optimizer=keras.optimizers.SGD(0.1, **limits))
    quick(ours, (A, KIND), optimizer=SGD(learning_rate=0.1, **clip))
    assert_same(ours, theirs)


def test_groups_have_rates_and_decays_of_their_own():
    ours, theirs = make_mlp(), FRAMEWORK.get_weights(make_mlp())
    x, y = make_rows(60, 4), make_rows(60, 1, seed=5)
    for _ in range(2):
        for start in range(0, 60, 20):
            rows, (k1, b1, k2, b2) = slice(start, start + 20), theirs.values()
            hidden = np.tanh(x[rows] @ k1 + b1)
            error = 2 * (hidden @ k2 + b2 - y[rows]) / 20
            inner = error @ k2.T * (1 - hidden**2)
            gradients = (x[rows].T @ inner, inner.sum(0), hidden.T @ error, error.sum(0))
            for name, gradient in zip(theirs, gradients, strict=True):
                decay, rate = 0.3 * name.endswith("kernel"), 0.01 if name == "hidden/kernel" else 0.1
                theirs[name] = theirs[name] - rate * (gradient + decay * theirs[name])
    rule = SGD(learning_rate=0.1, weight_decay=0.3, groups=(Group("*/bias", weight_decay=0.0), Group("hidden", 0.1)))
    quick(ours, (x, y), loss="mse", optimizer=rule)
    assert_same(ours, theirs)


def make_tuned():
    random.seed(6)
    layers = [keras.layers.Dense(4, name="base", kernel_regularizer="l2"), keras.layers.BatchNormalization(name="norm")]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dropout(0.0), keras.layers.Dense(2, name="head")])


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.backend)], ids=["ours", "keras"])
def test_frozen_layers_stay_as_those_of_keras_that_are_not_trainable(own):
    ours, theirs = make_tuned(), make_tuned()
    for layer in theirs.layers[:2]:
        layer.trainable = False
    history = plain_fit(theirs, A, KIND, loss=ENTROPY)
    optimizer = keras.optimizers.SGD(0.1) if own else SGD(learning_rate=0.1)
    result = quick(ours, (A, KIND), optimizer=optimizer, freeze=["base", "norm"])
    before, after = FRAMEWORK.get_weights(make_tuned()), FRAMEWORK.get_weights(ours)
    assert [name for name in after if not np.array_equal(after[name], before[name])] == ["head/kernel", "head/bias"]
    for name, weight in FRAMEWORK.get_weights(theirs).items():
        np.testing.assert_allclose(after[name], weight, **ROUNDING)
    assert result.history[-1].loss == pytest.approx(history.history["loss"][-1], rel=1e-5)
    assert all(variable.trainable for variable in ours.trainable_variables) and len(ours.trainable_variables) == 6
    assert result.describe_lineage()["weights"]["trained"] == 10


class Gan(keras.Model):
    def __init__(self):
        super().__init__()
        random.seed(7)
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        self.discriminator = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        self.built = True

    def call(self, noise):
        return self.generator(noise)


NOISES = []


def adversaries(model, batch, fit):
    softplus, mean = keras.ops.softplus, keras.ops.mean
    noise = keras.random.normal((len(batch), 2))
    NOISES.append(keras.ops.convert_to_numpy(noise))

    def tell(model):
        return mean(softplus(-model.discriminator(batch)) + softplus(model.discriminator(model(noise))))

    told = fit.minimize(tell, "discriminator")
    fooled = fit.minimize(lambda model: mean(softplus(-model.discriminator(model(noise)))), "generator")
    fit.log(fooled=fooled, told=told)
    return told + fooled


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.backend), True], ids=["ours", "keras"])
def test_adversaries_train_by_two_optimizers_as_by_hand_and_resume_bit_for_bit(own, tmp_path):
    def run(epochs, folder, resume=False):
        NOISES.clear()
        make = (lambda rate: keras.optimizers.SGD(rate, 0.9)) if own else (lambda rate: Momentum(learning_rate=rate, beta=0.9))
        options = {"optimizer": {"generator": make(0.02), "discriminator": make(0.05)}, "checkpoints": tmp_path / folder}
        return quick(Gan(), A[:, :1], step=adversaries, epochs=epochs, resume=resume, **options)

    g, c, d, e = (np.array(weight) for weight in FRAMEWORK.get_weights(Gan()).values())
    result = run(3, "whole")
    assert list(FRAMEWORK.get_weights(result.model)) == [
        "generator/dense/kernel", "generator/dense/bias", "discriminator/dense/kernel", "discriminator/dense/bias"
    ]  # fmt: skip
    speeds = [np.zeros_like(w) for w in (g, c, d, e)]
    for number, noise in enumerate(NOISES):
        real = A[number % 3 * 20 : number % 3 * 20 + 20, :1]
        fake = noise @ g + c
        true, false = -sigmoid(-(real @ d + e)) / 20, sigmoid(fake @ d + e) / 20
        for index, gradient in ((2, real.T @ true + fake.T @ false), (3, (true + false).sum(0))):
            speeds[index] = 0.9 * speeds[index] + gradient
        d, e = d - 0.05 * speeds[2], e - 0.05 * speeds[3]
        back = -sigmoid(-(fake @ d + e)) / 20 @ d.T
        for index, gradient in ((0, noise.T @ back), (1, back.sum(0))):
            speeds[index] = 0.9 * speeds[index] + gradient
        g, c = g - 0.02 * speeds[0], c - 0.02 * speeds[1]
    assert_same(result.model, dict(enumerate((g, c, d, e))))
    assert result.history[-1].metrics.keys() == {"fooled", "told"}
    run(1, "broken")
    again = run(3, "broken", resume=True)
    for name, weight in FRAMEWORK.get_weights(result.model).items():
        np.testing.assert_array_equal(weight, FRAMEWORK.get_weights(again.model)[name])


@pytest.mark.backend
def test_loss_that_a_step_returns_is_made_small():
    def step(model, batch, fit):
        x, y = batch
        loss = keras.ops.mean(by_row(y, model(x, training=True)))
        fit.log(loss_again=loss)
        return loss

    ours, theirs = make_linear(), make_linear()
    plain_fit(theirs, A, KIND, loss=ENTROPY)
    keras.utils.set_random_seed(5)
    drawn = keras.ops.convert_to_numpy(keras.random.normal((3,)))
    keras.utils.set_random_seed(5)
    result = quick(ours, (A, KIND), step=step, optimizer=SGD(learning_rate=0.1))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.random.normal((3,))), drawn)
    assert_same(ours, theirs)
    assert result.history[-1].metrics["loss_again"] == pytest.approx(result.history[-1].loss)


def test_average_labels_and_own_metrics_of_an_embedding():
    ids, names = np.random.default_rng(0).integers(0, 30, (60, 6)), np.array(["a", "b", "c"])[np.arange(60) % 3]
    model, seen = make_embedding(), []

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


class Poisoned(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        x = A[index * 20 : index * 20 + 20].copy()
        x[0, 0] = np.nan if index == 1 else x[0, 0]
        return x, KIND[index * 20 : index * 20 + 20]


def schedule():
    """Give a rate of 0.1 that is no number."""
    return keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.1, 0.01])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: SGD(learning_rate=0.1), id="ours"),
        pytest.param(lambda: keras.optimizers.SGD(0.1), id="keras", marks=pytest.mark.backend),
        pytest.param(lambda: keras.optimizers.SGD(schedule()), id="scheduled", marks=pytest.mark.backend),
    ],
)
def test_ruinous_batch_is_left_out_and_the_rate_is_lowered(make):
    optimizer = make()
    result = quick(make_linear(), Poisoned(), optimizer=optimizer, batch_size=None)
    assert [(skip.epoch, skip.batch) for skip in result.skipped] == [(1, 1), (2, 1)]
    theirs = make_linear()
    theirs.compile(keras.optimizers.SGD(0.1), ENTROPY)
    for _ in range(2):
        for batch in (0, 2):
            theirs.optimizer.learning_rate = 0.1 * 0.5 ** (batch == 2)
            theirs.train_on_batch(*Poisoned()[batch])
    assert_same(result.model, theirs)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        assert float(optimizer.learning_rate) == pytest.approx(0.1)


@pytest.mark.backend
def test_rescue_under_a_schedule_of_keras_resumes_bit_for_bit(tmp_path):
    def run(epochs, folder, **options):
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 20))
        kept = Checkpoints(folder=tmp_path / folder, every_steps=1, every_s=None)
        given = {"optimizer": optimizer, "batch_size": None, "epochs": epochs, "checkpoints": kept}
        return quick(make_linear(), Poisoned(), **given, **options)

    def stop(taken):
        if taken.number == 4:
            raise KeyboardInterrupt

    whole = run(3, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(3, "broken", on_step=stop)
    assert_same(run(3, "broken", resume=True).model, whole.model)


class Heard(keras.callbacks.Callback):
    """Notes what it is told, and what weights it sees."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = [], []

    def note(self, name, number, logs):
        names = sorted(name for name in (logs or {}) if "accuracy" not in name)
        self.calls.append(f"{name} {number} {' '.join(names)}")
        self.seen.append(float(keras.ops.sum(keras.ops.convert_to_tensor(self.model.get_weights()[0]))))

    def on_train_begin(self, logs=None):
        self.note("begin", self.params["epochs"], logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.note("epoch", epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self.note("batch", batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch ended", epoch, logs)

    def on_train_end(self, logs=None):
        self.note("end", self.params["steps"], logs)


@pytest.mark.backend
def test_callbacks_are_told_what_keras_tells_them():
    ours, theirs, heard, expected = make_linear(), make_linear(), Heard(), Heard()
    plain_fit(theirs, A, KIND, loss=ENTROPY)
    theirs = make_linear()
    theirs.compile(keras.optimizers.SGD(0.1), ENTROPY)
    theirs.fit(A, KIND, batch_size=20, epochs=2, shuffle=False, verbose=0, validation_data=(A, KIND), callbacks=[expected])
    quick(ours, (A, KIND), optimizer=SGD(learning_rate=0.1), validation_data=(A, KIND), callbacks=[heard])
    assert heard.calls == expected.calls
    np.testing.assert_allclose(heard.seen, expected.seen, **ROUNDING)
    assert not hasattr(ours, "optimizer")


def make_plateau():
    return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.backend)], ids=["ours", "keras"])
def test_callbacks_of_keras_lower_rates_stop_and_restore_as_in_fit(own, tmp_path):
    """A threshold that no epoch passes: the rate is halved each time, and the run stopped after the fourth epoch."""

    def make(folder):
        (tmp_path / folder).mkdir()
        stop = keras.callbacks.EarlyStopping("val_loss", patience=3, min_delta=10.0, restore_best_weights=True)
        log = keras.callbacks.CSVLogger(str(tmp_path / folder / "log.csv"))
        kept = keras.callbacks.ModelCheckpoint(str(tmp_path / folder / "{epoch}.weights.h5"), save_weights_only=True)
        rates = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["learning_rate"]))
        return [make_plateau(), stop, log, kept, rates]

    seen = []
    theirs = make_linear()
    theirs.compile(keras.optimizers.SGD(0.1), ENTROPY)
    theirs.fit(A, KIND, batch_size=20, epochs=9, shuffle=False, verbose=0, validation_data=(A, KIND), callbacks=make("theirs"))
    expected, seen = seen, []
    optimizer, ours = keras.optimizers.SGD(0.1) if own else SGD(learning_rate=0.1), make_linear()
    result = quick(ours, (A, KIND), optimizer=optimizer, epochs=9, validation_data=(A, KIND), callbacks=make("ours"))
    assert seen == pytest.approx(expected) and len(seen) == 4 and seen[-1] < 0.1
    assert_same(ours, theirs)
    names, *rows = (tmp_path / "ours" / "log.csv").read_text().split()
    assert len(rows) == len(result.history) == 4 and {"epoch", "loss", "val_loss", "learning_rate"} < {*names.split(",")}
    for number in (1, 4):
        other = make_linear()
        other.load_weights(tmp_path / "ours" / f"{number}.weights.h5")
        ours.load_weights(tmp_path / "theirs" / f"{number}.weights.h5")
        assert_same(other, ours)
    described = result.describe_lineage()["training"]["callbacks"]
    assert [one["name"].rpartition(".")[2] for one in described][:2] == ["ReduceLROnPlateau", "EarlyStopping"]
    assert described[0]["factor"] == 0.5


@pytest.mark.parametrize("own", [False, True], ids=["ours", "keras"])
def test_run_with_callbacks_resumes_bit_for_bit(own, tmp_path):
    def run(epochs, folder, resume=False):
        stop = keras.callbacks.EarlyStopping("loss", patience=4, min_delta=10.0, restore_best_weights=True)
        optimizer = keras.optimizers.SGD(0.1) if own else SGD(learning_rate=0.1)
        options = {"epochs": epochs, "checkpoints": tmp_path / folder, "resume": resume, "callbacks": [make_plateau(), stop]}
        return quick(make_linear(), (A, KIND), optimizer=optimizer, **options)

    whole = run(9, "whole")
    assert len(whole.history) == 5
    run(3, "broken")
    again = run(9, "broken", resume=True)
    assert [epoch.loss for epoch in again.history] == [epoch.loss for epoch in whole.history]
    for name, weight in FRAMEWORK.get_weights(whole.model).items():
        np.testing.assert_array_equal(weight, FRAMEWORK.get_weights(again.model)[name])
    with pytest.raises(InputError, match=r"callback 1 is .*EarlyStopping, here .*ReduceLROnPlateau"):
        quick(make_linear(), (A, KIND), optimizer=keras.optimizers.SGD(0.1) if own else SGD(learning_rate=0.1),
              epochs=9, checkpoints=tmp_path / "broken", resume=True, callbacks=[make_plateau(), make_plateau()])  # fmt: skip


class Batches(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: print, "on_step, on_epoch, on_end", id="function"),
        pytest.param(lambda: keras.callbacks.BackupAndRestore("x"), "checkpoints= of train", id="backup"),
        pytest.param(lambda: Batches(), "validation as a whole", id="validation-batches"),
        pytest.param(lambda: keras.callbacks.EarlyStopping("val_loss"), "what the run measures: accuracy, loss", id="unmeasured"),
        pytest.param(lambda: keras.callbacks.EarlyStopping("accuracy"), "mode='min' or 'max'", id="direction"),
        pytest.param(make_plateau, "whose learning rate is a number", id="schedule"),
    ],
)
def test_callback_that_cannot_work_is_refused(make, words):
    model = make_linear()
    with pytest.raises(InputError) as caught:
        quick(model, (A, KIND), optimizer=SGD(learning_rate=LinearDecay(0.1, steps=9)), callbacks=[make()])
    assert words in caught.value.message
    assert_same(model, make_linear())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            {"loss": lambda o, y: keras.ops.stop_gradient(keras.ops.sum(o))},
            "without a gradient",
            id="no-gradient",
            marks=pytest.mark.backend,
        ),
        pytest.param({"loss": lambda o, y: keras.ops.sum(o, axis=0)}, "a tensor of shape (1,)", id="no-row"),
        pytest.param({"loss": lambda o, y: 3.0}, "builtins.float", id="a-float"),
        pytest.param({"loss": lambda a, b: keras.ops.sum(a)}, "a function of (a, b)", id="unnamed"),
        pytest.param({"loss": {"kind": "mse"}}, "losses for what the model gives: one tensor of shape", id="form"),
        pytest.param({"step": lambda m, b, f: m(b[0])}, "a tensor of shape (20, 1)", id="step-gives-no-scalar"),
        pytest.param({"step": lambda m, b, f: None}, "builtins.NoneType", id="step-gives-nothing"),
        pytest.param({"step": lambda m, b, f: keras.ops.ones(())}, "without a gradient", id="step-without-gradient"),
        pytest.param({"step": lambda m, b, f: f.minimize(lambda m: 0, "head")}, "expected None", id="no-optimizer"),
        pytest.param({"optimizer": {"hidden": SGD(), "last": SGD()}}, "with a step of one's own", id="without-step"),
        pytest.param({"class_weights": {1: 2.0}, "loss": lambda o, y: keras.ops.sum(o)}, "gives a scalar", id="unweighable"),
        pytest.param({"freeze": "head"}, "`freeze` is 'head'", id="freeze"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_the_model_is_as_it_was(options, words):
    model, before = make_mlp(), FRAMEWORK.get_weights(make_mlp())
    with pytest.raises(InputError) as caught:
        quick(model, (make_rows(60, 4), VALUE), **{"loss": None if "step" in options else "mse", **options})
    assert words in caught.value.message
    for name, weight in FRAMEWORK.get_weights(model).items():
        np.testing.assert_array_equal(weight, before[name])
