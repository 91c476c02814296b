"""Trials in processes of their own, seen from outside: begin, hear what each says, end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, Final, cast

__all__ = ["Crew", "Worker"]

_MAX_LINE_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 1 << 16
"""Of what a trial prints: its end."""
_TAIL_BYTES: Final = 200
_JOIN_S: Final = 1.0
_KILLED: Final = "it was killed, as by the system when memory runs out"
_NONSENSE: Final = "it says what cannot be understood"


class _Tail(threading.Thread):
    """Takes what a process prints, as much as it likes, and keeps the end; until nobody has that pipe any more."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._kept = pipe, b""
        self.start()

    def run(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), _KEPT_BYTES):
                self._kept = (self._kept + data)[-_KEPT_BYTES:]

    def read(self) -> bytes:
        """Give it, once the process is over; what that has started may still hold the pipe."""
        self.join(_JOIN_S)
        return self._kept


class Worker:
    """The process of one trial.

    Args:
        target: the program, `FILE.py:FUNCTION`.
        names: of its parameters.
        threads: that its libraries may use.
    """

    def __init__(self, target: str, names: list[str], threads: int | None) -> None:
        limits = (
            {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        )
        self.started_s = time.monotonic()
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "argosy.search.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **limits},
            start_new_session=True,  # It ends with all that it has started; and not by Ctrl-C before its trial is kept.
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._tail = _Tail(self._process.stderr)
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.say(target=target, names=names)

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

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
        is_over = self.is_over
        try:
            data = os.read(self.output, _KEPT_BYTES)
        except BlockingIOError:
            if not is_over:
                return
            data = b""  # What it has started holds the pipe's other end, and says nothing for it.
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        yield from map(_read_event, lines)
        if not data or len(self._rest) > _MAX_LINE_BYTES:
            yield {"event": "failed", "reason": self._describe_end()}

    def end(self) -> None:
        """End it, and all that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of what it was told last, and has not read
                pipe.close()
        self._process.wait()

    def read_log(self) -> bytes:
        """Give the end of what it has printed, once it is over."""
        return self._tail.read()

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            return _NONSENSE
        if code == -signal.SIGKILL:
            return _KILLED
        last = self.read_log().decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with code {code}" + (f": {last[0]}"[:_TAIL_BYTES] if last else "")


def _read_event(line: bytes) -> dict[str, Any]:
    try:
        said = cast("dict[str, Any]", json.loads(line))
        if isinstance(said.get("event"), str):
            return said
    except (ValueError, AttributeError, RecursionError):
        pass
    return {"event": "failed", "reason": f"{_NONSENSE}: {line[:60]!r}"}


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
        ready = {key.data for key, _ in self._selector.select(timeout_s)}
        for worker in [worker for worker in self.workers if worker in ready or worker.is_over]:
            for said in worker.hear():
                # Of a worker that was removed meanwhile nothing is of interest.
                if worker in self.workers:
                    yield worker, said
