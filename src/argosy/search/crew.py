"""Trials in processes of their own, seen from outside: begin, hear what each says, end."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

__all__ = ["Crew", "Worker"]

_MAX_LINE_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 200
_KILLED: Final = "it was killed, as by the system when memory runs out"


class Worker:
    """The process of one trial.

    Args:
        target: the program, `FILE.py:FUNCTION`.
        names: of its parameters.
        log: file for what it prints.
        threads: that its libraries may use.
    """

    def __init__(self, target: str, names: list[str], log: Path, threads: int | None) -> None:
        limits = (
            {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        )
        self.log, self.number = log, -1
        self.started_s = time.monotonic()
        self._rest = b""
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "argosy.search.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **limits},
                start_new_session=True,  # It ends with all that it has started; and not by Ctrl-C before its trial is kept.
            )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        self.say(target=target, names=names)

    def say(self, **values: object) -> None:
        """Tell it something; if it is gone, that is heard."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def hear(self) -> Iterator[dict[str, Any]]:
        """Give what it says now; the last thing of one that has ended is an event that says so."""
        data = os.read(self.output, 1 << 16)
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                yield {"event": "failed", "reason": f"it says what cannot be understood: {line[:60]!r}"}
        if not data or len(self._rest) > _MAX_LINE_BYTES:
            yield {"event": "failed", "reason": self._describe_end()}

    def end(self) -> None:
        """End it, and all that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.communicate()

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            return "it says what cannot be understood"
        if code == -signal.SIGKILL:
            return _KILLED
        last = self.log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with code {code}" + (f": {last[0]}"[:_TAIL_BYTES] if last else "")


class Crew:
    """A context: the workers that run now; all of them end with it."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in list(self.workers):
            self.remove(worker)
        self._selector.close()

    def add(self, worker: Worker) -> None:
        """Listen to a worker, too."""
        self.workers.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def release(self, worker: Worker) -> Worker:
        """Give a worker away: it does not end with this crew."""
        self._selector.unregister(worker.output)
        self.workers.remove(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        """End a worker, and listen to it no longer."""
        self.release(worker).end()

    def wait(self, timeout_s: float) -> Iterator[tuple[Worker, dict[str, Any]]]:
        """Give what workers say, as soon as one of them says something, or nothing after a while."""
        for key, _ in self._selector.select(timeout_s):
            worker: Worker = key.data
            for said in worker.hear():
                # Of a worker that was removed meanwhile nothing is of interest.
                if worker in self.workers:
                    yield worker, said
