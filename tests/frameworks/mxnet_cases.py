"""What `test_mxnet.py` asserts on, computed in MXNet's own environment.

    python -m tests.frameworks.mxnet_cases FOLDER

runs every function of `CASES` and prints one JSON object: its name -> what it gives, or {"failed": traceback}. Models and
states are left in FOLDER for other processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from argosy.errors import ArgosyError
from argosy.frameworks.base import FitOptions, framework_of, get_framework, loader_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.frameworks.mxnet import RuleOptimizer
from argosy.frameworks.mxnet.library import count_threads, mx
from argosy.frameworks.onnx import OnnxModel, check_export
from argosy.optim import SGD, Adam, LinearDecay, Momentum, RMSprop
from argosy.train.losses import LOSSES

nn = mx.gluon.nn
FRAMEWORK = get_framework("mxnet")
FOLDER = Path(sys.argv[1])
CASES: dict[str, Callable[[], Any]] = {}

PERCEPTRON = (Dense(8), Relu(), Dense(3))
CONVOLUTIONAL = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.4), Dense(7), Relu(), Dense(3))
ROW = (2, 6, 4)


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def build(layers: Any = PERCEPTRON, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Any:
    weights = {name: weight.astype(dtype) for name, weight in draw_weights(layers, shape, 3).items()}
    return FRAMEWORK.build_network(layers, shape, weights)


def make_rows(num_rows: int = 12, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((num_rows, *shape)).astype(dtype), rng.integers(0, 3, num_rows)


def fit(model: Any, loss: Any, optimizer: Any, num_steps: int = 5, **options: Any) -> list[float]:
    step = FRAMEWORK.build_step(model, loss, optimizer, FitOptions(**options))
    x, y = make_rows()
    return [step(x, y, number)[0] for number in range(1, num_steps + 1)]


def get_values(model: Any) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in FRAMEWORK.get_weights(model).values()])


def measure_distance(model: Any, other: Any) -> float:
    return float(np.max(np.abs(get_values(model) - get_values(other))))


def digest(arrays: dict[str, Any]) -> str:
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        content.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()


def refuse(function: Callable[[], Any]) -> list[str]:
    """Give the key and the message of the error that a call ends with."""
    try:
        function()
    except ArgosyError as error:
        return [error.key, error.message]
    return ["", "it was not refused"]


class Embedding(mx.gluon.HybridBlock):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, sparse_grad=sparse)
        self.head = nn.Dense(3)

    def hybrid_forward(self, ops: Any, x: Any) -> Any:
        return self.head(ops.mean(self.embed(x), axis=1))


class Recurrent(mx.gluon.HybridBlock):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = mx.gluon.rnn.LSTM(8, layout="NTC")
        self.head = nn.Dense(3)

    def hybrid_forward(self, ops: Any, x: Any) -> Any:
        return self.head(ops.mean(self.lstm(x), axis=1))


class Eager(mx.gluon.Block):
    """Its forward is Python, and looks at numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dense(8, in_units=4), nn.Dense(3, in_units=8)

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        return self.second(hidden if float(hidden.sum().asscalar()) > 1e9 else hidden.relu())


class Scale(mx.gluon.HybridBlock):
    """One weight, by which a function is scaled."""

    def __init__(self, function: Callable[[Any, Any], Any], value: float = 1.0) -> None:
        super().__init__()
        self._function = function
        self.scale = self.params.get("scale", shape=(1,), init=mx.init.Constant(value))

    def hybrid_forward(self, ops: Any, x: Any, scale: Any) -> Any:
        return ops.broadcast_mul(self._function(ops, x), scale)


def ready(model: Any, *shape: int, dtype: str = "float32") -> Any:
    mx.random.seed(4)
    model.initialize(mx.init.Xavier())
    model(mx.nd.zeros(shape or (1, 4), dtype=dtype))
    return model


# networks and prediction


@case
def network() -> Any:
    model = build(CONVOLUTIONAL, ROW)
    x, _ = make_rows(5, ROW)
    return {
        "trainable": FRAMEWORK.list_trainable(model),
        "weights": list(FRAMEWORK.get_weights(model)),
        "children": list(model._children),
        "outputs": FRAMEWORK.predict(model, x).tolist(),
        "dtypes": [str(FRAMEWORK.float_dtype(build(dtype=dtype))) for dtype in ("float32", "float64")],
        "owner": framework_of(model).name,
    }


