"""The beginner's logistic regression in TensorFlow: its own loop and `argosy.train`, both published and served.

    pip install 'argosy[tensorflow]'
    python examples/classic_tensorflow.py

As it is handed around, the program is written for TensorFlow 1 (placeholders, a session, `tf.log`), whose calls TensorFlow 2
does not have, and uses NumPy without importing it. With both mended it runs and learns nothing: its loss is half of the
cross-entropy, `-y * log(p)`, to which rows of label 0 add nothing, so that it falls to 0 by answering 1 to every row, and the
accuracy is the share of labels that are 1. What it calls a test set are the rows that it was trained on. Mended here by the
other half of the loss, a gradient tape in place of the session, and rows that are new. 1,000 steps are kept, each on all rows.

Rows and labels are drawn by chance, and have nothing to do with one another: the accuracy to expect on new rows is one
half, whoever trains; on the rows of the training it is about 0.6, as 101 weights learn a part of 1,000 labels by heart. So
both forms run on rows that can be told apart as well, to see that they learn.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import argosy


class Logistic(tf.Module):
    """One weight for each of the 100 numbers, and a bias; gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((100, 1)))
        self.bias = tf.Variable(tf.zeros(1))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(x @ self.weight + self.bias)


def make_data(seed: int, is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each; by chance, or with 50 numbers larger by the label."""
    random = np.random.default_rng(seed)
    x, y = random.random((1000, 100)), random.integers(0, 2, (1000, 1))
    if not is_chance:
        x[:, :50] += y
    return x.astype(np.float32), y.astype(np.float32)


def measure_cross_entropy(y: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(-y * tf.math.log(predicted) - (1 - y) * tf.math.log(1 - predicted))


def run_own_loop(x: np.ndarray, y: np.ndarray) -> Logistic:
    model = Logistic()
    optimizer = tf.optimizers.SGD(0.01)

    @tf.function
    def train_step() -> None:
        with tf.GradientTape() as tape:
            loss = measure_cross_entropy(y, model(x))
        weights = [model.weight, model.bias]
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for _ in range(1000):
        train_step()
    return model


def run_argosy(x: np.ndarray, y: np.ndarray) -> argosy.TrainResult:
    return argosy.train(
        Logistic(),
        (x, y),
        loss=tf.losses.BinaryCrossentropy(),
        optimizer=tf.optimizers.SGD(0.01),
        batch_size=1000,
        epochs=1000,
        shuffle=False,
        progress=False,
    )


def predict(model: Logistic, x: np.ndarray) -> np.ndarray:
    return model(tf.constant(x)).numpy()


def measure_accuracy(model: Logistic, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((predict(model, x) > 0.5) == y))


def compare(is_chance: bool) -> tuple[Logistic, argosy.TrainResult]:
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
    argosy.publish(own, "tensorflow-own-loop", sample=x)
    result.publish("tensorflow-argosy")
    with argosy.serve("tensorflow-own-loop", "tensorflow-argosy") as server, server.client() as client:
        for name, model in (("tensorflow-own-loop", own), ("tensorflow-argosy", result.model)):
            served = client.predict(name, {"input": x[:3]})["output"]
            print(f"{name}: served {served.ravel().round(5)}, in TensorFlow {predict(model, x[:3]).ravel().round(5)}")


if __name__ == "__main__":
    main()
