"""A time series in Keras: a chaotic one, of which the next value is told from the last twenty-four.

The series is that of Mackey and Glass (1977, doi:10.1126/science.267326), with noise.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import argosy

NAME = "next-value"
EPOCHS, BATCH_SIZE, RATE = 15, 64, 0.003
WINDOW, DELAY = 24, 17


def make_series(length: int) -> np.ndarray:
    random = np.random.default_rng(0)
    series = np.full(DELAY + 1, 1.2)
    for _ in range(length + 500):
        delayed = series[-1 - DELAY]
        series = np.append(series, series[-1] * 0.9 + 0.2 * delayed / (1 + delayed**10))
    return (series[-length:] + random.normal(0, 0.02, length)).astype(np.float32)


def make_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    convolutions = [layers.Conv1D(24, 5, activation="relu"), layers.Conv1D(24, 5, activation="relu")]
    return keras.Sequential([keras.Input((WINDOW, 1)), *convolutions, layers.Flatten(), layers.Dense(1)])


def make_data() -> tuple[Any, Any]:
    """Windows with the value that follows: the first three quarters to train on, what comes later to test."""
    series = make_series(2400)
    series = (series - series[:1800].mean()) / series[:1800].std()
    x = np.lib.stride_tricks.sliding_window_view(series, WINDOW)[:-1, :, None].copy()
    y = series[WINDOW:, None]
    return (x[:1800], y[:1800]), (x[1800:], y[1800:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    return argosy.train(
        make_model(seed),
        training,
        loss="mse",
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        progress=False,
    )


def measure(model: keras.Model) -> float:
    """The part of the variance of later values that is told."""
    _, (x, y) = make_data()
    return float(1 - ((np.asarray(model(x)) - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, input_name="window", output_name="next")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers on later windows, and what the model itself answers."""
    _, (x, _) = make_data()
    return client.predict(NAME, {"window": x[:20]}), {"next": result.predict(x[:20])}


def main() -> None:
    result = fit()
    print(f"of later values is told: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['next'][:3].ravel()}, in Keras {expected['next'][:3].ravel()}")


if __name__ == "__main__":
    main()