@case
def predict_pieces() -> Any:
    model = nn.Dense(1, in_units=4)
    model.initialize()
    x, _ = make_rows(600)
    x.flags.writeable = False
    weights = FRAMEWORK.get_weights(model)
    expected = x @ weights["weight"].T + weights["bias"]
    return float(np.max(np.abs(FRAMEWORK.predict(model, x) - expected)))


@case
def predict_refusals() -> Any:
    not_positive = Scale(lambda ops, x: ops.linalg.potrf(ops.dot(x, x, transpose_b=True) - 10))
    not_positive.initialize()
    x, _ = make_rows()
    lost = nn.HybridLambda(lambda ops, x: ops.reshape(x, shape=(-1,)))
    calls = {
        "wrong-width": lambda: FRAMEWORK.predict(build(), x[:, :3]),
        "no-values": lambda: FRAMEWORK.predict(nn.Dense(3), x),
        "rows-lost": lambda: FRAMEWORK.predict(lost, x),
        "two-outputs": lambda: FRAMEWORK.predict(nn.HybridLambda(lambda ops, x: [x, x]), x),
        "no-such-type": lambda: FRAMEWORK.predict(build(), x.astype(np.uint16)),
        "found-late": lambda: FRAMEWORK.predict(not_positive, x),
    }
    return {name: refuse(call) for name, call in calls.items()}


@case
def names_do_not_count_blocks() -> Any:
    shared = nn.Dense(4, in_units=4)
    model = nn.HybridSequential()
    model.add(shared, nn.Dense(2, in_units=4), shared)
    model.initialize()
    stray = nn.HybridSequential()
    stray.params.get("extra", shape=(1,))
    stray.add(nn.Dense(2, in_units=4))
    stray.initialize()
    weights = {"0.bias": np.arange(4)}
    FRAMEWORK.set_weights(model, weights)
    return {
        "names": list(FRAMEWORK.get_weights(model)),
        "set": FRAMEWORK.get_weights(model)["0.bias"].tolist(),
        "stray": list(FRAMEWORK.get_weights(stray)),
    }


# losses and optimizers


@case
def named_losses() -> Any:
    x, labels = make_rows()
    rng = np.random.default_rng(2)
    targets = {"cross_entropy": labels, "binary_cross_entropy": rng.integers(0, 2, (12, 3))}
    found = {}
    for name, loss in LOSSES.items():
        for dtype in ("float32", "float64"):
            y = targets.get(name, rng.standard_normal((12, 3)))
            y = y if name == "cross_entropy" else y.astype(dtype)
            step = FRAMEWORK.build_step(build(dtype=dtype), name, SGD(), FitOptions())
            value, outputs = step(x.astype(dtype), y, 1)
            found[f"{name} {dtype}"] = [value, loss.compute(outputs, y)]
    return found


@case
def own_losses() -> Any:
    x, y = make_rows()
    targets = np.eye(3, dtype=np.float32)[y]
    losses = mx.gluon.loss
    pairs = {
        "half_mse": losses.L2Loss(),
        "binary_cross_entropy": losses.SigmoidBCELoss(),
        "cross_entropy": losses.SoftmaxCELoss(),
    }
    found = {}
    for name, own in pairs.items():
        models = build(), build()
        # Gluon's half squared error is a mean over outputs too, of which there are three.
        factor = 3.0 if name == "half_mse" else 1.0
        for model, loss in zip(models, (name, (lambda o, t, own=own: own(o, t) * factor)), strict=True):
            step = FRAMEWORK.build_step(model, loss, Momentum(), FitOptions())
            for number in (1, 2, 3):
                step(x, y if name == "cross_entropy" else targets, number)
        found[name] = measure_distance(*models)
    outputs = x[:, :3]
    measured = FRAMEWORK.measure_loss(losses.L1Loss(), outputs, targets)
    found["measured"] = abs(measured - float(np.abs(outputs - targets).mean()))
    return found


