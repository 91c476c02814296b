from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.data import Dataset
from argosy.train.recipes import load_data_for, run_recipe


@dataclass(frozen=True)
class Digits:
    """A store with a digits model after a few epochs, and the model's data."""

    store: Store
    version: Version
    training: Dataset
    testing: Dataset


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("digits") / "home")
    version = run_recipe("digits", epochs=4, publish_as="digits", store=store, progress=False).version
    assert version is not None
    data = load_data_for(version)
    assert data is not None
    return Digits(store, version, *data)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def make_regressor(store):
    """Publish a regression on 6 inputs: linear, wide enough that its weights are most of the file."""
    import torch

    from argosy.train.run import train

    def make(model=None, name="regressor"):
        x = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
        y = (x @ np.linspace(-1, 1, 6))[:, None]
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        result = train(model, (x, y), loss="mse", epochs=20, num_threads=1, progress=False)
        return result.publish(name, store), x, y

    return make
