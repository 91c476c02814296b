"""What `argosy.train` costs over a framework's own loop on the framework's own loader.

    python benchmarks/train_loaders.py [--loaders torch,tf.data,keras-tf.data,PyDataset,NDArrayIter,Gluon] [--rounds 11] [--json]

Dense(100 -> 1), batches of 32, SGD: nowhere does a loader weigh more. Epochs of the two loops alternate in one process, on one
thread, over two loaders of the same rows; the first epoch of each, which compiles, does not count. The interval is of the
median of the pairs' ratios; on a shared machine that of processor times, which judges, is the steadier one. The bare loop reads
the loss of every step, as a progress bar or a log does.
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
from typing import Any, NamedTuple

from ratios import find_interval
from train_overhead import Array, make_data

WIDTHS, BATCH, NUM_STEPS = (100, 1), 32, 250
LIMIT = 1.10


class Case(NamedTuple):
    """A loader beside the loop that a user writes for it."""

    framework: str
    open: Callable[[Array, Array], Any]
    start: Callable[[Any], Callable[[Any], None]]
    """Takes a model, and gives the loop over one epoch of a loader."""


def open_torch(x: Array, y: Array) -> Any:
    import torch

    rows = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True)


def start_torch(model: Any) -> Callable[[Any], None]:
    import torch

    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=0.01), torch.nn.BCEWithLogitsLoss()

    def run(loader: Any) -> None:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            loss.item()

    return run


def open_tensorflow(x: Array, y: Array) -> Any:
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0)
    return rows.batch(BATCH).prefetch(2)


def start_tensorflow(model: Any) -> Callable[[Any], None]:
    import tensorflow as tf

    optimizer = tf.keras.optimizers.SGD(0.01)

    @tf.function(reduce_retracing=True)
    def step(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, model(inputs)))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    def run(loader: Any) -> None:
        for inputs, targets in loader:
            float(step(inputs, targets))

    return run


def start_keras(model: Any) -> Callable[[Any], None]:
    import keras

    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=keras.losses.BinaryCrossentropy(from_logits=True))
    return lambda loader: model.fit(loader, epochs=1, verbose=0)


def open_keras(x: Array, y: Array) -> Any:
    import keras

    class Rows(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return NUM_STEPS

        def __getitem__(self, index: int) -> tuple[Array, Array]:
            rows = slice(BATCH * index, BATCH * (index + 1))
            return x[rows], y[rows]

    return Rows()


def open_iterator(x: Array, y: Array) -> Any:
    import mxnet as mx

    return mx.io.NDArrayIter(x, y, batch_size=BATCH, shuffle=True)


def open_gluon(x: Array, y: Array) -> Any:
    import mxnet as mx

    return mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(x, y), batch_size=BATCH, shuffle=True)


def start_mxnet(model: Any) -> Callable[[Any], None]:
    import mxnet as mx

    trainer = mx.gluon.Trainer(model.collect_params(), "sgd", {"learning_rate": 0.01})
    loss_of = mx.gluon.loss.SigmoidBinaryCrossEntropyLoss()

    def run(loader: Any) -> None:
        is_iterator = isinstance(loader, mx.io.DataIter)
        if is_iterator:
            loader.reset()
        for batch in loader:
            inputs, targets = (*batch.data, *batch.label) if is_iterator else batch
            with mx.autograd.record():
                loss = loss_of(model(inputs), targets)
            loss.backward()
            trainer.step(len(inputs))
            loss.mean().asscalar()

    return run


CASES = {
    "torch": Case("torch", open_torch, start_torch),
    "tf.data": Case("tensorflow", open_tensorflow, start_tensorflow),
    "keras-tf.data": Case("keras", open_tensorflow, start_keras),
    "PyDataset": Case("keras", open_keras, start_keras),
    "NDArrayIter": Case("mxnet", open_iterator, start_mxnet),
    "Gluon": Case("mxnet", open_gluon, start_mxnet),
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Let epochs of both loops alternate in this process, on one thread; seconds a step."""
    from argosy.frameworks.base import get_framework
    from argosy.frameworks.layers import Dense, draw_weights
    from argosy.optim import SGD
    from argosy.train.loop import Loop
    from argosy.train.run import train

    case = CASES[name]
    framework = get_framework(case.framework)
    x, y = make_data(WIDTHS, BATCH * NUM_STEPS)
    layers = [Dense(1)]
    with framework.session(0, 1):
        models = [framework.build_network(layers, WIDTHS[:1], draw_weights(layers, WIDTHS[:1], 0)) for _ in range(2)]
    loaders = [case.open(x, y) for _ in range(2)]
    run = case.start(models[1])
    clocks = time.perf_counter, time.process_time
    pairs: list[list[tuple[float, float]]] = []
    began = [0.0, 0.0]
    judge = Loop._judge

    def mark(self: Any, epoch: Any) -> None:
        """At the end of an epoch of ours, let the other loop have one."""
        judge(self, epoch)
        ended = [clock() for clock in clocks]
        run(loaders[1])
        after = [clock() for clock in clocks]
        pairs.append([(b - a, c - b) for a, b, c in zip(began, ended, after, strict=True)])
        began[:] = [clock() for clock in clocks]

    Loop._judge = mark  # type: ignore[method-assign]
    train(
        models[0],
        loaders[0],
        loss="binary_cross_entropy",
        optimizer=SGD(learning_rate=0.01),
        epochs=rounds + 2,
        metrics=(),
        num_threads=1,
        progress=False,
    )
    counted = pairs[2:]
    found: dict[str, Any] = {}
    for number, key in enumerate(("wall", "processor")):
        ratios = [pair[number][0] / pair[number][1] for pair in counted]
        low, high, coverage = find_interval(ratios)
        found[key] = {"ratio": statistics.median(ratios), "low": low, "high": high, "coverage": coverage}
    found["argosy_s"], found["bare_s"] = (statistics.median(pair[0][side] for pair in counted) / NUM_STEPS for side in range(2))
    return found


def describe(name: str, found: dict[str, Any]) -> str:
    cells = [f"{found['bare_s'] * 1e6:>8.0f}", f"{found['argosy_s'] * 1e6:>8.0f}"]
    for key in ("wall", "processor"):
        part = found[key]
        cells.append(f"{part['ratio']:.3f} ({part['low']:.3f} to {part['high']:.3f})")
    part = found["processor"]
    verdict = "met" if part["high"] <= LIMIT else "missed" if part["low"] > LIMIT else "undecided"
    return f"{name:<14} {'  '.join(cells)}  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loaders", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help="measure the one loader in this process")
    options = parser.parse_args()
    names = options.loaders.split(",")
    if options.here:
        print(json.dumps(measure(names[0], options.rounds)))
        return
    from argosy.environment import find_interpreter, lives_apart

    table = sys.stderr if options.json else sys.stdout
    print(
        f"{'loader':<14} {'bare us':>8}  {'argosy us':>8}  ratio of wall time      ratio of processor time  at most {LIMIT}",
        file=table,
    )
    found: dict[str, Any] = {}
    for name in names:
        framework = CASES[name].framework
        python = str(find_interpreter(framework)) if lives_apart(framework) else sys.executable
        command = [python, "-W", "ignore", __file__, "--here", "--loaders", name, "--rounds", str(options.rounds)]
        settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, timeout=900, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(describe(name, found[name]), file=table, flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
