"""Cases of `test_mxnet_programs.py`: programs of any form, each through `argosy.train` and by a loop of Gluon's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from argosy.frameworks.mxnet.library import mx
from argosy.optim import SGD, Adam, Group, Momentum
from argosy.store.local import Store
from argosy.train.average import Ema
from argosy.train.checkpoint import Checkpoints
from argosy.train.publish import publish
from argosy.train.run import train
from argosy.train.start import Start
from tests.frameworks.mxnet_models import (
    FOLDER,
    FRAMEWORK,
    case,
    get_values,
    measure_distance,
    nn,
    print_cases,
    refuse,
)

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 24, 3)).astype(np.float32)
KIND = (A.sum(1) > 0).astype(np.int64)
VALUE = (B @ np.array([1.0, -2.0, 0.5]))[:, None].astype(np.float32)
W = RANDOM.random(24).astype(np.float32)
BY_OUTPUT = {"loss": ("cross_entropy", "mse"), "loss_weights": (1, 0.25)}
CROSS_ENTROPY = mx.gluon.loss.SoftmaxCELoss()


class Pair(mx.gluon.HybridBlock):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Dense(2, in_units=3), nn.Dense(1, in_units=3)

    def hybrid_forward(self, ops: Any, a: Any, b: Any) -> Any:
        return self.one(a), self.other(b)


class Two(mx.gluon.Block):
    """The outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Dense(2, in_units=3), nn.Dense(1, in_units=3)

    def forward(self, a: Any, b: Any) -> Any:
        return {"kind": self.one(a), "value": self.other(b)}


class Words(mx.gluon.HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 4), nn.BatchNorm(in_channels=4)
        self.head = nn.Dense(2, in_units=4)

    def hybrid_forward(self, ops: Any, ids: Any) -> Any:
        return self.head(self.norm(ops.mean(self.embed(ids), axis=1)))


class Constant(mx.lr_scheduler.LRScheduler):
    def __call__(self, num_update: int) -> float:
        return self.base_lr


class Gan(mx.gluon.Block):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Dense(1, in_units=2), nn.Dense(1, in_units=1)

    def forward(self, noise: Any) -> Any:
        return self.generator(noise)


def make(kind: Any) -> Any:
    mx.random.seed(3)
    model = kind()
    model.initialize(mx.init.Xavier())
    if isinstance(model, mx.gluon.HybridBlock):
        model.hybridize()
    return model


def make_linear() -> Any:
    return make(lambda: nn.Dense(2, in_units=3))


def quick(model: Any, data: Any, **options: Any) -> Any:
    return train(model, data, progress=False, **{"epochs": 2, "batch_size": 12, "shuffle": False, **options})


def plain_loop(model: Any, loss_of: Any, optimizer: Any, parameters: Any = None) -> None:
    trainer = mx.gluon.Trainer(parameters or model.collect_params(), optimizer)
    for _ in range(2):
        for start in (0, 12):
            with mx.autograd.record():
                loss = loss_of(model, slice(start, start + 12)).mean()
            loss.backward()
            trainer.step(1)


def tensor(array: Any) -> Any:
    return mx.nd.array(array, dtype=array.dtype)


def two_losses(model: Any, rows: Any) -> Any:
    outputs = model(tensor(A[rows]), tensor(B[rows]))
    kind, value = outputs.values() if isinstance(outputs, dict) else outputs
    return CROSS_ENTROPY(kind, tensor(KIND[rows])).mean() + 0.25 * (value - tensor(VALUE[rows])).square().mean()


def one_loss(model: Any, rows: Any) -> Any:
    return CROSS_ENTROPY(model(tensor(A[rows])), tensor(KIND[rows]))


def of_all(outputs: Any, targets: Any) -> Any:
    value = (outputs["value"] - targets["value"]).square().mean()
    return CROSS_ENTROPY(outputs["kind"], targets["kind"]).mean() + 0.25 * value


def find_recall(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(1)[targets == 1] == 1).mean())


