from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from argosy.store.local import Store


@pytest.mark.slow
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

    # After one epoch accuracy says little; the guard is wide open.
    shown = call("compress", "digits@1", "--max-loss", "0.9")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("digits@2  ") and "accuracy" in shown.stdout
    versions = Store(tmp_path / "home").list_versions("digits")
    assert versions[1].size_bytes < versions[0].size_bytes
