"""The scripts of `attacks/` that concern the store: everything in them is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT


@pytest.mark.parametrize("script", ["hostile_onnx_files.py", "hostile_store_names.py"])
def test_attacks_are_refused(script: str) -> None:
    source = Path(sys.modules["argosy.store.local"].__file__ or "").parents[2]
    path = ROOT / "attacks" / script
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONIOENCODING": "utf-8:backslashreplace"}
    result = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=60)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(lines) > 20
    assert [line for line in lines if not line.startswith("refused (4")] == []
