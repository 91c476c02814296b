from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy.store.local import Store


@pytest.fixture(autouse=True)
def one_thread():
    """Torch waits for its slowest thread: on a shared machine one thread is faster than two."""
    num_before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_before)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def blobs():
    """Three classes of 40 points each in 4 dimensions, well apart: (x, y)."""
    random = np.random.default_rng(7)
    centers = 6 * random.normal(size=(3, 4))
    y = np.tile(np.arange(3), 40)
    return (centers[y] + random.normal(size=(120, 4))).astype(np.float32), y


@pytest.fixture
def make_model():
    """Build the same small classifier again and again: 4 inputs, 3 classes, dropout between."""

    def make() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            layers = torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 3)
            return torch.nn.Sequential(*layers)

    return make
