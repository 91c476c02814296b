"""Talk to a process in lines of JSON, and believe nothing that it says: of what it loads, any of it may be a stranger's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import selectors
import signal
import site
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from argosy.errors import FaultError

__all__ = ["Dialogue", "list_module_folders", "list_settings"]

_SETTINGS: Final = (
    "OMP_",
    "MKL_",
    "KMP_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "KERAS_",
    "TF_",
    "XLA_",
    "JAX_",
    "MXNET_",
    "LD_LIBRARY_",
)
"""Variables that libraries are set by, as names begin; a graph has no use for the others."""
_MAX_LINE_BYTES: Final = 16 << 20
"""Of all that is said to one question."""
_TAIL_BYTES: Final = 400
_LOG_TAIL_BYTES: Final = 4096
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_END_S: Final = 10.0


class Dialogue:
    """What is asked of a process, and what it answers.

    Args:
        process: reads its standard input and writes to its standard output, a line for each question.
        log: its standard error.
        title: what it is called in messages.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, title: object) -> None:
        self._process, self._log, self._title = process, log, title
        self._rest = b""

    def ask(self, question: dict[str, object], timeout_s: float, say: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Give the answer.

        Args:
            question: JSON data of less than 64 kB, as a process that does not read takes no more.
            timeout_s: for all of it.
            say: is told each `say` that comes before the answer.

        Raises:
            FaultError: `engine_failed`: it has ended, takes too long, says that it failed, or nonsense.
        """
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.fail(self._describe_end()) from None
        left = _MAX_LINE_BYTES
        while True:
            line = self._read_line(deadline, timeout_s, left)
            left -= len(line)
            try:
                found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                raise self.fail(f"it said {line[:_TAIL_BYTES].decode(errors='replace')!r}") from None
            if say is None or "say" not in found:
                break
            say(_clean(str(found["say"])))
        if "error" in found:
            raise self.fail(_clean(str(found["error"])))
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def fail(self, detail: str) -> FaultError:
        """Give the error that says what is wrong with the process."""
        return FaultError("engine_failed", engine=self._title, detail=detail)

    def _read_line(self, deadline: float, timeout_s: float, max_bytes: int) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.fail(f"it took more than {timeout_s:.0f} s")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self.fail(self._describe_end())
                if len(self._rest) > max_bytes:
                    raise self.fail(f"it said more than {_MAX_LINE_BYTES} bytes")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            return "its process has closed its output"
        if code == -signal.SIGKILL:
            return f"its process ended with code {code}: it was killed, as is done where memory runs out"
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        return _clean(last[0] if last else f"its process ended with code {code}")


def _clean(text: str) -> str:
    """Give a hostile text in one line, and without what moves a terminal's cursor."""
    plain = " ".join(_COLOURS.sub("", text)[:_TAIL_BYTES].split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in plain)


def list_settings() -> dict[str, str]:
    """Give the variables of this process that libraries are set by."""
    return {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}


def list_module_folders(*libraries: str) -> list[Path]:
    """Give the folders that PYTHONPATH, which a confined process does not get, leads to for what it imports."""
    own = {os.path.realpath(folder) for folder in site.getsitepackages()}
    specs = [importlib.util.find_spec(package) for package in ("numpy", "ml_dtypes", *libraries)]
    places = [place for spec in specs if spec is not None for place in spec.submodule_search_locations or ()]
    return [Path(folder) for folder in sorted({os.path.realpath(Path(place).parent) for place in places} - own)]
