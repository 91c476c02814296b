"""Versions that have no ONNX form are compressed by what their own framework has, and served by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import argosy
from argosy.bench.artifact import open_version
from argosy.bench.probe import Probe
from argosy.bench.rows import write_rows
from argosy.compress import compress
from argosy.compress.recipe import get_recipe, run_recipe
from argosy.compress.steps.base import Workshop
from argosy.compress.steps.native import TorchInt8
from argosy.errors import InputError
from argosy.store.local import Store
from tests.compress.artifacts import make_perceptron

ROWS = np.random.default_rng(0).normal(size=(120, 32)).astype(np.float32)


def make_torch() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.Linear(256, 4))


def make_keras() -> Any:
    keras: Any = pytest.importorskip("keras")
    layers = [keras.layers.Dense(size) for size in (256, 256, 4)]
    return keras.Sequential([keras.layers.Input((32,)), *layers])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("make", [pytest.param(make_torch, id="torch"), pytest.param(make_keras, id="keras")])
def test_version_of_a_framework_is_compressed_by_that_framework(make: Any, store: Store) -> None:
    parent = argosy.publish(make(), "native", sample=ROWS[:16], native=True, store=store)
    result = compress(parent, objective="size", data=ROWS, store=store, allow_code=True)
    assert result.version is not None and result.version.manifest.runtime == parent.manifest.runtime
    assert result.after.size_bytes < 0.4 * result.before.size_bytes
    assert result.score.metric == "fidelity" and 0.99 < result.score.after < 1.0
    assert result.version.manifest.signature == parent.manifest.signature
    assert result.version.manifest.lineage["precision"] == "int8"


@pytest.mark.slow
def test_program_of_any_length_stays_one_and_small_layers_stay_as_they_are(store: Store, tmp_path: Path) -> None:
    import torch

    class Steps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = torch.nn.Linear(8, 4096, bias=False), torch.nn.Linear(4096, 2)

        def forward(self, x: Any) -> Any:
            return self.narrow(torch.relu(self.wide(x)))

    rows = np.random.default_rng(1).normal(size=(60, 6, 8)).astype(np.float32)
    torch.manual_seed(0)
    parent = argosy.publish(Steps(), "steps", sample=rows[:8], native=True, store=store, dynamic={"input": [1]})
    artifact = open_version(store, parent)
    made = run_recipe((TorchInt8(least_weights=10_000),), artifact, Workshop(tmp_path / "made"))
    assert made.size_bytes < artifact.size_bytes
    kinds = {name: str(array.dtype) for name, array in torch.export.load(made.path).state_dict.items()}
    assert sorted(kinds.values()) == ["torch.float32", "torch.float32", "torch.float32", "torch.int8"]
    with Probe(artifact) as old, Probe(made) as new:
        for length in (1, 5):
            files = write_rows([{"input": rows[:1, :length]}], tmp_path / f"rows{length}")
            before, after = (probe.answer(files)[0]["output"] for probe in (old, new))
            assert before.shape == after.shape == (1, length, 2)
            np.testing.assert_allclose(after, before, atol=0.02)


@pytest.mark.slow
def test_model_without_matrices_has_nothing_for_its_framework_to_compress(store: Store, tmp_path: Path) -> None:
    import torch

    parent = argosy.publish(torch.nn.Sequential(torch.nn.Tanh()), "tanh", sample=ROWS[:16], native=True, store=store)
    with pytest.raises(InputError, match="a linear layer of 1024 weights or more"):
        run_recipe(get_recipe("torch-int8"), open_version(store, parent), Workshop(tmp_path / "made"))


@pytest.mark.parametrize("name", ["keras-int8", "torch-int8"])
def test_step_of_a_framework_takes_its_own_versions_alone(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} does not work on artifacts of the runtime onnx"):
        run_recipe(get_recipe(name), make_perceptron(tmp_path / "model"), Workshop(tmp_path / "made"))
