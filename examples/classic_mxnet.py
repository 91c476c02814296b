"""The beginner's logistic regression in Apache MXNet: its own loop and `argosy.train`, both published and served.

    pip install argosy
    argosy environment run mxnet examples/classic_mxnet.py

MXNet needs an old NumPy, so it lives in an environment of its own, which the second command builds the first time.

As it is handed around, the program stops four times: Gluon's trainer is given Symbols in place of parameters, NumPy is not
imported, a Symbol is called on an array, and the cross-entropy wants labels in one dimension. With these mended it prints an
accuracy of 1 for labels that are drawn by chance. The softmax of a single number is 1 and the argmax of a single column 0,
whatever the model says; and the metric gets predictions and labels in the wrong order, so that it takes the argmax of the
labels, 0 as well, and compares 0 with 0. The loss's gradient is 0 for a label 0 and 1 for a label 1: the model learns the
opposite, its weights fall without end. The iterator is never reset, so that nine of the ten epochs have no batch, and an
optimizer is made that nothing uses. Mended here by a Gluon layer, the loss of a sigmoid, a threshold in place of the argmax,
labels first, and a reset; batches of 100 and 10 epochs are kept.

Rows and labels are drawn by chance, and have nothing to do with one another: the accuracy to expect on new rows is one
half, whoever trains. So both forms run on rows that can be told apart as well, to see that they learn.
"""

from __future__ import annotations

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

import argosy


def make_data(seed: int, is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each; by chance, or with 50 numbers larger by the label."""
    random = np.random.default_rng(seed)
    x, y = random.random((1000, 100)), random.integers(0, 2, (1000, 1))
    if not is_chance:
        x[:, :50] += y
    return x.astype(np.float32), y.astype(np.float32)


def make_net() -> gluon.nn.Dense:
    mx.random.seed(0)
    net = gluon.nn.Dense(1, in_units=100)
    net.initialize()
    return net


def run_own_loop(x: np.ndarray, y: np.ndarray) -> gluon.nn.Dense:
    net = make_net()
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01})
    train_data = mx.io.NDArrayIter(x, y, 100)
    cross_entropy = gluon.loss.SigmoidBinaryCrossEntropyLoss()
    metric = mx.metric.Accuracy()
    for epoch in range(10):
        metric.reset()
        train_data.reset()
        for batch in train_data:
            data, label = batch.data[0], batch.label[0]
            with autograd.record():
                output = net(data)
                loss = cross_entropy(output, label)
            loss.backward()
            trainer.step(len(data))
            metric.update([label], [output > 0])
        print(f"epoch {epoch + 1}: accuracy so far {metric.get()[1]:.3f}")
    return net


def run_argosy(x: np.ndarray, y: np.ndarray) -> argosy.TrainResult:
    return argosy.train(
        make_net(),
        mx.io.NDArrayIter(x, y, 100),
        loss=gluon.loss.SigmoidBinaryCrossEntropyLoss(),
        optimizer=mx.optimizer.SGD(learning_rate=0.01),
        epochs=10,
        progress=False,
    )


def predict(net: gluon.nn.Dense, x: np.ndarray) -> np.ndarray:
    return net(mx.nd.array(x)).asnumpy()


def measure_accuracy(model: gluon.nn.Dense, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((predict(model, x) > 0) == y))


def compare(is_chance: bool) -> tuple[gluon.nn.Dense, argosy.TrainResult]:
    """Train by both forms; say how often each is right."""
    x, y = make_data(0, is_chance)
    own, result = run_own_loop(x, y), run_argosy(x, y)
    rows = "by chance" if is_chance else "told apart"
    for form, model in (("own loop", own), ("argosy.train", result.model)):
        seen, new = measure_accuracy(model, x, y), measure_accuracy(model, *make_data(1, is_chance))
        print(f"rows {rows}, {form}: accuracy {seen:.3f} on rows that it was trained on, {new:.3f} on new ones")
    return own, result


def main() -> None:
    compare(is_chance=False)
    own, result = compare(is_chance=True)
    x, _ = make_data(0, is_chance=True)
    argosy.publish(own, "mxnet-own-loop", sample=x)
    result.publish("mxnet-argosy")
    with argosy.serve("mxnet-own-loop", "mxnet-argosy") as server, server.client() as client:
        for name, model in (("mxnet-own-loop", own), ("mxnet-argosy", result.model)):
            served = client.predict(name, {"input": x[:3]})["output"]
            print(f"{name}: served {served.ravel().round(5)}, in MXNet {predict(model, x[:3]).ravel().round(5)}")


if __name__ == "__main__":
    main()
