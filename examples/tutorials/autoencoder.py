"""An autoencoder in Keras: pictures of digits through eight numbers, and back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import argosy

NAME = "digits-autoencoder"
EPOCHS, BATCH_SIZE, RATE = 20, 32, 0.003


def make_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(8, name="code"),
            layers.Dense(32, activation="relu"),
            layers.Dense(64, activation="sigmoid"),
        ]
    )


def make_data() -> tuple[Any, Any]:
    x = (load_digits().data / 16).astype(np.float32)
    return x[:1300], x[1300:]


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    model = make_model(seed)
    model.compile(optimizer=keras.optimizers.Adam(RATE), loss="mse")
    return argosy.train(model, (training, training), batch_size=BATCH_SIZE, epochs=epochs, seed=seed, progress=False)


def measure(model: keras.Model) -> float:
    """The part of the variance of new pictures that comes back."""
    known, new = make_data()
    made = np.asarray(model(new))
    return float(1 - ((made - new) ** 2).sum() / ((new - known.mean(0)) ** 2).sum())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, input_name="picture", output_name="made")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on new pictures, and what the model itself answers."""
    _, new = make_data()
    return client.predict(NAME, {"picture": new[:20]}), {"made": result.predict(new[:20])}


def main() -> None:
    result = fit()
    print(f"of new pictures come back: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['made'][0, :4]}, in Keras {expected['made'][0, :4]}")


if __name__ == "__main__":
    main()
