"""What `argosy.train` costs over the loop that a user of a framework writes by hand.

    python benchmarks/train_overhead.py [--frameworks torch,keras,tensorflow,mxnet,jax] [--rounds 7] [--json]

Two models each: a perceptron of 5 M weights (batch 128, Adam), where the overhead is stated as a ratio, and Dense(100 -> 1)
(batch 32, SGD), where samples/s of both are stated. Rounds alternate between the two loops in one process, each round the
same number of steps, on one thread; medians of the pairs' ratios. The machine is shared, so the ratio of processor times
is the steadier one. The bare loop uses the framework's built-in optimizer and reads the loss of every step, as a
progress bar or a log does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LARGE = ("large", (784, 2048, 1536, 256, 10), 128, 16)
TINY = ("tiny", (100, 1), 32, 300)

Array = np.ndarray[Any, Any]
Loop = Callable[[Any, Array, Array, int], None]
Times = tuple[float, float]
"""Wall and processor time, in seconds."""


def make_data(widths: tuple[int, ...], num_rows: int) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    x = random.standard_normal((num_rows, widths[0])).astype(np.float32)
    if widths[-1] == 1:
        return x, (x.sum(axis=1, keepdims=True) > 0).astype(np.float32)
    return x, random.integers(0, widths[-1], num_rows)


def loop_torch(model: Any, x: Array, y: Array, batch: int) -> None:
    import torch

    is_tiny = y.dtype.kind == "f"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01) if is_tiny else torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of = torch.nn.BCEWithLogitsLoss() if is_tiny else torch.nn.CrossEntropyLoss()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    order = torch.randperm(len(x))
    for start in range(0, len(x), batch):
        rows = order[start : start + batch]
        optimizer.zero_grad()
        loss = loss_of(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        loss.item()


def loop_keras(model: Any, x: Array, y: Array, batch: int) -> None:
    import keras

    if not model.compiled:
        is_tiny = y.dtype.kind == "f"
        model.compile(
            optimizer=keras.optimizers.SGD(0.01) if is_tiny else keras.optimizers.Adam(1e-3),
            loss=keras.losses.BinaryCrossentropy(from_logits=True)
            if is_tiny
            else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    model.fit(x, y, batch_size=batch, epochs=1, verbose=0)


_TF_STEPS: dict[int, Any] = {}


def loop_tensorflow(model: Any, x: Array, y: Array, batch: int) -> None:
    import tensorflow as tf

    if id(model) not in _TF_STEPS:
        is_tiny = y.dtype.kind == "f"
        optimizer = tf.keras.optimizers.SGD(0.01) if is_tiny else tf.keras.optimizers.Adam(1e-3)

        @tf.function(reduce_retracing=True)
        def step(inputs: Any, targets: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = model(inputs)
                if is_tiny:
                    losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, outputs)
                else:
                    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, outputs)
                loss = tf.reduce_mean(losses)
            weights = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return loss

        _TF_STEPS[id(model)] = step
    step = _TF_STEPS[id(model)]
    order = np.random.permutation(len(x))
    for start in range(0, len(x), batch):
        rows = order[start : start + batch]
        float(step(tf.constant(x[rows]), tf.constant(y[rows])))


def loop_mxnet(model: Any, x: Array, y: Array, batch: int) -> None:
    import mxnet as mx

    is_tiny = y.dtype.kind == "f"
    name, options = ("sgd", {"learning_rate": 0.01}) if is_tiny else ("adam", {"learning_rate": 1e-3})
    trainer = mx.gluon.Trainer(model.collect_params(), name, options)
    loss_of = mx.gluon.loss.SigmoidBinaryCrossEntropyLoss() if is_tiny else mx.gluon.loss.SoftmaxCrossEntropyLoss()
    order = np.random.permutation(len(x))
    for start in range(0, len(x), batch):
        rows = order[start : start + batch]
        inputs, targets = mx.nd.array(x[rows]), mx.nd.array(y[rows])
        with mx.autograd.record():
            loss = loss_of(model(inputs), targets)
        loss.backward()
        trainer.step(len(rows))
        loss.mean().asscalar()


_JAX_STEPS: dict[int, Any] = {}


def loop_jax(model: Any, x: Array, y: Array, batch: int) -> None:
    import optax
    from flax import nnx

    if id(model) not in _JAX_STEPS:
        is_tiny = y.dtype.kind == "f"
        optimizer = nnx.Optimizer(model, optax.sgd(0.01) if is_tiny else optax.adam(1e-3), wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any, inputs: Any, targets: Any) -> Any:
            def loss_of(model: Any) -> Any:
                outputs = model(inputs)
                if is_tiny:
                    return optax.sigmoid_binary_cross_entropy(outputs, targets).mean()
                return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

            loss, gradients = nnx.value_and_grad(loss_of)(model)
            optimizer.update(model, gradients)
            return loss

        _JAX_STEPS[id(model)] = (step, optimizer)
    step, optimizer = _JAX_STEPS[id(model)]
    order = np.random.permutation(len(x))
    for start in range(0, len(x), batch):
        rows = order[start : start + batch]
        float(step(model, optimizer, x[rows], y[rows]))


LOOPS: dict[str, Loop] = {
    "torch": loop_torch, "keras": loop_keras, "tensorflow": loop_tensorflow, "mxnet": loop_mxnet, "jax": loop_jax
}  # fmt: skip


def watch_epochs() -> list[tuple[float, float]]:
    """Give a list to which the training loop adds the wall and the processor time at the end of every epoch."""
    from argosy.train.loop import Loop

    marks: list[tuple[float, float]] = []
    judge = Loop._judge

    def mark(self: Any, epoch: Any) -> None:
        judge(self, epoch)
        marks.append((time.perf_counter(), time.process_time()))

    Loop._judge = mark  # type: ignore[method-assign]
    return marks


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Time both loops in this process, on one thread; seconds a step."""
    from argosy.frameworks.base import get_framework
    from argosy.frameworks.layers import Dense, Relu, draw_weights
    from argosy.optim import SGD, Adam
    from argosy.train.run import train

    framework = get_framework(name)
    marks = watch_epochs()
    found: dict[str, dict[str, float]] = {}
    for case, widths, batch, num_steps in (LARGE, TINY):
        layers: list[Any] = []
        for width in widths[1:-1]:
            layers += [Dense(width), Relu()]
        layers.append(Dense(widths[-1]))
        x, y = make_data(widths, batch * num_steps)
        loss, rule = ("binary_cross_entropy", SGD(learning_rate=0.01)) if case == "tiny" else ("cross_entropy", Adam())
        with framework.session(0, 1):
            models = [framework.build_network(layers, widths[:1], draw_weights(layers, widths[:1], 0)) for _ in range(2)]

        def ours(
            model: Any = models[0], x: Array = x, y: Array = y, loss: str = loss, rule: Any = rule, batch: int = batch
        ) -> Times:
            marks.clear()
            train(model, (x, y), loss=loss, optimizer=rule, batch_size=batch, epochs=2, metrics=(), num_threads=1, progress=False)
            # The first epoch compiles, where a framework compiles; a bare loop keeps its compiled step from round to round.
            (wall0, processor0), (wall1, processor1) = marks
            return wall1 - wall0, processor1 - processor0

        def bare(model: Any = models[1], x: Array = x, y: Array = y, batch: int = batch) -> Times:
            with framework.session(0, 1):
                wall0, processor0 = time.perf_counter(), time.process_time()
                LOOPS[name](model, x, y, batch)
                return time.perf_counter() - wall0, time.process_time() - processor0

        bare(), ours()
        pairs = [(bare(), ours()) if number % 2 else (ours(), bare())[::-1] for number in range(rounds)]
        ratios = sorted(pair[1][1] / pair[0][1] for pair in pairs)
        found[case] = {
            "bare_s": statistics.median(pair[0][0] for pair in pairs) / num_steps,
            "argosy_s": statistics.median(pair[1][0] for pair in pairs) / num_steps,
            "wall_ratio": statistics.median(pair[1][0] / pair[0][0] for pair in pairs),
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[0],
            "ratio_high": ratios[-1],
        }
    return found


