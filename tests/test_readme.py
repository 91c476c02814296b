"""What the README promises is executed: its Python runs, its figures are those of its picture, its extras are all there."""

from __future__ import annotations

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


@pytest.mark.parametrize("code", PROGRAMS)
def test_program_of_a_page_runs_as_written(code: str, tmp_path: Path) -> None:
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_first_model_answers_and_is_replaced(tmp_path: Path) -> None:
    digit, version = run(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], tmp_path).stdout.split()
    assert digit in "0123456789"
    assert version == "2"


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {"ARGOSY_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=110, cwd=folder)


def test_first_screen_shows_what_it_is_and_when_not_to_use_it() -> None:
    screen = README.splitlines()[:40]
    parts = ("Argosy takes a model", "    make demo", "![", "| act |", "```python", "**When not to use it.**")
    found = [next(number for number, line in enumerate(screen) if line.startswith(part)) for part in parts]
    assert found == sorted(found)
    assert len(README.splitlines()) <= 200


def test_acts_and_picture_are_of_one_run() -> None:
    title, acts = re.findall(r"!\[(.*?)\]\(docs/demo.svg\)\n\n((?:\|.*\n)+)", README)[0]
    picture = (ROOT / "docs" / "demo.svg").read_text()
    assert f"<title>{title}</title>" in picture
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in acts.splitlines()[2:]]
    assert [row[0] for row in rows] == ["train", "compress", "deploy", "update", "roll back"]
    for name, seen, _ in rows[3:]:
        assert f">{name}, {seen.split(' under')[0]}<" in picture  # such as `update, 0.51 s`
    assert re.findall(r"`make picture` on ([\d-]+)", README) == re.findall(r"\d{4}-\d\d-\d\d", picture)


def read_sizes(page: str, head: str, column: int) -> dict[str, str]:
    """Extras and their sizes, of a table whose head is given; a row may have several."""
    rows = re.search(re.escape(head) + r"\n\|[-|]+\|\n((?:\|.*\n)+)", page)
    assert rows is not None
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows[1].splitlines()]
    pairs = [(re.findall(r"`([a-z]+)`", row[0]), re.findall(r"[\d,]*\d", row[column]) or [""]) for row in cells]
    return {name: size for names, sizes in pairs if names for name, size in zip(names, sizes, strict=True)}


def test_every_extra_has_its_size_on_both_pages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sizes = read_sizes(README, "| extra | adds | MiB |", 2)
    assert sizes == read_sizes((ROOT / "docs" / "installing.md").read_text(), "| extra | MiB | what it brings |", 1)
    assert set(sizes) == set(extras) - {"dev", "test"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE))))
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_extra_that_a_hint_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'extra="([a-z]+)"', sources))
    assert named
    assert named <= set(extras)
