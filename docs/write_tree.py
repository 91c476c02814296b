"""Write the tree of folders into ARCHITECTURE.md: each with the first sentence of its package's docstring.

python docs/write_tree.py
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "ARCHITECTURE.md"
MARKED: Final = re.compile(r"(<!-- tree: make tree -->\n\n```\n)(.*?)(```\n)", re.DOTALL)
# Folders that are no packages, and so have no docstring.
PURPOSES: Final = {
    "src/argosy/locks": "Lock files of the environments that Argosy builds, every package pinned by its hash",
    "tests": "Mirror the package; end to end through real servers",
    "benchmarks": "A script for each claim, and the figures that it printed",
    "examples": "Programs to start from",
    "attacks": "Files, bodies and frames that must be refused, as scripts",
    "docs": "Pages for users, the decisions, and what writes this tree",
}


def list_folders(folder: Path) -> Iterator[Path]:
    """Every folder in a folder that holds files of the project, parents first, in the order of the names."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith((".", "__")) and any(file.is_file() for file in path.iterdir()):
            yield path
            yield from list_folders(path)


def find_purpose(folder: Path) -> str:
    """What a folder is for."""
    name = str(folder.relative_to(ROOT))
    if name in PURPOSES:
        return PURPOSES[name]
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    if not text:
        sys.exit(f"{name} does not say what it is for: give its __init__.py a docstring")
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def render_tree() -> str:
    """The tree, a folder a line."""
    package = ROOT / "src" / "argosy"
    lines = [f"{'src/argosy/':22}{find_purpose(package)}"]
    for folder in list_folders(package):
        depth = len(folder.relative_to(package).parts)
        lines.append(f"{'  ' * depth + folder.name + '/':22}{find_purpose(folder)}")
    lines += [f"{name + '/':22}{purpose}" for name, purpose in PURPOSES.items() if "/" not in name]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the tree between its marks."""
    page = PAGE.read_text()
    PAGE.write_text(MARKED.sub(lambda found: found[1] + render_tree() + found[3], page))


if __name__ == "__main__":
    main()
