"""Measure how much each extra adds to an installation: the table of docs/installing.md.

    python docs/measure_extras.py [EXTRA ...]

Each extra is installed alone into a fresh environment, by uv and at the versions of constraints.txt, modules compiled
as pip does it. Sizes are what the disk holds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
# `dev` and `test` are for those who work on Argosy; MXNet needs an older NumPy than constraints.txt has.
SKIPPED: Final = ("dev", "test", "mxnet")
MIB: Final = 1 << 20


def measure_installation(extra: str) -> int:
    """Bytes of a fresh environment with Argosy and an extra, or with Argosy alone."""
    with tempfile.TemporaryDirectory() as folder:
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        what = f"{ROOT}[{extra}]" if extra else str(ROOT)
        options = ["-q", "--compile-bytecode", "--python", f"{folder}/bin/python", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*uv, "pip", "install", *options, what], check=True)
        files = {info.st_ino: info.st_blocks * 512 for path in Path(folder).rglob("*") for info in [path.lstat()]}
        return sum(files.values())


def main() -> None:
    """Print a line an extra: MiB on top of the base installation."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    base = measure_installation("")
    print(f"base {base / MIB:.0f}")
    for extra in sys.argv[1:] or [name for name in known if name not in SKIPPED]:
        print(f"{extra} {(measure_installation(extra) - base) / MIB:.0f}", flush=True)


if __name__ == "__main__":
    main()