@case
def loss_descriptions() -> Any:
    losses = mx.gluon.loss

    def distance(outputs: Any, targets: Any) -> Any:
        return (outputs - targets).abs()

    described = [
        losses.SigmoidBCELoss(),
        losses.SigmoidBCELoss(from_sigmoid=True),
        losses.SoftmaxCELoss(from_logits=True),
        losses.HuberLoss(rho=2),
        distance,
    ]
    return [FRAMEWORK.describe_loss(loss) for loss in described] + [FRAMEWORK.describe_loss(3)]


@case
def own_optimizers() -> Any:
    """Against the loop that a user of Gluon writes."""
    x, y = make_rows()
    optimizers = {
        "sgd": lambda: mx.optimizer.SGD(learning_rate=0.1, momentum=0.9, wd=0.01),
        "adam": lambda: mx.optimizer.Adam(learning_rate=0.01),
        "ftrl": lambda: mx.optimizer.Ftrl(),
        "schedule": lambda: mx.optimizer.SGD(
            learning_rate=1, lr_scheduler=mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1)
        ),
    }
    found = {}
    for name, make in optimizers.items():
        models = build(), build()
        loss = mx.gluon.loss.SoftmaxCELoss()
        trainer = mx.gluon.Trainer(models[0].collect_params(), make())
        for _ in range(5):
            with mx.autograd.record():
                value = loss(models[0](mx.nd.array(x)), mx.nd.array(y, dtype=y.dtype))
            value.backward()
            trainer.step(len(x))
        own: Any = mx.gluon.Trainer(models[1].collect_params(), make()) if name == "adam" else make()
        fit(models[1], loss, own)
        found[name] = measure_distance(*models)
    return found


@case
def optimizer_descriptions() -> Any:
    scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5)
    optimizer = mx.optimizer.Adam(learning_rate=0.5, lr_scheduler=scheduler)
    trainer = mx.gluon.Trainer(build().collect_params(), optimizer)
    return json.loads(json.dumps([FRAMEWORK.describe_optimizer(part) for part in (optimizer, trainer, Adam())]))


@case
def rule_alone() -> Any:
    """In a user's own Trainer, against the rule's own arithmetic."""
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal(4) for _ in range(6)]
    schedule = LinearDecay(0.1, steps=3)
    rules = {
        "sgd": SGD(learning_rate=0.1, weight_decay=0.1, clip_norm=0.5),
        "momentum": Momentum(learning_rate=schedule, weight_decay=0.1, clip_norm=0.5),
        "momentum-text": Momentum(learning_rate=schedule, form="text", weight_decay=0.1),
        "nesterov": Momentum(learning_rate=schedule, nesterov=True, weight_decay=0.1),
        "rmsprop": RMSprop(learning_rate=0.1, weight_decay=0.1),
        "rmsprop-text": RMSprop(learning_rate=0.1, form="text"),
        "adam": Adam(learning_rate=0.1, weight_decay=0.1),
        "adamw": Adam(learning_rate=0.1, weight_decay=0.1, decoupled_decay=True),
    }
    found = {}
    for name, rule in rules.items():
        for dtype in ("float32", "float64"):
            parameter = mx.gluon.Parameter("w", shape=(4,), init=mx.init.One(), dtype=dtype)
            parameter.initialize()
            trainer = mx.gluon.Trainer([parameter], RuleOptimizer(rule))
            weights, state = {"w": np.ones(4)}, rule.init_state({"w": np.ones(4)})
            for gradient in gradients:
                with mx.autograd.record():
                    loss = (parameter.data() * mx.nd.array(gradient, dtype=dtype)).sum()
                loss.backward()
                trainer.step(2)  # Which halves the gradient.
                weights, state = rule.update(weights, {"w": gradient / 2}, state)
            found[f"{name} {dtype}"] = float(np.max(np.abs(parameter.data().asnumpy() - weights["w"])))
    return found


