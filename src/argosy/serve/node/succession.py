"""How a supervisor becomes its successor: the same process, another program, with listeners and lock. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from argosy.home import SUCCESSOR_FILE

__all__ = ["TOLD", "become", "end_children", "read_job"]

TOLD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Signals that tell the server something."""
_END_S: Final = 5.0
"""For killed processes to end."""
_POLL_S: Final = 0.01
_TRIAL_S: Final = 30.0
"""For the program to be found to run."""
_MAX_DETAIL: Final = 1000


def read_job(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Take what a successor is to go on with, as `argosy restart` left it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is nothing that this server can become.
    """
    path = run / SUCCESSOR_FILE
    job: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    kept = {name: config[name] for name in ("home", "num_fronts")}
    try:
        fits = {name: job["config"][name] for name in kept} == kept
    except (KeyError, TypeError) as error:
        raise ValueError(repr(error)) from None
    if not fits:
        raise ValueError("it is for another server")
    return job


def become(job: dict[str, Any], lock: int, listeners: dict[str, list[socket.socket]]) -> NoReturn:
    """Run the program anew in this process, as it is on disk by now, with the ports and the lock of this server.

    A program that has taken this one's place and fails cannot be taken back, so it is tried first: in a process of its own, with
    all that it is to go on with, as far as it gets without harm. The other processes of the server live until the program runs,
    and are ended by it (`end_children`): if it does not, they go on, and so does this process.

    Raises:
        OSError: the kernel does not run it, or the trial has failed.
    """
    numbers = {name: [sock.fileno() for sock in sockets] for name, sockets in listeners.items()}
    job["inherited"] |= {"lock": lock, "listeners": numbers}
    fds = [lock, *(fd for fds in numbers.values() for fd in fds)]
    _set_inheritable(fds, True)
    # Kept by the kernel until the successor is ready to hear of them.
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    try:
        _try_program({**job, "is_trial": True}, fds)
        os.execv(sys.executable, _build_command(job))  # noqa: S606
    finally:
        _set_inheritable(fds, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)


def _build_command(job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-P", "-m", "argosy.serve.node.supervisor", json.dumps(job)]


def _try_program(job: dict[str, Any], fds: list[int]) -> None:
    """Have the program begin beside this one.

    Raises:
        OSError: it cannot.
    """
    try:
        done = subprocess.run(_build_command(job), pass_fds=fds, capture_output=True, timeout=_TRIAL_S)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"it did not begin within {error.timeout:g} s") from error
    if done.returncode:
        detail = done.stderr.decode(errors="replace").strip()[-_MAX_DETAIL:]
        raise ChildProcessError(detail or f"it ended with code {done.returncode}")


def _set_inheritable(fds: list[int], is_inheritable: bool) -> None:
    for fd in fds:
        os.set_inheritable(fd, is_inheritable)


def end_children(pids: list[int]) -> None:
    """Kill the processes that a predecessor has left: children of this one, which alone it may wait for."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + _END_S
    while (pids := [pid for pid in pids if not _has_ended(pid)]) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
