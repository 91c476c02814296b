"""The folder that holds all state (ARGOSY_HOME), and the server that runs for it. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["find_home", "find_server"]


def find_home(home: Path | str | None = None, environment: Mapping[str, str] | None = None) -> Path:
    """The folder that holds all state: the argument, or ARGOSY_HOME, or ~/.argosy."""
    environment = os.environ if environment is None else environment
    chosen = home or environment.get("ARGOSY_HOME") or Path.home() / ".argosy"
    return Path(chosen).expanduser().absolute()


def find_server(home: Path) -> dict[str, Any] | None:
    """The state of the server that runs for an ARGOSY_HOME: pid, ports, token; None when none does."""
    try:
        state = json.loads((home / "run" / "serve.json").read_text())
        command = Path(f"/proc/{state['pid']}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    # A server that was killed leaves its file, and its number may be another process' by now.
    return state if b"argosy.serve.node.supervisor" in command else None
