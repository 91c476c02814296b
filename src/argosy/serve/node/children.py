"""The processes below the supervisor: what is known of each, how one is started, where it writes. Standard library only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from argosy.serve.node.pulse import Pulse
from argosy.serve.wire.channel import CHANNEL_VARIABLE, RUNTIME_VARIABLE, SUPERVISOR_VARIABLE, Channel
from argosy.serve.wire.control_messages import Message, Process, Report, encode

__all__ = ["CONTROL", "FRONT", "MODULES", "Child", "ChildChannel", "describe_template", "open_log", "read_tail", "spawn"]

CONTROL: Final = "argosy.deploy.control"
FRONT: Final = "argosy.serve.front.front"
_TEMPLATE: Final = "argosy.serve.worker.template"
MODULES: Final = (CONTROL, FRONT, _TEMPLATE)
"""In which children begin."""

STUCK_S: Final = 60.0
"""A child that takes nothing of what waits for it for so long is of no use any more."""
MAX_WAITING_BYTES: Final = 64 << 20
_WAITING_BYTES: Final = 4096
"""Of a message that waits, beside its own: descriptors are held for it."""
_LOG_LIMIT_BYTES: Final = 8 << 20
_LOG_TAIL_BYTES: Final = 2000


class ChildChannel(Channel):
    """The supervisor's end of a channel. It waits for no child: what one does not take now is kept for it.

    Args:
        kind: of the child.

    Attributes:
        theirs: the child's end, to be closed once the child has it.
    """

    def __init__(self, kind: Process) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Who says something is asked of the kernel, not of who says it.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        super().__init__(ours, "supervisor", kind)
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._waiting_bytes = 0
        self._since_s = 0.0

    @property
    def stuck_s(self) -> float | None:
        """When the child is to be given up if it has taken nothing by then; None where nothing waits for it."""
        return self._since_s + STUCK_S if self._waiting else None

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message now or later.

        Raises:
            OSError: the child is gone, or takes nothing and too much waits for it.
            MessageError: the message is too large.
        """
        data = encode(message)
        if not self._waiting:
            try:
                self.send_bytes(data, fds)
                return
            except BlockingIOError:
                self._since_s = time.monotonic()
        if self._waiting_bytes + len(data) + _WAITING_BYTES > MAX_WAITING_BYTES:
            raise OSError("it does not read its channel")
        self._waiting.append((data, _copy(fds)))
        self._waiting_bytes += len(data) + _WAITING_BYTES

    def flush(self) -> None:
        """Send what waits, as far as the child takes it.

        Raises:
            OSError: the kernel refuses to.
        """
        while self._waiting:
            try:
                self.send_bytes(*self._waiting[0])
            except BlockingIOError:
                return
            except ConnectionError:
                pass  # it is gone, as reading tells
            self._since_s = time.monotonic()
            self._forget_first()

    def _forget_first(self) -> None:
        data, fds = self._waiting.popleft()
        self._waiting_bytes -= len(data) + _WAITING_BYTES
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """Close this end, and what waits."""
        super().close()
        while self._waiting:
            self._forget_first()


def _copy(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return copies


class Child:
    """A process that should run.

    Args:
        name: of the process; its log's, too.
        kind: of process.
        spec: what to start, and what it is told.

    Attributes:
        restart_s: when to start it again.
        kill_s: when to kill it, if it has not ended by then as it should; `suspicion` says why, then.
        fault: why it was killed.
        report: what a worker said of its model.
        pulse: whether it is there.
        awaited_s: when a front last said that it holds a batch of this worker which is not given up.
        doubted_s: when a front last said that it has given this worker up, and `doubted_since_s`: since when it says so.
    """

    def __init__(self, name: str, kind: Process, spec: dict[str, Any]) -> None:
        self.name = name
        self.kind: Process = kind
        self.spec = spec
        self.pid = 0
        self.pidfd = -1
        self.channel: ChildChannel | None = None
        self.started_s = 0.0
        self.num_deaths = 0
        self.restart_s: float | None = None
        self.kill_s: float | None = None
        self.suspicion = ""
        self.fault = ""
        self.is_stopping = False
        self.report: Report | None = None
        self.pulse = Pulse()
        self.awaited_s = self.doubted_s = self.doubted_since_s = 0.0

    @property
    def stuck_s(self) -> float | None:
        """As that of its channel."""
        return None if self.channel is None else self.channel.stuck_s


def open_log(path: Path) -> tuple[BinaryIO, str]:
    """Open a log to append to, or nothing where it cannot be opened: a process is worth more than its log.

    One that has grown large is put aside first.

    Returns:
        The log, and why it is none; "" where it is one.

    Raises:
        OSError: no descriptor is left.
    """
    try:
        # Whoever cleans up may take the folder, too.
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.old"))
        return _open_to_append(path), ""
    except OSError as error:
        return _open_to_append(Path(os.devnull)), str(error)


def _open_to_append(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", buffering=0)  # noqa: PTH123


def read_tail(path: Path) -> str:
    """The end of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"(no log: {error})"


def describe_template(spec: dict[str, Any]) -> Child:
    """The process that imports what a worker's spec names, in the interpreter that it names, and forks such workers."""
    runtime, python = spec["runtime"], spec.get("python", sys.executable)
    # One thread for BLAS: its pool would not survive the fork, and the runtime has its own.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # Packages of this interpreter are not for another one.
    path = {"PYTHONPATH": ""} if "python" in spec else {}
    environment = {RUNTIME_VARIABLE: runtime, **threads, **path}
    name = f"template-{runtime}-{abs(hash(python)) % 10**6}"
    return Child(name, "template", {"module": _TEMPLATE, "python": python, "env": environment})


def spawn(child: Child, theirs: int, log: int) -> int:
    """Start the module that a child's spec names; returns its process id. `theirs` and `log` become its own."""
    python = child.spec.get("python", sys.executable)
    environment = {
        **os.environ,
        **child.spec.get("env", {}),
        CHANNEL_VARIABLE: str(theirs),
        SUPERVISOR_VARIABLE: str(os.getpid()),
    }
    # -P: no module of the folder where the server was started may shadow a library.
    process = subprocess.Popen(
        [python, "-P", "-m", child.spec["module"]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=(theirs,),
        start_new_session=True,
    )
    process.returncode = 0  # reaped by its pidfd, not by subprocess
    return process.pid
