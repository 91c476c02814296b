from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from argosy.store.local import Store


def test_train_publishes_and_compress_follows(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call("train", "recipe:digits", "--epochs", "1", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["name"], found["version"], found["runtime"]) == ("digits", 1, "onnx")
    assert found["measurements"]["accuracy"] > 0.3
    assert "epoch 1/1" in result.stderr
    version = Store(tmp_path / "home").get_version("digits@1")
    assert version.manifest.lineage["training"]["seed"] == 3
    assert version.digest == found["digest"]

    # The guard is measured on the recipe's test rows; after one epoch it is wide open.
    done = call("compress", "digits@1", "--method", "int8", "--max-loss", "0.9", "--without-gain", "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["name"], made["version"], made["parent"]) == ("digits", 2, 1)
    # Torch measured the one, ONNX Runtime the other: a row on the border of two classes may fall to either.
    accuracy = pytest.approx(found["measurements"]["accuracy"], abs=1 / 359 + 1e-9)
    assert made["score"]["basis"] == "evaluation" and made["score"]["before"] == accuracy
    assert made["after"]["size_bytes"] < made["before"]["size_bytes"] / 2


PROGRAM = """
import numpy as np
from torch import nn

def line():
    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    return {"model": nn.Linear(1, 1), "data": (x, 3 * x + 1), "loss": "mse", "epochs": 50, "validation_split": 0.25}
"""


def test_train_of_a_program_takes_the_options_of_the_call(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ("--patience", "2", "--tolerance", "0.5", "--micro-batch-size", "4", "--num-threads", "1", "--batch-size", "16")
    result = call("train", f"{tmp_path / 'program.py'}:line", *options, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("epoch ") < 50
    lineage = Store(tmp_path / "home").get_version("line@1").manifest.lineage["training"]
    kept = {name: lineage[name] for name in ("patience", "tolerance", "micro_batch_size", "num_threads", "batch_size")}
    assert kept == {"patience": 2, "tolerance": 0.5, "micro_batch_size": 4, "num_threads": 1, "batch_size": 16}


NOISY = """
import os
import numpy as np
import torch

class Spectrum(torch.nn.Module):
    # ONNX has no words for it, of which torch prints at length.
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(9, 2)

    def forward(self, x):
        return self.last(torch.fft.rfft(x).abs())

def noisy():
    print("from Python")
    os.write(1, b"from below it")
    rows = np.random.default_rng(0).random((64, 16), np.float32)
    return {"model": Spectrum(), "data": (rows, (rows[:, 0] > 0.5).astype(np.int64)), "epochs": 1}
"""


def test_train_writes_the_result_alone_to_stdout(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(NOISY)
    command = [sys.executable, "-m", "argosy", "train", f"{tmp_path / 'program.py'}:noisy", "--json"]
    environment = os.environ | {"ARGOSY_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "noisy"
    assert "from Python" in done.stderr and "from below it" in done.stderr


def test_recipe_keeps_its_own_batch_and_threads(call: Callable[..., Result]) -> None:
    for option in ("--batch-size", "--num-threads"):
        result = call("train", "recipe:digits", option, "1")
        assert result.exit_code == 2 and f"{option} is for programs" in result.stderr


def test_method_that_is_none_is_refused_before_the_training(call: Callable[..., Result], tmp_path: Path) -> None:
    program, began = tmp_path / "program.py", tmp_path / "began"
    program.write_text(f"def fit():\n    open({str(began)!r}, 'w').close()\n    return {{}}\n")
    result = call("train", f"{program}:fit", "--compress", "foo")
    assert result.exit_code == 1 and "Unknown compression method 'foo'; known: bfloat16, distill, " in result.stderr
    assert not began.exists()


def test_version_that_is_no_onnx_file_is_not_compressed_and_the_error_says_what_can_be_done(
    call: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text("class Model:\n    def load(self, folder): ...\n    def raw(self, request): ...\n")
    assert call("import", tmp_path / "model.py", "--name", "code").exit_code == 0
    result = call("compress", "code")
    assert result.exit_code == 1
    assert "Model 'code' version 1 is of the runtime python, and compression works on files of ONNX, OpenVINO" in result.stderr
    assert "hint: publish the network as ONNX" in result.stderr


def test_train_begins_with_the_weights_of_a_version(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    target = f"{tmp_path / 'program.py'}:line"
    losses = []
    for options in ((), ("--from", "line@1"), ("--from", "line")):
        result = call("train", target, "--seed", "3", *options, "--json")
        assert result.exit_code == 0, result.output
        losses.append(json.loads(result.stdout)["measurements"]["validation_loss"])
    assert losses[2] < losses[1] < losses[0]
    store = Store(tmp_path / "home")
    start = store.get_version("line@3").manifest.lineage["training"]["start"]
    assert start == {"version": "line@2", "digest": store.get_version("line@2").digest, "weights": 2}
    refused = call("train", "recipe:digits", "--from", "line@1")
    assert refused.exit_code != 0 and "Training cannot start from version line@1: it has no" in refused.stderr
