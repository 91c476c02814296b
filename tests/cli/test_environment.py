from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from argosy.environment import find_interpreter, get_environment
from tests.cli.site import ARGOSY

Call = Callable[..., Result]

PROGRAM = """
import os, sys
import numpy
print(sys.argv[1:], os.environ["ARGOSY_HOME"], numpy.__version__, os.environ.get("PYTHONPATH"))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def mxnet_python() -> Path:
    return find_interpreter("mxnet")


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(ARGOSY), "environment", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, timeout=100)


def test_list_shows_what_is_built(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path))
    (found,) = json.loads(call("environment", "list", "--json").stdout)
    folder = str(get_environment("mxnet").folder)
    assert found == {"name": "mxnet", "python_version": "3.11", "folder": folder, "is_built": False, "is_importable": False}
    head, row = call("environment", "list").stdout.splitlines()
    assert head.split() == ["NAME", "PYTHON", "STATE", "FOLDER"]
    assert row.split() == ["mxnet", "3.11", "built", "when", "needed", folder]
    assert not list(tmp_path.glob("environments/*"))


@pytest.mark.timeout(400)
def test_build_shows_the_interpreter(call: Call, mxnet_python: Path) -> None:
    assert call("environment", "build", "mxnet").stdout == f"{mxnet_python}\n"
    assert json.loads(call("environment", "build", "mxnet", "--json").stdout) == {"name": "mxnet", "python": str(mxnet_python)}
    assert "  built  " in call("environment", "list").stdout


@pytest.mark.timeout(400)
def test_run_runs_a_program_with_its_arguments(mxnet_python: Path, tmp_path: Path) -> None:
    program = tmp_path / "-program.py"
    program.write_text(PROGRAM)
    home = tmp_path / "home"
    done = run("run", "--home", home, "mxnet", program, "--json", "-h", "x", PYTHONPATH="/nowhere")
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"['--json', '-h', 'x'] {home} 1.23.5 None\n"


@pytest.mark.timeout(400)
def test_run_in_the_environment_itself_does_not_go_round(mxnet_python: Path, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PROGRAM)
    command = [mxnet_python, "-m", "argosy", "environment", "run", "mxnet", tmp_path / "p.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("error: This process runs in the environment of mxnet already\nhint: ")


@pytest.mark.timeout(400)
def test_module_is_the_command(mxnet_python: Path) -> None:
    done = subprocess.run([mxnet_python, "-m", "argosy", "--help"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.startswith("Usage: argosy [OPTIONS]")


@pytest.mark.parametrize("arguments", [("build", "nothing"), ("run", "nothing", __file__)], ids=lambda value: value[0])
def test_unknown_environment_is_refused(arguments: tuple[str, ...], call: Call) -> None:
    result = call("environment", *arguments)
    assert result.exit_code == 1
    assert result.stderr == "error: Unknown environment 'nothing'; known: mxnet\n"


def test_run_without_its_file_is_wrong_usage(call: Call, tmp_path: Path) -> None:
    result = call("environment", "run", "mxnet", tmp_path / "nothing.py")
    assert result.exit_code == 2 and "does not exist" in result.stderr