@case
def rate_of_zero_keeps_the_momentum() -> Any:
    class Pause(LinearDecay):
        def rate_at(self, step: int) -> float:
            return 0.0 if step in (2, 3) else 0.1

    rule = Momentum(learning_rate=Pause(0.1, steps=1))
    parameter = mx.gluon.Parameter("w", shape=(1,), init=mx.init.One())
    parameter.initialize()
    trainer = mx.gluon.Trainer([parameter], RuleOptimizer(rule))
    weights, state = {"w": np.ones(1)}, rule.init_state({"w": np.ones(1)})
    for gradient in (1.0, 2.0, -1.0, 0.5, 0.25):
        with mx.autograd.record():
            loss = (parameter.data() * gradient).sum()
        loss.backward()
        trainer.step(1)
        weights, state = rule.update(weights, {"w": np.array([gradient])}, state)
    return float(parameter.data().asscalar()), float(weights["w"][0])


@case
def multipliers() -> Any:
    """`lr_mult` and `wd_mult` of a parameter."""
    x, _ = make_rows()
    y = np.zeros((12, 1), np.float32)
    model = ready(nn.Dense(1, in_units=4))
    model.bias.lr_mult = 0.0
    model.weight.wd_mult = 0.0
    other = ready(nn.Dense(1, in_units=4))
    before = FRAMEWORK.get_weights(model)
    for fitted, decay in ((model, 0.5), (other, 0.0)):
        FRAMEWORK.build_step(fitted, "mse", SGD(learning_rate=0.1, weight_decay=decay), FitOptions())(x, y, 1)
    after, plain = FRAMEWORK.get_weights(model), FRAMEWORK.get_weights(other)
    return {
        "bias": float(np.abs(after["bias"] - before["bias"]).max()),
        "weight": float(np.abs(after["weight"] - plain["weight"]).max()),
        "moved": float(np.abs(after["weight"] - before["weight"]).max()),
    }


@case
def sparse_gradients() -> Any:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, (8, 5)), rng.integers(0, 3, 8)
    models = [ready(Embedding(sparse), 1, 5) for sparse in (False, True)]
    for model in models:
        step = FRAMEWORK.build_step(model, "cross_entropy", Adam(clip_norm=0.1), FitOptions(micro_batch_size=3))
        for number in range(1, 4):
            step(x, y, number)
    return measure_distance(*models)


@case
def fit_refusals() -> Any:
    x, y = make_rows()
    frozen, mixed, twice = build(), nn.HybridSequential(), build()
    frozen.collect_params().setattr("grad_req", "null")
    mixed.add(nn.Dense(2, in_units=4), nn.Dense(2, in_units=2, dtype="float64"))
    mixed.initialize()
    foreign = mx.gluon.Trainer(build().collect_params(), "sgd")
    twice.initialize(ctx=[mx.cpu(0), mx.cpu(1)], force_reinit=True)

    def step(model: Any, loss: Any = "cross_entropy", optimizer: Any = None, **options: Any) -> Any:
        return FRAMEWORK.build_step(model, loss, optimizer or SGD(), FitOptions(**options))

    calls = {
        "frozen": lambda: step(frozen),
        "no-values": lambda: step(nn.Dense(3)),
        "devices": lambda: step(twice),
        "foreign-trainer": lambda: step(build(), optimizer=foreign),
        "mixed-types": lambda: step(mixed, optimizer=SGD(clip_norm=1.0)),
        "eager-bfloat16": lambda: step(ready(Eager()), precision="bfloat16"),
        "double-bfloat16": lambda: step(build(dtype="float64"), precision="bfloat16"),
        "wrong-targets": lambda: step(build(), "mse")(x, y.astype(np.float32), 1),
        "wrong-loss": lambda: step(build(), lambda outputs, targets: 3.0)(x, y, 1),
    }
    return {name: refuse(call) for name, call in calls.items()}


# steps


@case
def micro_batches() -> Any:
    found = {}
    for name, loss, optimizer in (
        ("rule", "cross_entropy", lambda: Adam(clip_norm=0.1)),
        ("own", mx.gluon.loss.SoftmaxCELoss(), lambda: mx.optimizer.Adam()),
    ):
        models = build(), build(), build()
        values = [fit(model, loss, optimizer(), micro_batch_size=size) for model, size in zip(models, (None, 5, 50), strict=True)]
        found[name] = [measure_distance(models[0], models[1]), measure_distance(models[0], models[2])]
        found[f"{name} loss"] = float(np.max(np.abs(np.subtract(values[0], values[1]))))
    return found


