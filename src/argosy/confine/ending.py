"""What a confined process says until it ends, within bounds, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Final

from argosy.errors import ModelError

__all__ = ["Completed", "finish", "kill_group"]

_MAX_STDOUT_BYTES: Final = 16 << 20
_STDERR_TAIL_BYTES: Final = 8000
_READ_BYTES: Final = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Completed:
    """A confined process that ended by itself."""

    stdout: bytes
    """All of its standard output, as hostile as the file that it read."""
    stderr: str
    """The end of its standard error, without characters that move a terminal's cursor."""
    returncode: int
    """0, its exit code, or minus the signal that killed it."""


def finish(process: subprocess.Popen[bytes], plan: Mapping[str, object], title: str, timeout_s: float) -> Completed:
    """Tell a process what to do, and read what it says until it ends; whatever happens, it is gone afterwards.

    Args:
        process: whose input, output and errors are pipes.
        plan: what it may do, as `child.py` reads it.
        title: what messages call it.
        timeout_s: after that many seconds it is killed.

    Raises:
        ModelError: `confined_timeout`, `confined_output`.
    """
    assert process.stdin is not None
    with process:
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died, and says why
                process.stdin.write(json.dumps(plan).encode() + b"\n")
                process.stdin.close()
            stdout, stderr = _read_output(process, title, timeout_s)
        finally:
            kill_group(process)
    text = stderr.decode(errors="replace")
    clean = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return Completed(stdout, clean, process.returncode)


def _read_output(process: subprocess.Popen[bytes], title: str, timeout_s: float) -> tuple[bytes, bytes]:
    assert process.stdout is not None and process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    deadline_s = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(process.pid)
        stack.callback(os.close, pidfd)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        selector.register(pidfd, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ModelError("confined_timeout", what=title, timeout_s=timeout_s)
            for key, _ in selector.select(left_s):
                if key.fd == pidfd:
                    # Where processes cannot be confined, one that it left behind would hold the pipes open.
                    kill_group(process)
                    selector.unregister(pidfd)
                elif chunk := os.read(key.fd, _READ_BYTES):
                    key.data.extend(chunk)
                else:
                    selector.unregister(key.fileobj)
            if len(stdout) > _MAX_STDOUT_BYTES:
                raise ModelError("confined_output", what=title, limit=_MAX_STDOUT_BYTES)
            del stderr[:-_STDERR_TAIL_BYTES]
    return bytes(stdout), bytes(stderr)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever it started. It has not been waited for, so its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
