"""A GAN: two networks, two optimizers and a step of one's own; it learns to draw points of a bent cloud.

What is published is the generator: the model's call is its call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import argosy

NAME = "bent-cloud"
EPOCHS, BATCH_SIZE, RATE, NOISE = 40, 128, 0.001, 4
LOSS = nn.BCEWithLogitsLoss()


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(NOISE, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)


def make_model(seed: int) -> Gan:
    torch.manual_seed(seed)
    return Gan()


def make_data() -> np.ndarray:
    random = np.random.default_rng(0)
    across, along = random.normal(size=(2, 4000))
    return np.stack([along, 0.5 * along**2 + 0.3 * across], axis=1).astype(np.float32)


def judge(model: Gan, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: real points are 1, made ones 0."""
    told = model.discriminator(torch.cat([real, made]))
    return LOSS(told, torch.cat([torch.ones(len(real), 1), torch.zeros(len(made), 1)]))


def step(model: Gan, batch: torch.Tensor, fit: Any) -> float:
    made = model.generator(torch.randn(len(batch), NOISE))
    told = fit.minimize(judge(model, batch, made.detach()), "discriminator")
    fooled = fit.minimize(LOSS(model.discriminator(made), torch.ones(len(batch), 1)), "generator")
    fit.log(discriminator=told, generator=fooled)
    return fooled


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    adam = argosy.optim.Adam(learning_rate=RATE, betas=(0.5, 0.999))
    return argosy.train(
        make_model(seed),
        make_data(),
        step=step,
        optimizer={"generator": adam, "discriminator": adam},
        average=argosy.Ema(decay=0.99),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: Gan) -> float:
    """How alike made and real points are: 1 less the energy distance of their clouds (Székely and Rizzo 2013)."""
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(1000, NOISE)).astype(np.float32))
    with torch.no_grad():
        made, real = model(noise), torch.from_numpy(make_data()[:1000])
    distance = 2 * torch.cdist(made, real).mean() - torch.cdist(made, made).mean() - torch.cdist(real, real).mean()
    return 1 - float(distance)


def publish(result: argosy.TrainResult) -> argosy.Version:
    noise = np.random.default_rng(2).normal(size=(20, NOISE)).astype(np.float32)
    return result.publish(NAME, sample=noise, input_name="noise", output_name="points")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server makes of noise, and what the model itself makes of it."""
    noise = np.random.default_rng(3).normal(size=(20, NOISE)).astype(np.float32)
    return client.predict(NAME, {"noise": noise}), {"points": result.predict(noise)}


def main() -> None:
    result = fit()
    print(f"made and real points are alike: {measure(result.model):.3f}")
    publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"served {served['points'][0]}, in PyTorch {expected['points'][0]}")


if __name__ == "__main__":
    main()
