"""`argosy train FILE.py:FUNCTION`: a user's own program, from the shell to a version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from argosy.store.local import Store

PROGRAM = """
import numpy as np
from helper import NUM_INPUTS  # a module beside the program

def logistic():
    import torch
    random = np.random.default_rng(0)
    x = random.standard_normal((200, NUM_INPUTS)).astype("float32")
    torch.manual_seed(0)
    return {
        "model": torch.nn.Linear(NUM_INPUTS, 1), "data": (x, (x.sum(1) > 0).astype("float32")),
        "loss": "binary_cross_entropy", "optimizer": "momentum", "epochs": 3,
    }

def nothing():
    return 3

def half():
    return {"model": 3}

def needy(rate, units=4):
    return {}

def bare():
    raise ModuleNotFoundError("No module named 'torch'", name="torch")

def ends():
    raise SystemExit(0)

def broken():
    raise RuntimeError("no data today")
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("NUM_INPUTS = 6\n")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "argosy", *arguments]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "ARGOSY_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=100,
        )

    return call


def test_program_is_trained_with_the_shells_options_and_published(run, tmp_path):
    done = run(
        "train",
        "program.py:logistic",
        "--learning-rate",
        "0.5",
        "--form",
        "text",
        "--epochs",
        "2",
        "--report",
        "r.html",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["name"], found["version"], found["runtime"]) == ("logistic", 1, "onnx")
    training = Store(tmp_path / "home").get_version("logistic@1").manifest.lineage["training"]
    assert training["epochs"] == 2
    assert (training["optimizer"]["name"], training["optimizer"]["form"], training["optimizer"]["learning_rate"]) == (
        "momentum",
        "text",
        0.5,
    )
    assert "logistic@1" in Path(tmp_path, "r.html").read_text()
    assert not (tmp_path / "home" / "runs" / "logistic").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param("program.py:nothing", "gives a builtins.int, expected a dict with `model` and `data`", id="no-dict"),
        pytest.param("program.py:half", "gives a dict without `data`, expected a dict with", id="half-a-dict"),
        pytest.param("program.py:needy", "needy(rate, units=4) cannot be called with no parameters", id="parameters"),
        pytest.param("program.py:bare", "pip install 'argosy[torch]'", id="no-framework"),
        pytest.param(
            "program.py", "Unknown recipe 'program.py'; known: digits, mnist\nhint: a program of yours is", id="no-name"
        ),
        pytest.param("program.py:missing", "defines no function missing", id="no-function"),
        pytest.param("program.py:ends", "it ends the process, by sys.exit(0), and gives nothing", id="exit"),
        pytest.param("absent.py:main", "there is no such file", id="no-file"),
    ],
)
def test_program_that_cannot_be_used_is_refused(target, words, run):
    done = run("train", target)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_error_of_the_program_itself_shows_where_it_was_raised(run):
    done = run("train", "program.py:broken")
    assert done.returncode == 1
    assert "no data today" in done.stderr and "program.py" in done.stderr


def test_interrupted_run_is_not_begun_anew_unasked(run, tmp_path):
    folder = tmp_path / "kept"
    first = run("train", "program.py:logistic", "--checkpoints", str(folder), "--epochs", "1")
    assert first.returncode == 0, first.stderr
    again = run("train", "program.py:logistic", "--checkpoints", str(folder))
    assert again.returncode == 1 and "holds checkpoints of a run" in again.stderr
    resumed = run("train", "program.py:logistic", "--checkpoints", str(folder), "--resume")
    assert resumed.returncode == 0 and "epoch 2/3" in resumed.stderr and "epoch 1/3" not in resumed.stderr
