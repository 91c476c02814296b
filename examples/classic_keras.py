"""The beginner's logistic regression in Keras 3: trained by `argosy.train`, published, served.

    pip install 'argosy[keras,tensorflow]'
    python examples/classic_keras.py

As people first meet this program it does not run or does not learn: `numpy` is used without its import, `Dense(1)` is
followed by a softmax, which is 1 for a single number whatever it is, and the labels are drawn by chance. Here the
output is a sigmoid, and the program runs twice: on chance, where no program does better than the most frequent label,
and on rows that differ by their label.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

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
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss="binary_crossentropy")
    # Loss and optimizer are those that the model was compiled with.
    result = argosy.train(model, (x, y), batch_size=32, epochs=10, validation_split=0.2, metrics=["accuracy"])
    print(f"{name}: accuracy {result.history[-1].validation_metrics['accuracy']:.2f} on rows that it was not trained on")
    result.publish(name)
    with argosy.serve(name) as server, server.client() as client:
        served = client.predict(name, {"input": x[:3]})["output"]
        print(f"{name}: served {served.ravel().round(3)}, in Keras {result.predict(x[:3]).ravel().round(3)}")


if __name__ == "__main__":
    train("keras-chance", is_chance=True)
    train("keras-logistic", is_chance=False)
