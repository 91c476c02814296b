"""What the pages name is there: files and what is in them, commands with their options, functions with their parameters.

The README, ARCHITECTURE.md and the pages in docs/.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from argosy.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONCEPTS = [ROOT / "docs" / name for name in ("concepts.md", "concepts.zh.md")]

# A page says `train/run.py` for what lies in the package, as ARCHITECTURE.md does.
STARTS = (ROOT, ROOT / "src" / "argosy")
FOLDERS = {path.name for start in STARTS for path in start.iterdir() if path.is_dir() and not path.name.startswith(".")}
TOP = {path.name for path in (ROOT / "src" / "argosy").glob("*.py")}
# Where calls of a package go, since the package's own signature takes anything.
CALLS = {"argosy.train": "argosy.train.run.train", "argosy.search": "argosy.search.run.search"}


def list_spans(page: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text())


def list_paths(page: Path) -> list[str]:
    """What stands alone in backquotes and begins with a folder of ours; X in a path stands for any name.

    `file.py:name` is a function or class in it, `file.py::name` a test.
    """
    spans = [span for span in list_spans(page) if re.fullmatch(r"[\w./-]+(::?\w+)?", span)]
    ours = [span for span in spans if span in TOP or ("/" in span and span.split("/")[0] in FOLDERS)]
    return [span for span in ours if not re.search(r"\bX\b|_X\.", span)]


def list_commands(page: Path) -> list[str]:
    lines = re.findall(r"^    (argosy .*?)(?: *#.*| &)?$", page.read_text(), re.MULTILINE)
    spans = [span for span in list_spans(page) if span.startswith("argosy ") and not re.match(r"argosy (\.\.\.|COMMAND)", span)]
    return [*lines, *spans]


def list_links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()) if "://" not in link]


def list_calls(page: Path) -> list[str]:
    return [span for span in list_spans(page) if re.match(r"argosy\.[\w.]+\(.*\)$", span) and "..." not in span]


def list_cases(found: Callable[[Path], list[str]], pages: list[Path] = PAGES) -> list[Any]:
    return [pytest.param(page, text, id=f"{page.stem}-{text}") for page in pages for text in dict.fromkeys(found(page))]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"argosy has no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize(("page", "path"), list_cases(list_paths))
def test_path_of_a_page_exists(page: Path, path: str) -> None:
    name, _, inner = path.replace("::", ":").partition(":")
    found = [start / name for start in STARTS if (start / name).exists()]
    assert found, f"{name} stands in {page.name} only"
    if inner:
        assert re.search(rf"^ *(async )?(def|class) {inner}\b", found[0].read_text(), re.MULTILINE), f"{name} has no {inner}"


@pytest.mark.parametrize(("page", "target"), list_cases(list_links))
def test_link_of_a_page_leads_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


@pytest.mark.parametrize(("page", "line"), list_cases(list_commands))
def test_command_of_a_page_and_its_options_exist(page: Path, line: str) -> None:
    command, words = find_command(shlex.split(line)[1:])
    params = command.get_params(click.Context(command))
    options = {name for option in params for name in (*option.opts, *option.secondary_opts)}
    assert {word.split("=")[0].strip("[]") for word in words if word.lstrip("[").startswith("--")} <= options


@pytest.mark.parametrize(("page", "line"), list_cases(list_commands, CONCEPTS))
def test_command_of_a_concept_is_complete(page: Path, line: str) -> None:
    command, words = find_command(shlex.split(line)[1:])
    command.make_context("argosy", words)  # raises for what is missing, unknown, or of another type


@pytest.mark.parametrize(("page", "call"), list_cases(list_calls))
def test_function_of_a_page_and_its_parameters_exist(page: Path, call: str) -> None:
    calls = [node for node in ast.walk(ast.parse(call, mode="eval")) if isinstance(node, ast.Call)]
    ours = [node for node in calls if ast.unparse(node.func).startswith("argosy.")]
    assert ours
    for node in ours:
        name = ast.unparse(node.func)
        function = pkgutil.resolve_name(CALLS.get(name, name))
        inspect.signature(function).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})


@pytest.mark.parametrize("page", CONCEPTS, ids=["english", "chinese"])
def test_concept_that_is_here_names_a_file_and_a_test(page: Path) -> None:
    paths = list_paths(page)
    rows = [re.findall(r"`([^`]+)`", line) for line in page.read_text().splitlines() if line.startswith("|")]
    named = [row for row in rows if row]
    assert len(named) > 30
    for row in named:
        _, file, test = row
        assert {file, test} <= set(paths), f"{row} names what is not looked for"
        assert "::" in test


def test_concepts_are_the_same_in_both_languages() -> None:
    rows = [[re.findall(r"`[^`]+`", line) for line in page.read_text().splitlines() if line.startswith("|")] for page in CONCEPTS]
    assert rows[0] == rows[1]


def test_tree_of_folders_is_the_real_one() -> None:
    writer = runpy.run_path(str(ROOT / "docs" / "write_tree.py"))
    (tree,) = [found[1] for found in writer["MARKED"].findall(ARCHITECTURE)]
    assert tree == writer["render_tree"](), "make tree"


def test_rooms_stand_on_their_floors() -> None:
    """As `tests/test_house.py` has them, but for those that are not there yet."""
    floors = re.findall(r'^FLOORS = """\n(.*?)"""', (ROOT / "tests" / "test_house.py").read_text(), re.DOTALL | re.MULTILINE)[0]
    (shown,) = re.findall(r"<!-- floors -->\n\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    package = ROOT / "src" / "argosy"
    real = [[room for room in line.split() if find_room(package, room)] for line in floors.splitlines()]
    assert [line.split() for line in shown.splitlines()] == [line for line in real if line]


def find_room(package: Path, room: str) -> bool:
    path = package / room.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


WIDE = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "docs" / "decisions.md"]


@pytest.mark.parametrize("page", WIDE, ids=["readme", "architecture", "decisions"])
def test_page_keeps_to_its_width(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 130] == []


def test_symptom_leads_to_at_most_three_files() -> None:
    rows = re.findall(r"^\| (.*?) \| (`.*?) \|$", ARCHITECTURE.split("## From a symptom to its file")[1], re.MULTILINE)
    assert len(rows) > 30
    for symptom, files in rows:
        assert 1 <= len(re.findall(r"`[a-z0-9_/X]+\.py`", files)) <= 3, symptom
