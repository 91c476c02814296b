"""Run a classic program of `examples/`, then try what its introduction says of the program as it is handed around.

    python tests/classic_run.py FRAMEWORK

The last line that it prints is JSON: what was found. It runs in MXNet's environment too, and knows nothing of ours.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def name_refusal(attempt: Callable[[], object]) -> str | None:
    """The kind of error that something ends with; None where it is done."""
    try:
        attempt()
    except Exception as error:
        return type(error).__name__
    return None


def try_torch(program: dict[str, Any]) -> dict[str, Any]:
    import torch

    probabilities, labels = torch.full((4, 1), 0.5), torch.ones((4, 1))
    return {
        "whole numbers as labels": name_refusal(lambda: torch.nn.BCELoss()(probabilities, labels.long())),
        "floats as labels": name_refusal(lambda: torch.nn.BCELoss()(probabilities, labels)),
        "has a class Momentum": hasattr(torch.optim, "Momentum"),
        "momentum of SGD": name_refusal(lambda: torch.optim.SGD([labels], momentum=0.9)),
    }


def try_keras(program: dict[str, Any]) -> dict[str, Any]:
    import keras

    model = program["make_model"]()
    x, y = program["make_data"](0, is_chance=True)
    return {
        "output_dim": name_refusal(lambda: keras.layers.Dense(input_dim=100, output_dim=1)),
        "lr": name_refusal(lambda: keras.optimizers.SGD(lr=0.01)),
        "nb_epoch": name_refusal(lambda: model.fit(x, y, nb_epoch=1)),
        "has a class Momentum": hasattr(keras.optimizers, "Momentum"),
        "momentum of SGD": name_refusal(lambda: keras.optimizers.SGD(momentum=0.9)),
    }


def try_tensorflow(program: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    x, y = program["make_data"](0, is_chance=True)
    model, optimizer = program["Logistic"](), tf.optimizers.SGD(0.01)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            half = tf.reduce_mean(-y * tf.math.log(model(x)))
        weights = [model.weight, model.bias]
        optimizer.apply_gradients(zip(tape.gradient(half, weights), weights, strict=True))
        return half

    losses = [float(step()) for _ in range(1000)]
    version_1 = ("placeholder", "Session", "log", "global_variables_initializer")
    return {
        "calls that are left": [name for name in version_1 if hasattr(tf, name)],
        "whose optimizers": tf.optimizers.SGD.__module__.split(".")[0],
        "loss": losses[-1],
        "answers": np.unique(np.round(model(x))).tolist(),
        "accuracy less the share of ones": float(np.mean(np.round(model(x)) == y) - np.mean(y)),
    }


def try_mxnet(program: dict[str, Any]) -> dict[str, Any]:
    import mxnet as mx

    symbol = mx.symbol.FullyConnected(name="layer", num_hidden=1)
    logits, labels = mx.nd.array([[-3.0], [0.5], [2.0]]), mx.nd.array([[0], [1], [0]])
    logits.attach_grad()
    with mx.autograd.record():
        loss = mx.nd.softmax_cross_entropy(logits, labels.reshape(-1))
    loss.backward()
    wrong_order = mx.metric.Accuracy()
    wrong_order.update([mx.nd.argmax(logits, axis=1)], [labels])
    x, y = program["make_data"](0, is_chance=False)
    batches = mx.io.NDArrayIter(x, y, 100)
    return {
        "trainer of symbols": name_refusal(lambda: mx.gluon.Trainer({"layer_weight": symbol}, "sgd")),
        "symbol on an array": name_refusal(lambda: symbol(logits)),
        "labels in two dimensions": name_refusal(lambda: mx.nd.softmax_cross_entropy(logits, labels).wait_to_read()),
        "softmax": mx.nd.softmax(logits).asnumpy().ravel().tolist(),
        "argmax": mx.nd.argmax(logits, axis=1).asnumpy().tolist(),
        "accuracy in the wrong order": wrong_order.get()[1],
        "gradient": logits.grad.asnumpy().ravel().tolist(),
        "batches of three epochs": [sum(1 for _ in batches) for _ in range(3)],
        "chance that a label 1 has the larger logit": learn_by_softmax(program, x, y),
    }


def learn_by_softmax(program: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
    """Ten epochs with the softmax of a single number, on rows that can be told apart."""
    import mxnet as mx

    net = program["make_net"]()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01})
    for _ in range(10):
        for batch in mx.io.NDArrayIter(x, y, 100):
            with mx.autograd.record():
                loss = mx.nd.softmax_cross_entropy(net(batch.data[0]), batch.label[0].reshape(-1))
            loss.backward()
            trainer.step(100)
    logits = net(mx.nd.array(x)).asnumpy()
    return float(np.mean(logits[y == 1][:, None] > logits[y == 0]))


if __name__ == "__main__":
    framework = sys.argv[1]
    program = runpy.run_path(str(EXAMPLES / f"classic_{framework}.py"), run_name="__main__")
    print(json.dumps(globals()[f"try_{framework}"](program)))
