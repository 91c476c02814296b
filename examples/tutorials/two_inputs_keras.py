"""Two inputs and two outputs in Keras: of the upper and the lower half of a picture, which digit it is and how much ink it has.

The model is compiled as for Keras' own `fit`: `argosy.train` takes its losses with their weights, and its optimizer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import argosy

NAME = "digit-halves"
EPOCHS, BATCH_SIZE, RATE = 15, 32, 0.003


def make_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    halves = {side: keras.Input((32,), name=side) for side in ("upper", "lower")}
    read = [layers.Dense(48, activation="relu")(half) for half in halves.values()]
    both = layers.Dense(48, activation="relu")(layers.concatenate(read))
    return keras.Model(halves, {"digit": layers.Dense(10, name="digit")(both), "ink": layers.Dense(1, name="ink")(both)})


def compile_model(model: keras.Model) -> None:
    digit = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss={"digit": digit, "ink": "mse"}, loss_weights={"digit": 1.0, "ink": 0.5})


def make_data() -> tuple[Any, Any]:
    """Pictures to train on, and new ones; inputs and targets are dicts by name, as those of the model."""
    pictures, digits = load_digits(return_X_y=True)
    pictures = (pictures / 16).astype(np.float32)
    ink = pictures.mean(axis=1, keepdims=True)
    parts = []
    for rows in (slice(1300), slice(1300, None)):
        halves = {"upper": pictures[rows, :32], "lower": pictures[rows, 32:]}
        parts.append((halves, {"digit": digits[rows], "ink": ink[rows]}))
    return parts[0], parts[1]


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    model = make_model(seed)
    compile_model(model)
    return argosy.train(model, training, batch_size=BATCH_SIZE, epochs=epochs, seed=seed, progress=False)


def measure(model: keras.Model) -> float:
    """How often the digit of new pictures is right, less how far their ink is off."""
    _, (halves, targets) = make_data()
    found = {name: np.asarray(array) for name, array in model.predict(halves, verbose=0).items()}
    return float((found["digit"].argmax(1) == targets["digit"]).mean() - np.abs(found["ink"] - targets["ink"]).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, labels={"digit": [str(digit) for digit in range(10)]})


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    _, (halves, _) = make_data()
    some = {side: rows[:20] for side, rows in halves.items()}
    return client.predict(NAME, some), result.predict(some)


def main() -> None:
    result = fit()
    print(f"right on new pictures, less the error of their ink: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['ink'][:3].ravel()}, in Keras {expected['ink'][:3].ravel()}")


if __name__ == "__main__":
    main()
