"""An environment of its own for every rival, made when it is first asked for.

They lie in `~/.cache/argosy-bench/venvs`. The folder's name holds a digest of what was asked for, so that another pin is
another folder; `installed.txt` in it, written last, holds what was resolved.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rivals.catalogue import Rival

VENVS = Path.home() / ".cache" / "argosy-bench" / "venvs"
INSTALL_TIMEOUT_S = 900


class EntrantError(Exception):
    """One that cannot take part: it does not install, start, answer rightly or stand the load; the text is the reason."""


def make_environment(rival: Rival) -> Path:
    """The rival's Python, with its pinned packages installed.

    Raises:
        EntrantError: the packages do not install here; the end of pip's words.
    """
    return install(f"serve-{rival.environment}", rival.packages)


def install(name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment that has packages.

    Raises:
        EntrantError: the packages do not install here; the end of pip's words.
    """
    digest = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:8]
    folder = VENVS / f"{name}-{digest}"
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    if mark.exists():
        return python
    # A folder without the mark is one whose making was cut short.
    shutil.rmtree(folder, ignore_errors=True)
    for command in ([sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *packages]):
        try:
            done = subprocess.run(["nice", *command], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EntrantError(f"not installed within {INSTALL_TIMEOUT_S} s") from error
        if done.returncode:
            raise EntrantError(f"does not install: {done.stderr.strip()[-400:]}")
    mark.write_text(subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout)
    return python