def describe(name: str, large: dict[str, float], tiny: dict[str, float]) -> str:
    bare, ours = (32 / tiny[key] for key in ("bare_s", "argosy_s"))
    return (
        f"{name:<11} 5 M weights: {large['bare_s'] * 1e3:.1f} ms bare, {large['argosy_s'] * 1e3:.1f} ms, "
        f"ratio {large['wall_ratio']:.3f}, of processor time {large['ratio']:.3f} "
        f"({large['ratio_low']:.3f} to {large['ratio_high']:.3f});  "
        f"100 -> 1: {bare:,.0f} samples/s bare, {ours:,.0f} ({ours / bare:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frameworks", default=",".join(LOOPS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help="measure the one framework in this process")
    options = parser.parse_args()
    names = options.frameworks.split(",")
    if options.here:
        print(json.dumps(measure(names[0], options.rounds)))
        return
    from argosy.environment import find_interpreter, lives_apart

    found: dict[str, Any] = {}
    for name in names:
        python = str(find_interpreter(name)) if lives_apart(name) else sys.executable
        command = [python, "-W", "ignore", __file__, "--here", "--frameworks", name, "--rounds", str(options.rounds)]
        done = subprocess.run(
            command, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stdout=subprocess.PIPE, text=True, timeout=900, check=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(describe(name, **found[name]), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
