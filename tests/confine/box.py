"""A confined process, and the folders around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argosy.confine.confine import Completed, run_confined

TIMEOUT_S = 60.0
CALLS = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
"""


class Box:
    """Folders around a confined process: its own, and a home with a secret that it must not reach."""

    def __init__(self, path: Path) -> None:
        self.code, self.read, self.write, self.home = (path / name for name in ("code", "read", "write", "home"))
        for folder in (self.code, self.read, self.write, self.home):
            folder.mkdir(parents=True)
        self.secret = self.home / "secret"
        self.secret.write_text("swordfish")
        self.secret.chmod(0o640)
        self.given = self.read / "given"
        self.given.write_text("data")

    def run(self, source: str, **options: Any) -> Completed:
        names = {"READ": self.read, "WRITE": self.write, "HOME": self.home, "SECRET": self.secret, "GIVEN": self.given}
        lines = [f"{name} = {str(path)!r}" for name, path in names.items()]
        (self.code / "probe.py").write_text("\n".join([*lines, CALLS, source]))
        settings = {"read": [self.read], "write": [self.write], "module_folders": [self.code], "timeout_s": TIMEOUT_S}
        return run_confined(["probe"], **{**settings, **options})

    def attempt(self, source: str, **options: Any) -> str:
        """What became of an attempt: `denied` by a PermissionError, `done`, or the traceback."""
        indented = source.replace("\n", "\n    ")
        done = self.run(f"try:\n    {indented}\n    print('done')\nexcept PermissionError:\n    print('denied')", **options)
        return done.stdout.decode().strip() or done.stderr