@case
def trees() -> Any:
    iterator = mx.io.NDArrayIter({"a": A, "b": B}, {"kind": KIND, "value": VALUE}, batch_size=12)
    runs = {
        "tuples": (Pair, ((A, B), (KIND, VALUE)), {**BY_OUTPUT, "loss": (CROSS_ENTROPY, "mse")}),
        "pieces": (Pair, ((A, B), (KIND, VALUE)), {**BY_OUTPUT, "micro_batch_size": 5}),
        "loader": (Pair, iterator, {**BY_OUTPUT, "batch_size": None, "validation_data": iterator}),
        "function-of-all": (Two, ((A, B), {"kind": KIND, "value": VALUE}), {"loss": of_all}),
    }
    found = {}
    for name, (kind, data, options) in runs.items():
        ours, theirs = make(kind), make(kind)
        plain_loop(theirs, two_losses, mx.optimizer.SGD(learning_rate=0.1))
        quick(ours, data, optimizer=SGD(learning_rate=0.1), **options)
        found[name] = measure_distance(ours, theirs)
    return found


@case
def metrics() -> Any:
    found = quick(make_linear(), (A, KIND), metrics=[mx.metric.Accuracy(name="share"), mx.metric.F1()], validation_data=(A, KIND))
    own = quick(make_linear(), (A, KIND), metrics={"recall": find_recall}, validation_data=(A, KIND))
    expected = find_recall(own.predict(A), KIND)
    return {
        "measured": found.history[-1].validation_metrics,
        "trained": [*found.history[-1].metrics],
        "accuracy": float((found.predict(A).argmax(1) == KIND).mean()),
        "recall": [own.history[-1].validation_metrics["recall"], expected],
    }


@case
def weights() -> Any:
    total = W * np.where(KIND == 1, 3.0, 1.0).astype(np.float32)

    def itself(outputs: Any, targets: Any, weights: Any) -> Any:
        return (CROSS_ENTROPY(outputs, targets) * weights).mean()

    found = {}
    for name, loss in (("ours", "cross_entropy"), ("gluon", CROSS_ENTROPY), ("itself", itself)):
        ours, theirs = make_linear(), make_linear()
        plain_loop(theirs, lambda model, rows: one_loss(model, rows) * tensor(total[rows]), mx.optimizer.SGD(learning_rate=0.1))
        options = {"optimizer": SGD(learning_rate=0.1), "class_weights": {1: 3.0}, "validation_data": (A, KIND, W)}
        result = quick(ours, (A, KIND, W), loss=loss, **options)
        plain = float((one_loss(ours, slice(None)) * tensor(W)).mean().asscalar())
        found[name] = [measure_distance(ours, theirs), abs(result.history[-1].validation_loss - plain)]
    return found


@case
def groups() -> Any:
    """And clipping by value."""
    theirs = make_linear()
    theirs.weight.lr_mult, theirs.bias.wd_mult = 0.1, 0.0
    # MXNet's own clips before the decay, too.
    plain_loop(theirs, one_loss, mx.optimizer.SGD(learning_rate=0.1, wd=0.3, clip_gradient=0.05))
    ours = make_linear()
    named = Group("bias", weight_decay=0.0), Group("*weight", 0.1)
    quick(ours, (A, KIND), optimizer=SGD(learning_rate=0.1, weight_decay=0.3, clip_value=0.05, groups=named))
    return measure_distance(ours, theirs)


@case
def frozen() -> Any:
    ids = RANDOM.integers(0, 20, (24, 5))
    found = {}
    for name in ("rule", "trainer"):
        ours, theirs = make(Words), make(Words)
        before = FRAMEWORK.get_weights(ours)
        optimizer: Any = SGD(learning_rate=0.1)
        if name == "trainer":
            optimizer = mx.gluon.Trainer(ours.collect_params(), mx.optimizer.SGD(learning_rate=0.1))
        quick(ours, (ids, KIND), freeze=["norm", "embed*"], optimizer=optimizer)
        theirs.norm._kwargs["use_global_stats"] = True

        def loss_of(model: Any, rows: Any) -> Any:
            return CROSS_ENTROPY(model(tensor(ids[rows])), tensor(KIND[rows]))

        plain_loop(theirs, loss_of, mx.optimizer.SGD(learning_rate=0.1), theirs.head.collect_params())
        after = FRAMEWORK.get_weights(ours)
        found[name] = {
            "distance": measure_distance(ours, theirs),
            "moved": [key for key in after if not np.array_equal(after[key], before[key])],
            "as-it-was": ours.norm._kwargs["use_global_stats"],
        }
    return found


