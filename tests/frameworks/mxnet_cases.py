"""Cases of `test_mxnet.py`: networks, losses, optimizers and steps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from argosy.errors import ArgosyError
from argosy.frameworks.base import Batch, FitOptions, framework_of
from argosy.frameworks.mxnet import RuleOptimizer
from argosy.frameworks.mxnet.library import mx
from argosy.optim import SGD, Adam, LinearDecay, Momentum, RMSprop
from argosy.train.losses import LOSSES
from tests.frameworks.mxnet_models import (
    CONVOLUTIONAL,
    FRAMEWORK,
    ROW,
    Eager,
    Embedding,
    Scale,
    build,
    case,
    digest,
    fit,
    make_rows,
    measure_distance,
    nn,
    print_cases,
    ready,
    refuse,
)

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
        "two-outputs": lambda: FRAMEWORK.predict(nn.HybridLambda(lambda ops, x: [x, ops.slice(x, begin=(0,), end=(1,))]), x),
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
            value, outputs = step(Batch(x.astype(dtype), y), 1)
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

        def compute(outputs: Any, targets: Any, own: Any = own, factor: float = factor) -> Any:
            return own(outputs, targets) * factor

        for model, loss in zip(models, (name, compute), strict=True):
            step = FRAMEWORK.build_step(model, loss, Momentum(), FitOptions())
            for number in (1, 2, 3):
                step(Batch(x, y if name == "cross_entropy" else targets), number)
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
        "schedule": lambda: mx.optimizer.SGD(lr_scheduler=mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1)),
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
    scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=0.5)
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
        FRAMEWORK.build_step(fitted, "mse", SGD(learning_rate=0.1, weight_decay=decay), FitOptions())(Batch(x, y), 1)
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
            step(Batch(x, y), number)
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
        "state-elsewhere": lambda: step(build(), optimizer=mx.optimizer.LBSGD()),
        "mixed-types": lambda: step(mixed, optimizer=SGD(clip_norm=1.0)),
        "eager-bfloat16": lambda: step(ready(Eager()), precision="bfloat16"),
        "double-bfloat16": lambda: step(build(dtype="float64"), precision="bfloat16"),
        "wrong-targets": lambda: step(build(), "mse")(Batch(x, y.astype(np.float32)), 1),
        "wrong-loss": lambda: step(build(), lambda outputs, targets: 3.0)(Batch(x, y), 1),
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

    def stack(*layers: Any) -> Any:
        model = nn.HybridSequential()
        model.add(*layers)
        return ready(model)

    def explode() -> Any:
        return stack(nn.Dense(4, in_units=4), Scale(lambda ops, x: ops.exp(x), 1e30), nn.Dense(4, in_units=4))

    rooted = stack(nn.Dense(4, in_units=4), Scale(lambda ops, x: ops.sqrt(ops.relu(x) * 0)), nn.Dense(4, in_units=4))
    dense = stack(nn.Dense(4, in_units=4, activation="relu"), nn.Dense(4, in_units=4))
    found = {}
    for name, model, optimizer, hybrid in (
        ("loss", explode(), Adam(), True),
        ("loss-eager", explode(), mx.optimizer.Adam(), False),
        ("gradient", rooted, SGD(learning_rate=0.25), True),
        ("dense", dense, SGD(), True),
    ):
        if name == "dense":
            model[0].bias.set_data(mx.nd.full((4,), 1e38) * 10)
        if name.startswith("loss"):
            model[0].bias.set_data(mx.nd.full((4,), 70.0))
        model.hybridize(hybrid)
        before = digest(FRAMEWORK.get_weights(model))
        step = FRAMEWORK.build_step(model, "mse", optimizer, FitOptions())
        found[name] = [*refuse(lambda step=step: step(Batch(x, targets), 7)), digest(FRAMEWORK.get_weights(model)) == before]
        found[f"{name} active"] = model._active == hybrid
    step = FRAMEWORK.build_step(build(), "cross_entropy", SGD(), FitOptions())
    x[3] = np.inf
    found["rows"] = refuse(lambda: step(Batch(x, y), 1))
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


@case
def numpy_interface_is_refused() -> Any:
    model, (x, _) = build(), make_rows()
    mx.npx.set_np()
    try:
        return refuse(lambda: FRAMEWORK.predict(model, x))
    finally:
        mx.npx.reset_np()


if __name__ == "__main__":
    print_cases()
