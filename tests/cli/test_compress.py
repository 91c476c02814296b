"""`argosy compress`: what it takes, what it says, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from argosy.frameworks.onnx import OnnxModel
from argosy.store.local import Store
from tests.cli.site import make_affine_model


def test_compress_takes_calibration_rows_of_an_imported_model(call: Callable[..., Result], tmp_path: Path) -> None:
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((64, 2000), np.float32))
    missing = call("compress", "wide", "--method", "int8")
    assert missing.exit_code == 1 and "needs calibration rows of model 'wide'" in missing.stderr
    arguments = ("compress", "wide", "--method", "int8", "--without-gain", "--calibration", tmp_path / "rows.npy", "--max-loss")
    lines = call(*arguments, "0.5").stdout.splitlines()
    assert lines[0].startswith("wide@2  onnx, ")
    assert lines[1] == "made by int8"
    assert lines[2].split() == ["MEASURE", "VERSION", "1", "VERSION", "2"]
    assert lines[3].startswith("fidelity (8 golden rows)  1.0000 ") and lines[4].startswith("files ")
    assert lines[8] == "judged by fidelity: what the outputs are is not known: its lineage names no loss"
    assert lines[9].startswith("lost: 0.") and lines[10].startswith("better: the file is 69.")


@pytest.mark.parametrize(
    ("keys", "basis"),
    [
        pytest.param(("x", "y"), "r2", id="input-and-output"),
        pytest.param(("x", "targets"), "r2", id="input-and-targets"),
        pytest.param(("x",), "fidelity", id="input-alone"),
    ],
)
def test_compress_takes_evaluation_rows_of_any_version(
    call: Callable[..., Result], tmp_path: Path, keys: Any, basis: str
) -> None:
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    rows = np.random.default_rng(0).standard_normal((96, 2000), np.float32)
    answers = OnnxModel(tmp_path / "wide.onnx").run({"x": rows})["y"]
    np.save(tmp_path / "rows.npy", rows[:64])
    save: Any = np.savez  # Its stub takes every array for the option `allow_pickle`.
    save(tmp_path / "test.npz", **dict(zip(keys, (rows[64:], answers[64:]), strict=False)))
    options = (
        "--method",
        "int8",
        "--calibration",
        tmp_path / "rows.npy",
        "--eval",
        tmp_path / "test.npz",
        "--without-gain",
        "--json",
    )
    made = json.loads(call("compress", "wide", *options).stdout)
    assert (made["score"]["metric"], made["score"]["basis"], made["score"]["num_rows"]) == (basis, "evaluation", 32)
    assert made["gains"][0].startswith("the file is 69.")
    unfit = call("compress", "wide@1", *options, "--eval", tmp_path / "rows.npz")
    assert unfit.exit_code == 1 and json.loads(unfit.stdout)["key"] == "missing_file"


def test_failed_guard_publishes_nothing(call: Callable[..., Result], tmp_path: Path) -> None:
    # Rows a thousand times too small give scales that clip every real value.
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(tmp_path / "rows.npy", np.full((64, 2000), 1e-6, np.float32))
    result = call("compress", "wide", "--method", "int8", "--calibration", tmp_path / "rows.npy", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["key"] == "guard_failed"
    assert len(Store(tmp_path / "home").list_versions("wide")) == 1
