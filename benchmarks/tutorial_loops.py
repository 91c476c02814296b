"""The tutorials of `examples/tutorials` by the loops that users write in the framework itself: same model, data and settings.

Each function takes the tutorial's module and a seed, and gives the model. Rows come in an order of the loop's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["LOOPS"]

Loop = Callable[[Any, int], Any]


def pair(tutorial: Any, seed: int) -> Any:
    import torch
    from torch.nn import functional

    (pictures, targets), _ = tutorial.make_data()
    left, right, sums, same = map(torch.from_numpy, (*pictures.values(), *targets.values()))
    model = tutorial.make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=tutorial.RATE)
    for rows in cut(len(left), tutorial, seed):
        found = model(left[rows], right[rows])
        loss = functional.cross_entropy(found["sum"], sums[rows])
        loss = loss + tutorial.WEIGHTS["same"] * functional.binary_cross_entropy_with_logits(found["same"], same[rows])
        move(optimizer, loss)
    return model


def text(tutorial: Any, seed: int) -> Any:
    (x, names), _ = tutorial.make_data()
    return classify(tutorial, seed, x, np.searchsorted(sorted(tutorial.LIBRARIES), names))


def recurrent(tutorial: Any, seed: int) -> Any:
    (x, y), _ = tutorial.make_data()
    return classify(tutorial, seed, x, y, clip_norm=1.0)


def classify(
    tutorial: Any, seed: int, x: Any, y: Any, clip_norm: float | None = None, model: Any = None, epochs: Any = None
) -> Any:
    """The loop of most tutorials of PyTorch."""
    import torch

    model = tutorial.make_model(seed) if model is None else model
    rows_x, rows_y = torch.from_numpy(x), torch.from_numpy(y)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=tutorial.RATE)
    for rows in cut(len(x), tutorial, seed, epochs):
        loss = torch.nn.functional.cross_entropy(model(rows_x[rows]), rows_y[rows])
        move(optimizer, loss, clip_norm)
    return model


def autoencoder(tutorial: Any, seed: int) -> Any:
    import keras

    x, _ = tutorial.make_data()
    model = tutorial.make_model(seed)
    model.compile(optimizer=keras.optimizers.Adam(tutorial.RATE), loss="mse")
    model.fit(x, x, batch_size=tutorial.BATCH_SIZE, epochs=tutorial.EPOCHS, verbose=0)
    return model


def halves(tutorial: Any, seed: int) -> Any:
    (x, y), _ = tutorial.make_data()
    model = tutorial.make_model(seed)
    tutorial.compile_model(model)
    model.fit(x, y, batch_size=tutorial.BATCH_SIZE, epochs=tutorial.EPOCHS, verbose=0)
    return model


def time_series(tutorial: Any, seed: int) -> Any:
    import keras

    (x, y), _ = tutorial.make_data()
    model = tutorial.make_model(seed)
    model.compile(optimizer=keras.optimizers.Adam(tutorial.RATE), loss="mse")
    model.fit(x, y, batch_size=tutorial.BATCH_SIZE, epochs=tutorial.EPOCHS, verbose=0)
    return model


def gan(tutorial: Any, seed: int) -> Any:
    import torch

    real = torch.from_numpy(tutorial.make_data())
    model = tutorial.make_model(seed)
    parts = {name: getattr(model, name) for name in ("generator", "discriminator")}
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=tutorial.RATE, betas=(0.5, 0.999)) for name, part in parts.items()}
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    for rows in cut(len(real), tutorial, seed):
        made = model.generator(torch.randn(len(rows), tutorial.NOISE))
        move(optimizers["discriminator"], tutorial.judge(model, real[rows], made.detach()))
        move(optimizers["generator"], tutorial.LOSS(model.discriminator(made), torch.ones(len(rows), 1)))
        average.update_parameters(model)
    return average.module


def contrastive(tutorial: Any, seed: int) -> Any:
    import torch

    (x, _), _ = tutorial.make_data()
    pictures, model = torch.from_numpy(x), tutorial.make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=tutorial.RATE)
    for rows in cut(len(x), tutorial, seed):
        move(optimizer, tutorial.contrast(model, pictures[rows]))
    return model


def sample_weights(tutorial: Any, seed: int) -> Any:
    import torch

    (x, y, weights), _ = tutorial.make_data()
    factors = torch.from_numpy(weights * np.where(y == 0, tutorial.CLASS_WEIGHTS[0], 1.0).astype(np.float32))
    rows_x, rows_y, model = torch.from_numpy(x), torch.from_numpy(y), tutorial.make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=tutorial.RATE, weight_decay=0.001)
    for rows in cut(len(x), tutorial, seed):
        losses = torch.nn.functional.cross_entropy(model(rows_x[rows]), rows_y[rows], reduction="none")
        move(optimizer, (losses * factors[rows]).mean())
    return model


def table(tutorial: Any, seed: int) -> Any:
    import pandas as pd
    import torch

    cars = pd.read_csv(tutorial.write_files()[0])
    numbers = (cars[tutorial.NUMBERS] - cars[tutorial.NUMBERS].mean()) / cars[tutorial.NUMBERS].std(ddof=0)
    # The most frequent origin comes first, after a place for unknown ones: so the server's rows have them.
    places = [(cars["origin"] == origin).astype(float) for origin in cars["origin"].value_counts().index]
    x = np.column_stack([numbers, np.zeros(len(cars)), *places]).astype(np.float32)
    rows_x, y = torch.from_numpy(x), torch.from_numpy(cars["mpg"].to_numpy(np.float32))
    model = tutorial.make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=tutorial.RATE)
    for rows in cut(len(x), tutorial, seed):
        move(optimizer, torch.nn.functional.mse_loss(model(rows_x[rows])[:, 0], y[rows]))
    return model


def pictures(tutorial: Any, seed: int) -> Any:
    from PIL import Image

    files = sorted((tutorial.write_files() / "train").rglob("*.png"))
    x = np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files])
    return classify(tutorial, seed, x, np.array([int(file.parent.name) for file in files]))


def transfer(tutorial: Any, seed: int) -> Any:
    lower, upper, _ = tutorial.make_data()
    base = classify(tutorial, seed, *lower, epochs=tutorial.BASE_EPOCHS)
    model = tutorial.make_model(seed + 100)
    model.body.load_state_dict(base.body.state_dict())
    model.body.requires_grad_(False)
    model.body.eval()  # The head, which is left, behaves alike in both.
    return classify(tutorial, seed, *upper, model=model)


def lora(tutorial: Any, seed: int) -> Any:
    upright, turned, _ = tutorial.make_data()
    base = classify(tutorial, seed, *upright, epochs=tutorial.BASE_EPOCHS)
    return classify(tutorial, seed, *turned, model=tutorial.adapt(base))


def cut(num_rows: int, tutorial: Any, seed: int, epochs: int | None = None) -> Iterator[Any]:
    """The rows of each batch, shuffled each epoch."""
    import torch

    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for _ in range(epochs or tutorial.EPOCHS):
        yield from torch.from_numpy(random.permutation(num_rows)).split(tutorial.BATCH_SIZE)


def move(optimizer: Any, loss: Any, clip_norm: float | None = None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clip_norm is not None:
        import torch

        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip_norm)
    optimizer.step()


LOOPS: dict[str, Loop] = {
    "two_inputs": pair,
    "two_inputs_keras": halves,
    "text": text,
    "recurrent": recurrent,
    "autoencoder": autoencoder,
    "transfer": transfer,
    "gan": gan,
    "contrastive": contrastive,
    "sample_weights": sample_weights,
    "table": table,
    "pictures": pictures,
    "time_series": time_series,
    "lora": lora,
}