@case
def added_gradients() -> Any:
    """A user's grad_req is followed, and its leftovers are not."""
    models = build(), build()
    models[1].collect_params().setattr("grad_req", "add")
    for model in models:
        fit(model, "cross_entropy", SGD())
    return measure_distance(*models)


@case
def eager_models() -> Any:
    x, y = make_rows()
    sequential = nn.Sequential()
    sequential.add(nn.Dense(8, activation="relu", in_units=4), nn.Dense(3, in_units=8))
    models = ready(Eager()), ready(sequential), build()
    for model in models[:2]:
        own = FRAMEWORK.get_weights(model)
        FRAMEWORK.set_weights(model, dict(zip(own, FRAMEWORK.get_weights(models[2]).values(), strict=True)))
    for model in models:
        fit(model, "cross_entropy", Adam())
    return [measure_distance(model, models[2]) for model in models[:2]]


@case
def frozen_weights() -> Any:
    model = build()
    model._children["dense1"].collect_params().setattr("grad_req", "null")
    before = FRAMEWORK.get_weights(model)
    fit(model, "cross_entropy", Adam())
    after = FRAMEWORK.get_weights(model)
    return [FRAMEWORK.list_trainable(model), [name for name in after if not np.array_equal(after[name], before[name])]]


@case
def not_finite() -> Any:
    x, y = make_rows()
    targets = np.zeros((12, 4), np.float32)
    exploding = nn.HybridSequential()
    exploding.add(nn.Dense(4, in_units=4), Scale(lambda ops, x: ops.exp(x), 1e30), nn.Dense(4, in_units=4))
    rooted = nn.HybridSequential()
    rooted.add(nn.Dense(4, in_units=4), Scale(lambda ops, x: ops.sqrt(ops.relu(x) * 0)), nn.Dense(4, in_units=4))
    dense = nn.HybridSequential()
    dense.add(nn.Dense(4, in_units=4, activation="relu"), nn.Dense(4, in_units=4))
    found = {}
    for name, model, optimizer, hybrid in (
        ("loss", exploding, Adam(), True),
        ("loss-eager", exploding, mx.optimizer.Adam(), False),
        ("gradient", rooted, SGD(learning_rate=0.25), True),
        ("dense", dense, SGD(), True),
    ):
        ready(model, 1, 4)
        if name == "dense":
            model[0].bias.set_data(mx.nd.full((4,), 1e38) * 10)
        if name.startswith("loss"):
            model[0].bias.set_data(mx.nd.full((4,), 70.0))
        model.hybridize(hybrid)
        before = digest(FRAMEWORK.get_weights(model))
        step = FRAMEWORK.build_step(model, "mse", optimizer, FitOptions())
        found[name] = [*refuse(lambda step=step: step(x, targets, 7)), digest(FRAMEWORK.get_weights(model)) == before]
        found[f"{name} active"] = model._active == hybrid
    step = FRAMEWORK.build_step(build(), "cross_entropy", SGD(), FitOptions())
    x[3] = np.inf
    found["rows"] = refuse(lambda: step(x, y, 1))
    return found


@case
def bfloat16() -> Any:
    try:
        models = build(), build()
        values = [
            fit(model, "cross_entropy", Adam(), precision=precision)
            for model, precision in zip(models, (None, "bfloat16"), strict=True)
        ]
    except ArgosyError as error:
        return {"refused": error.message}
    types = [str(weight.dtype) for weight in FRAMEWORK.get_weights(models[1]).values()]
    return {"losses": values, "types": types, "distance": measure_distance(*models)}


# state


def make_run(kind: str) -> tuple[Any, Any]:
    model = build(CONVOLUTIONAL, ROW)
    optimizers = {
        "rule": lambda: Momentum(learning_rate=LinearDecay(0.1, steps=8), weight_decay=0.01, clip_norm=0.5),
        "double": lambda: Adam(),
        "own": lambda: mx.optimizer.Nadam(
            learning_rate=1, lr_scheduler=mx.lr_scheduler.FactorScheduler(step=3, factor=0.1, base_lr=1)
        ),
        "noisy": lambda: mx.optimizer.SGLD(learning_rate=0.01),
    }
    if kind == "double":
        model = build(CONVOLUTIONAL, ROW, "float64")
    return model, FRAMEWORK.build_step(model, "cross_entropy", optimizers[kind](), FitOptions(seed=9))