def adversaries(model: Any, batch: Any, fit: Any) -> Any:
    loss = mx.gluon.loss.SigmoidBCELoss()
    noise = mx.nd.random.normal(shape=(len(batch), 2))
    ones, zeros = mx.nd.ones((len(batch), 1)), mx.nd.zeros((len(batch), 1))
    told = (loss(model.discriminator(batch), ones) + loss(model.discriminator(model.generator(noise).detach()), zeros)).mean()
    fit.minimize(told, "discriminator")
    fooled = fit.minimize(lambda model: loss(model.discriminator(model.generator(noise)), ones).mean(), "generator")
    fit.log(discriminator=told, generator=fooled)
    return told.detach() + fooled


@case
def adversaries_resume() -> Any:
    """By two optimizers, one of them MXNet's own, with averaged weights; bit for bit."""

    def run(epochs: int, folder: str, **options: Any) -> Any:
        optimizers = {"generator": Momentum(learning_rate=0.05), "discriminator": mx.optimizer.Adam(learning_rate=0.02)}
        given = {"optimizer": optimizers, "checkpoints": FOLDER / folder, "average": Ema(decay=0.5)}
        return quick(make(Gan), VALUE, step=adversaries, epochs=epochs, **given, **options)

    whole = run(4, "whole")
    run(2, "broken")
    again = run(4, "broken", resume=True)
    return [bool(np.array_equal(get_values(again.model), get_values(whole.model))), sorted(whole.history[-1].metrics)]


@case
def two_optimizers() -> Any:
    """Against a loop by hand."""
    noise = tensor(RANDOM.normal(size=(12, 2)).astype(np.float32))
    loss = mx.gluon.loss.SigmoidBCELoss()
    ones, zeros = mx.nd.ones((12, 1)), mx.nd.zeros((12, 1))

    def tell(model: Any, real: Any) -> Any:
        fake = model.generator(noise).detach()
        return (loss(model.discriminator(real), ones) + loss(model.discriminator(fake), zeros)).mean()

    def fool(model: Any) -> Any:
        return loss(model.discriminator(model.generator(noise)), ones).mean()

    def step(model: Any, batch: Any, fit: Any) -> None:
        fit.minimize(tell(model, batch), "discriminator")
        fit.minimize(fool, "generator")

    ours, theirs = make(Gan), make(Gan)
    rules = {"generator": SGD(learning_rate=0.1), "discriminator": mx.optimizer.SGD(learning_rate=0.2)}
    quick(ours, VALUE, step=step, optimizer=rules)
    trainers = [
        mx.gluon.Trainer(part.collect_params(), mx.optimizer.SGD(learning_rate=rate))
        for part, rate in ((theirs.discriminator, 0.2), (theirs.generator, 0.1))
    ]
    for _ in range(2):
        for start in (0, 12):
            real = tensor(VALUE[start : start + 12])
            for trainer, of in zip(trainers, (lambda real=real: tell(theirs, real), lambda: fool(theirs)), strict=True):
                with mx.autograd.record():
                    value = of()
                value.backward()
                trainer.step(1, ignore_stale_grad=True)
    return measure_distance(ours, theirs)


