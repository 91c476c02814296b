"""What the README promises is executed: its Python runs, its tree is the real one."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_first_model_runs_as_written(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = {"ARGOSY_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=110)
    assert done.returncode == 0, done.stderr
    digit, version = done.stdout.split()
    assert digit in "0123456789"
    assert version == "2"


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