def take_steps(step: Any, kind: str, first: int, last: int) -> None:
    x, y = make_rows(12, ROW, "float64" if kind == "double" else "float32")
    for number in range(first, last + 1):
        step(x, y, number)


KINDS = ("rule", "double", "own", "noisy")


@case
def whole_runs() -> Any:
    """Ten steps; what there is after the fifth is left for another process."""
    found = {}
    for kind in KINDS:
        _, step = make_run(kind)
        take_steps(step, kind, 1, 5)
        np.savez(FOLDER / f"{kind}.npz", **{name.replace("/", "|"): array for name, array in step.get_state().items()})
        take_steps(step, kind, 6, 10)
        _, again = make_run(kind)
        take_steps(again, kind, 1, 10)
        found[kind] = [digest(step.get_state()), digest(again.get_state())]
    return found


def resume() -> Any:
    found = {}
    for kind in KINDS:
        model, step = make_run(kind)
        with np.load(FOLDER / f"{kind}.npz") as kept:
            step.set_state({name.replace("|", "/"): kept[name] for name in kept})
        take_steps(step, kind, 6, 10)
        found[kind] = digest(step.get_state())
    return found


@case
def state_names() -> Any:
    _, step = make_run("rule")
    state = step.get_state()
    missing = {name: array for name, array in state.items() if name != "optimizer/dense1.weight/v"}
    return {
        "names": sorted(state),
        "missing": refuse(lambda: step.set_state(missing)),
        "shape": refuse(lambda: step.set_state(state | {"weights/dense1.bias": np.zeros(2, np.float32)})),
        "own": sorted(name for name in make_run("own")[1].get_state() if not name.startswith("weights")),
    }


@case
def sessions() -> Any:
    before = count_threads()
    np.random.seed(1)
    random.seed(1)
    mx.random.seed(1)
    with FRAMEWORK.session(3, 2):
        inside = count_threads()
        first = [random.random(), np.random.rand(), float(mx.nd.random.uniform(shape=(1,)).asscalar())]
    followed = float(mx.nd.random.uniform(shape=(1,)).asscalar())
    kept = [random.random(), np.random.rand()]
    mx.random.seed(1)
    with FRAMEWORK.session(3, None):
        second = [random.random(), np.random.rand(), float(mx.nd.random.uniform(shape=(1,)).asscalar())]
        mx.nd.random.uniform(shape=(100,)).wait_to_read()
    np.random.seed(1)
    random.seed(1)
    return {
        "threads": [before, inside, count_threads()],
        "same": first == second,
        "restored": kept == [random.random(), np.random.rand()],
        "followed": followed == float(mx.nd.random.uniform(shape=(1,)).asscalar()),
    }


# loaders


@case
def loaders() -> Any:
    x, y = np.arange(7, dtype=np.float32)[:, None], np.arange(7)

    def read(loader: Any, seed: int = 0) -> Any:
        FRAMEWORK.seed(seed)
        return [[batch[0].ravel().tolist(), batch[1].tolist()] for batch in FRAMEWORK.read_loader(loader)]

    def shuffled() -> Any:
        np.random.seed(4)
        return mx.io.NDArrayIter(x, y, batch_size=3, shuffle=True)

    padded = mx.io.NDArrayIter(x, y, batch_size=3)
    dataset = mx.gluon.data.ArrayDataset(x, y)
    first, second = shuffled(), shuffled()
    orders = [read(first, seed) for seed in (1, 2, 1)]
    return {
        "owner": [loader_framework(loader).name for loader in (padded, mx.gluon.data.DataLoader(dataset, 3))],
        "padded": [read(padded), read(padded)],
        "discarded": read(mx.io.NDArrayIter(x, y, batch_size=3, last_batch_handle="discard")),
        "shuffled": [orders[0] == orders[2], orders[0] != orders[1], read(second, 2) == orders[1]],
        "gluon": read(mx.gluon.data.DataLoader(dataset, 3)),
        "gluon-shuffled": [read(mx.gluon.data.DataLoader(dataset, 3, shuffle=True), seed) for seed in (1, 1)],
        "rolled": refuse(lambda: read(mx.io.NDArrayIter(x, y, batch_size=3, last_batch_handle="roll_over"))),
        "alone": refuse(lambda: read(mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(x), 3))),
        "unlabelled": refuse(lambda: read(mx.io.NDArrayIter(x, batch_size=3))),
    }


