"""The beginner's logistic regression in Keras 3: its own loop, `fit`, and `argosy.train`, both published and served.

    pip install 'argosy[keras,tensorflow]'
    python examples/classic_keras.py

As it is handed around, the program uses `SGD` and NumPy without importing them, and speaks the Keras of 2016: a layer's
`output_dim`, a rate called `lr` and a number of epochs called `nb_epoch`, which Keras 3 refuses one after the other. Its
comment says categorical cross-entropy, where the loss is the binary one, which is right. Mended here by the imports and
today's names; all else is kept: batches of 32, 10 epochs, a fifth of the rows held out.

Rows and labels are drawn by chance, and have nothing to do with one another: the accuracy to expect on rows held out is one
half, whoever trains. So both forms run on rows that can be told apart as well, to see that they learn.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

import argosy


def make_data(seed: int, is_chance: bool) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of 100 numbers, a label of 0 or 1 for each; by chance, or with 50 numbers larger by the label."""
    random = np.random.default_rng(seed)
    x, y = random.random((1000, 100)), random.integers(0, 2, (1000, 1))
    if not is_chance:
        x[:, :50] += y
    return x.astype(np.float32), y.astype(np.float32)


def make_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer=keras.optimizers.SGD(learning_rate=0.01), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def run_own_loop(x: np.ndarray, y: np.ndarray) -> tuple[keras.Model, float]:
    """Give the model, and its accuracy on the rows held out."""
    model = make_model()
    history = model.fit(x, y, batch_size=32, epochs=10, validation_split=0.2, verbose=0)
    return model, history.history["val_accuracy"][-1]


def run_argosy(x: np.ndarray, y: np.ndarray) -> argosy.TrainResult:
    # Loss, optimizer and metrics are those that the model was compiled with.
    return argosy.train(make_model(), (x, y), batch_size=32, epochs=10, validation_split=0.2, progress=False)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return model.predict(x, verbose=0)


def measure_accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((predict(model, x) > 0.5) == y))


def compare(is_chance: bool) -> tuple[keras.Model, argosy.TrainResult]:
    """Train by both forms; say how often each is right."""
    x, y = make_data(0, is_chance)
    (own, held_out), result = run_own_loop(x, y), run_argosy(x, y)
    rows = "by chance" if is_chance else "told apart"
    measured = {"own loop": (own, held_out), "argosy.train": (result.model, result.history[-1].validation_metrics["accuracy"])}
    for form, (model, accuracy) in measured.items():
        new = measure_accuracy(model, *make_data(1, is_chance))
        print(f"rows {rows}, {form}: accuracy {accuracy:.3f} on rows held out, {new:.3f} on new ones")
    return own, result


def main() -> None:
    compare(is_chance=False)
    own, result = compare(is_chance=True)
    x, _ = make_data(0, is_chance=True)
    argosy.publish(own, "keras-own-loop", sample=x)
    result.publish("keras-argosy")
    with argosy.serve("keras-own-loop", "keras-argosy") as server, server.client() as client:
        for name, model in (("keras-own-loop", own), ("keras-argosy", result.model)):
            served = client.predict(name, {"input": x[:3]})["output"]
            print(f"{name}: served {served.ravel().round(5)}, in Keras {predict(model, x[:3]).ravel().round(5)}")


if __name__ == "__main__":
    main()
