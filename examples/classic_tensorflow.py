"""The beginner's logistic regression in TensorFlow: trained by `argosy.train`, published, served.

    pip install 'argosy[tensorflow]'
    python examples/classic_tensorflow.py

As people first meet this program it is written for TensorFlow 1 (placeholders, a session), and its loss is half of the
cross-entropy, `-y * log(p)`: rows with label 0 add nothing, so that the best answer to everything is 1. Its labels are
drawn by chance. Here it is a `tf.Module`, the loss is whole, and the program runs twice: on chance, where no program does
better than the most frequent label, and on rows that differ by their label.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import argosy


class Logistic(tf.Module):
    """One weight for each of the 100 numbers, and a bias; gives logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((100, 1)))
        self.bias = tf.Variable(tf.zeros(1))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x @ self.weight + self.bias


def make_data(is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((1000, 100)), random.integers(0, 2, 1000)
    if not is_chance:
        x += np.where(y == 1, 0.25, -0.25)[:, None]
    return x.astype(np.float32), y.astype(np.float32)


def train(name: str, is_chance: bool) -> None:
    x, y = make_data(is_chance)
    result = argosy.train(
        Logistic(),
        (x, y),
        loss="binary_cross_entropy",
        optimizer=argosy.optim.SGD(learning_rate=0.01),
        batch_size=32,
        epochs=10,
        validation_split=0.2,
    )
    print(f"{name}: accuracy {result.history[-1].validation_metrics['accuracy']:.2f} on rows that it was not trained on")
    result.publish(name)
    with argosy.serve(name) as server, server.client() as client:
        served = client.predict(name, {"input": x[:3]})["output"]
        print(f"{name}: served {served.ravel().round(3)}, in TensorFlow {result.predict(x[:3]).ravel().round(3)}")


if __name__ == "__main__":
    train("tensorflow-chance", is_chance=True)
    train("tensorflow-logistic", is_chance=False)
