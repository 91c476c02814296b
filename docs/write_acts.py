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
DAY: Final = re.compile(r"(?<=`make picture` on )\d{4}-\d\d-\d\d")


def render_acts(acts: list[dict[str, Any]], picture: str) -> str:
    """The picture with its title as what stands for it, and a row an act."""
    title = re.findall(r"<title>(.*?)</title>", picture)[0]
    rows = [f"| {act['act']} | {act['what was seen']} | `{act['command']}` |" for act in acts]
    return "\n".join([f"![{title}](docs/demo.svg)", "", "| act | what was seen | command |", "|---|---|---|", *rows]) + "\n"


def main() -> None:
    """Read the result of the demo from standard input."""
    result = json.load(sys.stdin)
    if not result["is_good"]:
        sys.exit("the demo failed: nothing is written")
    picture = PICTURE.read_text()
    page = MARKED.sub(lambda _: render_acts(result["acts"], picture), PAGE.read_text(), count=1)
    PAGE.write_text(DAY.sub(re.findall(r"\d{4}-\d\d-\d\d", picture)[0], page))


if __name__ == "__main__":
    main()
