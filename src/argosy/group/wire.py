"""Messages between the workers of one group: Python objects, pickled. Both ends are processes of our own that we started."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

__all__ = ["Process", "Wire", "open_wire"]

_VARIABLE: Final = "ARGOSY_WORKER_WIRE"
"""Environment variable that holds the number of a process' end of its wire."""
_TAIL_CHARS: Final = 300
_END_TIMEOUT_S: Final = 10.0


class Wire:
    """One end."""

    def __init__(self, handle: int) -> None:
        self._connection = Connection(handle)

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other end is closed.
        """
        self._connection.send_bytes(pickle.dumps(message, 5))

    def recv(self) -> Any:
        """Wait for a message.

        Raises:
            EOFError, OSError: the other end is closed.
        """
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - see above

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message, or until the other end is closed; False if neither comes in time."""
        return self._connection.poll(timeout_s)

    def close(self) -> None:
        """Close it."""
        self._connection.close()


class Process:
    """Another process with a wire to it: `python -m MODULE ARGUMENT...`; ends with this one, as its wire then is closed.

    Args:
        module: that it runs, which calls `open_wire`.
        arguments: of its command line.
        log: file for what it prints.
        num_threads: that its libraries may use.
    """

    def __init__(self, module: str, arguments: list[str], log: Path, num_threads: int | None) -> None:
        own, other = socket.socketpair()
        with other, log.open("ab") as file:
            limits = {} if num_threads is None else dict.fromkeys(_THREADS, str(num_threads))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **limits, _VARIABLE: str(other.fileno())},
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C is for the process that started it.
            )
        self.wire = Wire(own.detach())
        self._log = log

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def describe_end(self) -> str:
        """Say how it ended."""
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it says nothing any more"
        last = self._log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()[-1:]
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"it was {how}" if code < 0 or not last else f"it {how}: {last[0][:_TAIL_CHARS]}"

    def end(self) -> None:
        """End it, and whatever it started."""
        self.wire.close()
        try:
            os.killpg(self._process.pid, 9)
        except ProcessLookupError:
            pass
        self._process.wait()


_THREADS: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PJRT_NPROC",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
"""By which libraries learn it before they start, JAX and TensorFlow among them."""


def open_wire() -> Wire:
    """Give the wire of a process that `Process` started."""
    return Wire(int(os.environ.pop(_VARIABLE)))
