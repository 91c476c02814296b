"""The beginner's logistic regression in Apache MXNet: trained by `argosy.train`, published, served.

    pip install argosy
    argosy environment run mxnet examples/classic_mxnet.py

MXNet needs an old NumPy, so it lives in an environment of its own, which the second command builds the first time.

As people first meet this program it does not run: `mx` and `nd` are used without their imports, the accuracy is a sum
divided by `total = 0`, and `SoftmaxCrossEntropyLoss` is taken over a single number, whose softmax is always 1, so that the
loss is 0 and nothing is learnt. The labels are drawn by chance. Here the loss is that of a sigmoid, and the program
runs twice: on chance, where no program does better than the most frequent label, and on rows that differ by their label.
"""

from __future__ import annotations

import mxnet as mx
import numpy as np
from mxnet import gluon

import argosy


def make_data(is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((1000, 100)), random.integers(0, 2, 1000)
    if not is_chance:
        x += np.where(y == 1, 0.25, -0.25)[:, None]
    return x.astype(np.float32), y.astype(np.float32)


def train(name: str, is_chance: bool) -> None:
    x, y = make_data(is_chance)
    mx.random.seed(0)
    model = gluon.nn.HybridSequential()
    model.add(gluon.nn.Dense(1, in_units=100))
    model.initialize(mx.init.Xavier())
    result = argosy.train(
        model,
        (x, y),
        loss=gluon.loss.SigmoidBinaryCrossEntropyLoss(),
        optimizer=mx.optimizer.SGD(learning_rate=0.01),
        batch_size=32,
        epochs=10,
        validation_split=0.2,
        metrics=["accuracy"],
    )
    print(f"{name}: accuracy {result.history[-1].validation_metrics['accuracy']:.2f} on rows that it was not trained on")
    result.publish(name)
    with argosy.serve(name) as server, server.client() as client:
        served = client.predict(name, {"input": x[:3]})["output"]
        print(f"{name}: served {served.ravel().round(3)}, in MXNet {result.predict(x[:3]).ravel().round(3)}")


if __name__ == "__main__":
    train("mxnet-chance", is_chance=True)
    train("mxnet-logistic", is_chance=False)
