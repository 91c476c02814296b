"""Run a script of MXNet's own environment, and read what it printed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from argosy.environment import find_interpreter
from tests.scripts import ROOT


def run(module: str, *arguments: object, **variables: str) -> Any:
    """Run a module of this folder with the interpreter of MXNet's environment, which is built if need be."""
    command = [str(find_interpreter("mxnet")), "-m", f"tests.frameworks.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_cases(module: str, folder: Path, **variables: str) -> Callable[[str], Any]:
    """Run the cases of a module; what one of them found is given by its name."""
    found = run(module, folder, **variables)

    def get(name: str) -> Any:
        assert not (isinstance(found[name], dict) and "failed" in found[name]), found[name]["failed"]
        return found[name]

    return get
