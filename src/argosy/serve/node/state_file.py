"""The file that tells commands where a server is. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

__all__ = ["StateFile"]

STATE_S: Final = 10.0
"""The file is written anew within this, if it goes or could not be written."""


class StateFile:
    """`serve.json`, kept as it should be.

    Args:
        run: the folder that it stands in.
        say: told once of each fault that keeps it from being written.

    Attributes:
        due_s: when to look at it again.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self.due_s = 0.0
        self._path = run / "serve.json"
        self._lock_path = run / "serve.lock"
        self._say = say
        self._written = b""
        self._fault = ""

    def keep(self, state: dict[str, Any], lock: TextIO) -> None:
        """Have it say this, also where it has gone or was damaged.

        Args:
            state: what it says.
            lock: the server's.
        """
        self.due_s = time.monotonic() + STATE_S
        data = json.dumps(state).encode()
        try:
            if self._read() != data:
                self._write(data, lock)
            self._fault = ""
        except OSError as error:
            fault = f"{self._path} cannot be written, and commands do not find this server: {error.strerror or error}"
            if fault != self._fault:
                self._fault = fault
                self._say(fault)

    def remove(self) -> None:
        """The server ends."""
        with contextlib.suppress(OSError):
            if self._read() == self._written:
                self._path.unlink()

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _write(self, data: bytes, lock: TextIO) -> None:
        """Only this user may read it. One whose lock has gone from its place says nothing: another server may be there."""
        if not os.path.samestat(os.fstat(lock.fileno()), self._lock_path.stat()):
            raise OSError("serve.lock is another server's")
        temporary = self._path.with_name("serve.json.new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        temporary.replace(self._path)
        self._written = data
