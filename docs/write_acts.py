"""Write the acts of a demo into the README, below the picture that the same run drew.

argosy demo --json --picture docs/demo.svg | python docs/write_acts.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "README.md"
PICTURE: Final = ROOT / "docs" / "demo.svg"
MARKED: Final = re.compile(r"!\[[^\]]*\]\(docs/demo\.svg\)\n\n(\|.*\n)+")


def render_acts(acts: list[dict[str, Any]], picture: str) -> str:
    """The picture with its title as what stands for it, and a row an act."""
    found = re.search(r"<title>(.*?)</title>", picture), re.search(r"\d{4}-\d\d-\d\d", picture)
    title, day = found[0][1] if found[0] else "", found[1][0] if found[1] else ""
    rows = [f"| {act['act']} | {act['what was seen']} | `{act['command']}` |" for act in acts]
    head = ["| act | what was seen (`make picture`, " + day + ", 2 cores for all) | command |", "|---|---|---|"]
    return "\n".join([f"![{title}](docs/demo.svg)", "", *head, *rows]) + "\n"


def main() -> None:
    """Read the result of the demo from standard input."""
    result = json.load(sys.stdin)
    if not result["is_good"]:
        sys.exit("the demo failed: nothing is written")
    PAGE.write_text(MARKED.sub(lambda _: render_acts(result["acts"], PICTURE.read_text()), PAGE.read_text(), count=1))


if __name__ == "__main__":
    main()
