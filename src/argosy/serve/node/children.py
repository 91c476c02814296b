"""The processes below the supervisor: what is known of each, how one is started, where it writes. Standard library only."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from argosy.serve.wire.channel import CHANNEL_VARIABLE, Channel

__all__ = ["Child", "open_log", "read_tail", "spawn"]

_LOG_LIMIT_BYTES: Final = 8 << 20
_LOG_TAIL_BYTES: Final = 2000

Message = dict[str, Any]


@dataclasses.dataclass
class Child:
    """A process that should run."""

    name: str
    kind: str
    """control, front, template or worker."""
    spec: Message
    pid: int = 0
    pidfd: int = -1
    channel: Channel | None = None
    started_s: float = 0.0
    num_deaths: int = 0
    restart_s: float | None = None
    """When to start it again."""
    kill_s: float | None = None
    """When to kill it, once it was told to stop."""
    is_stopping: bool = False
    report: Message | None = None
    """What it last said of itself."""


def open_log(path: Path) -> int:
    """Open a log to append to; one that has grown large is put aside first."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.old"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read_tail(path: Path) -> str:
    """The end of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"(no log: {error})"


def spawn(child: Child, theirs: Channel, log: int) -> int:
    """Start the module that a child's spec names; returns its process id. `theirs` and `log` become its own."""
    python = child.spec.get("python", sys.executable)
    fd = theirs.fileno()
    environment = {
        **os.environ,
        **child.spec.get("env", {}),
        CHANNEL_VARIABLE: str(fd),
        "ARGOSY_SUPERVISOR": str(os.getpid()),
    }
    # -P: no module of the folder where the server was started may shadow a library.
    process = subprocess.Popen(
        [python, "-P", "-m", child.spec["module"]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=(fd,),
        start_new_session=True,
    )
    process.returncode = 0  # reaped by its pidfd, not by subprocess
    return process.pid
