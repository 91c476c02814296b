"""The processes of a server, and waiting for what they do."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from argosy.server import Server


def read_state(server: Server) -> dict[str, Any]:
    """The server's ports and token."""
    return json.loads((server.home / "run" / "serve.json").read_text())


def find_workers(server: Server, name: str) -> list[int]:
    """Process ids of a deployment's workers that are ready."""
    with server.admin() as admin:
        status = admin.status()
    lanes = [lane for dep in status["deployments"] if dep["spec"]["name"] == name for lane in dep["lanes"]]
    return [worker["pid"] for lane in lanes for worker in lane["workers"] if worker["is_ready"] and worker["pid"]]


def find_child(server: Server, module: str) -> int:
    """Process id of the supervisor's child that runs a module; 0 while there is none."""
    for pid in list_children(server.pid):
        # One that has just ended has no file any more.
        with contextlib.suppress(OSError):
            if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
    return 0


def list_children(pid: int) -> list[int]:
    """Children of a process, whichever of its threads has started them."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            children += map(int, (task / "children").read_text().split())
    return children


def is_alive(pid: int) -> bool:
    """True while a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Wait for a condition; its last value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("the condition did not come true in time")