@case
def returned_loss() -> Any:
    """With a loader, whose batches are given as they are."""

    def step(model: Any, batch: Any, fit: Any) -> Any:
        x, y = batch
        fit.log(number=fit.number)
        return CROSS_ENTROPY(model(x), y).mean()

    ours, theirs = make_linear(), make_linear()
    plain_loop(theirs, one_loss, mx.optimizer.SGD(learning_rate=0.1))
    loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(A, KIND), 12)
    result = quick(ours, loader, step=step, optimizer=mx.optimizer.SGD(learning_rate=0.1), batch_size=None)
    return [measure_distance(ours, theirs), result.history[-1].metrics]


@case
def rescue() -> Any:
    """Rates are halved to the end of the epoch, and what momentum remembers stays what it is."""
    x = np.concatenate([A[:12], np.full((12, 3), 3e38, np.float32), A[12:]])
    y = np.concatenate([KIND[:12], KIND])
    found = {}
    for name, rule in (
        ("rule", Momentum(learning_rate=0.1)),
        ("text", Momentum(learning_rate=0.1, nesterov=True)),
        ("own", mx.optimizer.SGD(learning_rate=0.1)),
        ("scheduled", mx.optimizer.SGD(learning_rate=0.1, lr_scheduler=Constant(0.1))),
    ):
        ours = make_linear()
        result = quick(ours, (x, y), optimizer=rule)
        # By hand, in NumPy: the direction is kept without its rate.
        weights = FRAMEWORK.get_weights(make_linear())
        v = {key: np.zeros_like(weight) for key, weight in weights.items()}
        for rate, rows in zip((0.1, 0.05) * 2, (slice(0, 12), slice(12, 24)) * 2, strict=True):
            outputs = A[rows] @ weights["weight"].T + weights["bias"]
            share = np.exp(outputs - outputs.max(1, keepdims=True))
            slope = (share / share.sum(1, keepdims=True) - np.eye(2)[KIND[rows]]) / 12
            gradients = {"weight": slope.T @ A[rows], "bias": slope.sum(0)}
            for key, gradient in gradients.items():
                v[key] = (0.0 if name in ("own", "scheduled") else 0.9) * v[key] + gradient
                moved = gradient + 0.9 * v[key] if name == "text" else v[key]
                weights[key] = weights[key] - rate * moved
        after = FRAMEWORK.get_weights(ours)
        distance = max(float(np.abs(after[key] - weights[key]).max()) for key in after)
        found[name] = [[(skip.epoch, skip.batch) for skip in result.skipped], distance]
    return found


def load(x: Any, y: Any, batch_size: int) -> Any:
    """Give a loader: of arrays, NaN is refused before the first step."""
    return mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(x, y), batch_size)


@case
def poisoned() -> Any:
    """Of a stream of batches one is NaN, or huge, in each epoch; beside the same without it."""
    clean_x = RANDOM.normal(size=(200, 3)).astype(np.float32)
    y = (clean_x.sum(1) > 0).astype(np.int64)
    found: dict[str, Any] = {}
    for name, optimizer in (
        ("rule", lambda: Adam(learning_rate=0.05)),
        (
            "scheduled",
            lambda: mx.optimizer.Adam(
                lr_scheduler=mx.lr_scheduler.CosineScheduler(max_update=100, base_lr=0.05, final_lr=0.02), learning_rate=0.05
            ),
        ),
    ):
        for poison in (None, math.nan, 1e6):
            x = clean_x.copy()
            if poison is not None:
                # On the side of the other class, so that its loss is as large.
                x[61] = poison * (1 - 2 * y[61])
            result = quick(make_linear(), load(x, y, 10), optimizer=optimizer(), epochs=5, batch_size=None)
            found[f"{name} {poison}"] = {
                "accuracy": result.evaluate(clean_x, y)["accuracy"],
                "skipped": [[skip.epoch, skip.batch] for skip in result.skipped],
                "finite": bool(np.isfinite(get_values(result.model)).all()),
            }
    return found


