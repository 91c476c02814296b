from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pytest

from argosy.optim import Adam
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.datasets import Dataset
from argosy.train.recipes import load_data_for, run_recipe

run, served = (importlib.import_module(f"argosy.compress.{name}") for name in ("run", "served"))


@dataclass(frozen=True)
class Digits:
    """A store with a digits model after a few epochs, and the model's data."""

    store: Store
    version: Version
    training: Dataset
    testing: Dataset


@pytest.fixture(autouse=True, scope="package")
def alone():
    """Nothing is measured behind a server, which takes long; but where a test asks for that."""
    patch = pytest.MonkeyPatch()
    patch.setattr(run, "Stage", lambda *given: None)
    yield patch
    patch.undo()


@pytest.fixture
def as_served(alone):
    """Measure behind a server, as is done by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Stage", served.Stage)
        yield


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


@pytest.fixture
def make_values(store):
    """Publish a regression on 8 inputs whose values are all far above 0, in columns that do not meet."""
    import torch

    from argosy.train.run import train

    def make(columns):
        random = np.random.default_rng(2)
        x = random.normal(size=(200, 8)).astype(np.float32)
        y = (x @ random.normal(size=(8, columns)) / 3 + 10 * np.arange(1, columns + 1)).astype(np.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, columns))
            with torch.no_grad():
                model[2].bias += torch.from_numpy(10.0 * np.arange(1, columns + 1))
        result = train(model, (x, y), loss="mse", optimizer=Adam(learning_rate=0.01), epochs=30, num_threads=1, progress=False)
        return result.publish("values", store), x, y

    return make
