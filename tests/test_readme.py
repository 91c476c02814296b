"""What the README promises is executed: its Python runs, its tree is the real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), start=1)
]


@pytest.mark.slow
@pytest.mark.parametrize("code", PROGRAMS)
def test_program_of_a_page_runs_as_written(code: str, tmp_path: Path) -> None:
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_first_model_answers_and_is_replaced(tmp_path: Path) -> None:
    digit, version = run(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], tmp_path).stdout.split()
    assert digit in "0123456789"
    assert version == "2"


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "keras", "tensorflow", "mxnet"])
def test_classic_program_learns_what_can_be_learnt_and_is_served(framework: str, tmp_path: Path) -> None:
    program = str(ROOT / "examples" / f"classic_{framework}.py")
    words = ["-m", "argosy", "environment", "run", "mxnet", program] if framework == "mxnet" else [program]
    variables = os.environ | {"ARGOSY_HOME": str(tmp_path / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=variables, timeout=110)
    assert done.returncode == 0, done.stderr
    chance, learnt = (float(found) for found in re.findall(r"accuracy ([\d.]+) on rows", done.stdout))
    assert chance < 0.65 and learnt > 0.9
    served = re.findall(r"served \[(.*?)\], in \w+ \[(.*?)\]", done.stdout)
    assert len(served) == 2
    for ours, theirs in served:
        numbers = [[float(number) for number in part.split()] for part in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1.1e-3)  # printed to three digits


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {"ARGOSY_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=110, cwd=folder)


def test_file_tree_is_the_real_one() -> None:
    (tree,) = re.findall(r"## The files\n\n```\n(.*?)```", README, re.DOTALL)
    listed: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        path = "".join(folders)
        assert (ROOT / path).exists(), f"{path} stands in the README only"
        assert len(line.split(None, 1)) == 2, f"{path} has no purpose"
        if not name.endswith("/"):
            listed.add(path)
    real = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"}
    assert {
        path for path in listed if path.startswith("src/") and path.endswith(".py") and not path.endswith("__init__.py")
    } == real


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE))))
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_extra_that_a_hint_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'extra="([a-z]+)"', sources))
    assert named
    assert named <= set(extras)
