"""The folder that holds all state (ARGOSY_HOME), and the server that runs for it. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["SUCCESSOR_FILE", "find_holder", "find_home", "find_server"]

SUCCESSOR_FILE: Final = "restart.json"
"""In `run`: the job of a server's successor, which `argosy restart` writes."""

_SUPERVISOR: Final = b"argosy.serve.node.supervisor"
_PORTS: Final = ("http_port", "grpc_port", "metrics_port", "admin_port")
_STATE: Final = {"pid", "host", "token", "started_s", "num_restarts", "num_fronts", "given", "stop_with_stdin", *_PORTS}
"""What the file of a server says at least."""


def find_home(home: Path | str | None = None, environment: Mapping[str, str] | None = None) -> Path:
    """The folder that holds all state: the argument, or ARGOSY_HOME, or ~/.argosy."""
    environment = os.environ if environment is None else environment
    chosen = home or environment.get("ARGOSY_HOME") or Path.home() / ".argosy"
    return Path(chosen).expanduser().absolute()


def find_server(home: Path) -> dict[str, Any] | None:
    """The state of the server that runs for an ARGOSY_HOME: pid, ports, token; None when none does, or its file is damaged."""
    try:
        state = json.loads((home / "run" / "serve.json").read_text())
        # A server that was killed leaves its file, and its number may be another process' by now.
        return state if state.keys() >= _STATE and _is_supervisor(state["pid"]) else None
    except (OSError, ValueError, AttributeError):
        return None


def find_holder(home: Path) -> int | None:
    """The process of the server that holds an ARGOSY_HOME, by its lock, whatever its file says; None where none does."""
    try:
        inode = (home / "run" / "serve.lock").stat().st_ino
        # Asked of the kernel: whoever took the lock to see whether it is free would keep a server from starting.
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    holders = [int(words[4]) for words in locks if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)]
    return next((pid for pid in holders if _is_supervisor(pid)), None)


def _is_supervisor(pid: int) -> bool:
    try:
        return _SUPERVISOR in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