@case
def poisoned_resume() -> Any:
    """A rescue under a schedule of MXNet's, and the checkpoint after it, bit for bit; the schedule is as it was."""
    x = RANDOM.normal(size=(60, 3)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64)
    x[13] = math.nan

    def run(epochs: int, folder: str, **options: Any) -> Any:
        schedule = mx.lr_scheduler.FactorScheduler(step=4, factor=0.9, base_lr=0.1)
        optimizer = mx.optimizer.SGD(learning_rate=0.1, momentum=0.9, lr_scheduler=schedule)
        kept = Checkpoints(folder=FOLDER / folder, every_steps=3, every_s=None)
        data = load(x, y, 5)
        result = quick(make_linear(), data, optimizer=optimizer, epochs=epochs, batch_size=None, checkpoints=kept, **options)
        return result, optimizer.lr_scheduler is schedule

    class Stop(Exception):
        pass

    def stop(taken: Any) -> None:
        if taken.number == 9:
            raise Stop

    (whole, is_same), before = run(2, "poisoned-whole"), 0
    try:
        run(2, "poisoned-broken", on_step=stop)
    except Stop:
        before = 1
    again, _ = run(2, "poisoned-broken", resume=True)
    return [before, is_same, bool(np.array_equal(get_values(again.model), get_values(whole.model))), len(whole.skipped)]


@case
def start() -> Any:
    """From a version in each form, in whole and in part; and what does not fit."""
    store, ids = Store(FOLDER / "home"), RANDOM.integers(0, 20, (24, 5))
    first = make(Words)
    quick(first, (ids, KIND), optimizer=SGD(learning_rate=0.1))
    wanted = FRAMEWORK.get_weights(first)
    found: dict[str, Any] = {}

    def begin(kind: Any, version: str, **options: Any) -> tuple[Any, Any]:
        model = make(kind)
        beginning = Start(version, store=store, **options)
        # Steps too small to move anything.
        return model, quick(model, (ids, KIND), start=beginning, optimizer=SGD(learning_rate=1e-30), epochs=1)

    trained = [name for name, own in first._collect_params_with_prefix().items() if own.grad_req != "null"]
    for number, native in enumerate((False, True), 1):
        publish(first, "words", store, sample=ids, native=native)
        model, result = begin(Words, f"words@{number}")
        after = FRAMEWORK.get_weights(model)
        found["native" if native else "onnx"] = {
            "distance": max(float(np.abs(after[name] - wanted[name]).max()) for name in trained),
            "told": result.describe_lineage()["training"]["start"]["weights"],
        }
    model, _ = begin(Words, "words@1", parts=["embed", "norm"])
    after, own = FRAMEWORK.get_weights(model), FRAMEWORK.get_weights(make(Words))
    found["part"] = [
        name for name in trained if np.allclose(after[name], (own if name.startswith("head") else wanted)[name], 0, 1e-25)
    ]
    found["all"] = trained
    found["misfit"] = refuse(lambda: begin(lambda: nn.Dense(2, in_units=3), "words@1"))
    return found


@case
def refusals() -> Any:
    step = "step"
    calls: dict[str, dict[str, Any]] = {
        "no-gradient": {"loss": lambda o, y: o.detach().sum()},
        "no-rows": {"loss": lambda o, y: o[:2].sum(axis=1)},
        "a-float": {"loss": lambda o, y: 3.0},
        "no-scalar": {step: lambda m, b, f: m(b[0])},
        "nothing": {step: lambda m, b, f: None},
        "no-optimizer": {step: lambda m, b, f: f.minimize(m(b[0]).sum(), "head")},
        "no-weight": {step: lambda m, b, f: f.minimize(b[0].sum())},
        "logs-no-scalar": {step: lambda m, b, f: f.log(a=b[0])},
        "unweighable": {"class_weights": {1: 2.0}, "loss": lambda o, y: o.sum()},
        "no-such-weight": {"freeze": "tail"},
        "optimizers-without-step": {"optimizer": {"weight": SGD(), "bias": Adam()}},
    }
    found = {}
    for name, options in calls.items():
        model = make_linear()
        key, message = refuse(lambda model=model, options=options: quick(model, (A, KIND), **options))
        found[name] = [key, message, measure_distance(model, make_linear())]
    return found


if __name__ == "__main__":
    print_cases()
