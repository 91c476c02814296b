"""Students and teachers of every framework."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from argosy.bench.artifact import open_version
from argosy.cli.main import main
from argosy.compress import Guard, compress
from argosy.compress.steps.distill import Distill
from argosy.environment import find_interpreter
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store
from tests.compress.artifacts import make_perceptron
from tests.scripts import ROOT

PROGRAM = Path(__file__).with_name("students.py")
ROWS = np.random.default_rng(4).normal(size=(2000, 16)).astype(np.float32)
FRAMEWORKS = ["jax", "keras", "mxnet", "tensorflow", "torch"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_student_of_any_framework_learns_from_a_graph(name: str, store: Store, tmp_path: Path) -> None:
    if name != "mxnet":
        pytest.importorskip({"jax": "flax"}.get(name, name))
    import_onnx(store, make_perceptron(tmp_path / "teacher", 512).path, "teacher")
    np.savez(tmp_path / "rows.npz", x=ROWS)
    command = [sys.executable, "-m", "argosy", "compress", "teacher@1", "--method", "distill", "--metric", "fidelity"]
    given = ["--max-loss", "0.95", "--data", str(tmp_path / "rows.npz"), "--student", f"{PROGRAM}:make_{name}"]
    environment = os.environ | {"ARGOSY_HOME": str(store.home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([*command, *given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    made = store.get_version("teacher@2")
    assert made.manifest.signature == store.get_version("teacher@1").manifest.signature
    assert made.manifest.lineage["compression"]["recipe"][0]["student"] == f"students.py:make_{name}"
    assert open_version(store, made).size_bytes < 0.5 * open_version(store, store.get_version("teacher@1")).size_bytes


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_version_that_its_framework_serves_teaches_a_student(name: str, store: Store) -> None:
    pytest.importorskip("torch")
    if name != "mxnet":
        pytest.importorskip({"jax": "flax"}.get(name, name))
    python = str(find_interpreter("mxnet")) if name == "mxnet" else sys.executable
    command = [python, "-m", "tests.compress.students", name, str(store.home)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=240)
    assert store.get_version("teacher").manifest.runtime == name
    options: dict[str, Any] = {"student": f"{PROGRAM}:make_torch", "data": ROWS, "store": store, "allow_code": True}
    result = compress("teacher@1", method=(Distill(epochs=20, learning_rate=0.01),), guard=Guard("fidelity", 0.95), **options)
    assert result.version is not None and result.version.manifest.runtime == "onnx"
    assert result.score.after > 0.1 and result.after.size_bytes < result.before.size_bytes


def test_student_of_a_framework_that_lives_apart_is_taught_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "home")
    import_onnx(store, make_perceptron(tmp_path / "teacher").path, "teacher")
    program = tmp_path / "net.py"
    program.write_text("def make():\n    raise ModuleNotFoundError('no mxnet', name='mxnet')\n")
    np.save(tmp_path / "rows.npy", ROWS)
    called: list[tuple[str, list[str]]] = []

    class Become(BaseException):
        """The process is another one."""

    def become(name: str, arguments: list[str]) -> None:
        called.append((name, arguments))
        raise Become

    monkeypatch.setattr("argosy.environment.lives_apart", lambda name: name == "mxnet")
    monkeypatch.setattr("argosy.environment.run_in", become)
    arguments = ["compress", "teacher", "--method", "distill", "--data", str(tmp_path / "rows.npy"), "--student"]
    monkeypatch.setattr(sys, "argv", ["argosy", *arguments, f"{program}:make"])
    with pytest.raises(Become):
        CliRunner().invoke(main, sys.argv[1:], env={"ARGOSY_HOME": str(store.home)}, catch_exceptions=False)
    assert called == [("mxnet", ["-m", "argosy", *sys.argv[1:]])]