# out of the framework


def list_models() -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(8)
    image, row = rng.standard_normal((9, *ROW)), rng.standard_normal((9, 4))
    sentence = rng.integers(0, 50, (9, 5))
    return {
        "perceptron": (build(), row.astype(np.float32)),
        "convolutional": (build(CONVOLUTIONAL, ROW), image.astype(np.float32)),
        "recurrent": (ready(Recurrent(), 1, 5, 4), rng.standard_normal((9, 5, 4)).astype(np.float32)),
        "embedding": (ready(Embedding(), 1, 5), sentence),
        "embedding-int32": (ready(Embedding(), 1, 5), sentence.astype(np.int32)),
        "double": (build(dtype="float64"), row),
    }


@case
def onnx_exports() -> Any:
    found = {}
    for name, (model, rows) in list_models().items():
        path = FOLDER / f"{name}.onnx"
        # Names that MXNet gives to tensors inside.
        inner = next(iter(model.collect_params()))
        FRAMEWORK.export_onnx(model, rows, path, input_name=inner, output_name="data")
        exported = OnnxModel(path)
        difference = check_export(exported, rows, FRAMEWORK.predict(model, rows))
        found[name] = [difference, exported.input_names == [inner], exported.output_names]
    return found


@case
def exporter_is_left_as_it_was() -> Any:
    import onnx

    handlers, version = list(logging.root.handlers), onnx.defs.onnx_opset_version()
    model, rows = list_models()["perceptron"]
    FRAMEWORK.export_onnx(model, rows, FOLDER / "again.onnx", input_name="input", output_name="output")
    return [logging.root.handlers == handlers, onnx.defs.onnx_opset_version() == version]


@case
def export_refusals() -> Any:
    x, _ = make_rows()
    shaped = nn.HybridLambda(lambda ops, x: x.reshape((x.shape[0], -1)))
    noisy = nn.HybridLambda(lambda ops, x: ops.broadcast_add(x, ops.random.normal(shape=(1, 4))))
    unknown = nn.HybridLambda(lambda ops, x: ops.erfinv(x))
    calls: dict[str, Callable[[Any, Path], Any]] = {
        "onnx": lambda model, folder: FRAMEWORK.export_onnx(model, x, folder / "m.onnx", input_name="a", output_name="b"),
        "native": lambda model, folder: FRAMEWORK.save_native(model, x, folder),
    }
    models = {"eager": ready(Eager()), "shaped": shaped, "noisy": noisy, "unknown": unknown}
    found = {}
    for kind, call in calls.items():
        for name, model in models.items():
            folder = FOLDER / f"refused-{kind}-{name}"
            folder.mkdir()
            found[f"{kind} {name}"] = refuse(lambda call=call, model=model, folder=folder: call(model, folder))
    return found


@case
def native_files() -> Any:
    found = {}
    for name, (model, rows) in list_models().items():
        folder = FOLDER / "native" / name
        folder.mkdir(parents=True)
        entry = FRAMEWORK.save_native(model, rows, folder)
        found[name] = [entry, sorted(path.name for path in folder.iterdir())]
        np.savez(FOLDER / "native" / f"{name}.npz", rows=rows, answers=FRAMEWORK.predict(model, rows))
        loaded = mx.gluon.SymbolBlock.imports(str(folder / entry), ["data"], str(folder / "model-0000.params"))
        found[name].append(
            float(np.abs(loaded(mx.nd.array(rows, dtype=rows.dtype)).asnumpy() - FRAMEWORK.predict(model, rows)).max())
        )
    return found


def main() -> None:
    if sys.argv[2:] == ["resume"]:
        print(json.dumps(resume()))
        return
    found: dict[str, Any] = {}
    for name, function in CASES.items():
        try:
            found[name] = function()
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
