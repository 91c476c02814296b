"""A process that runs one artifact, seen from outside."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.rows import RowFiles, read_answers
from argosy.environment import find_interpreter, is_importable
from argosy.errors import FaultError
from argosy.runtimes.base import PACKAGES
from argosy.signature import Arrays

__all__ = ["Probe"]

_TIMEOUT_S: Final = 300.0
_MAX_LINE_BYTES: Final = 16 << 20
_TAIL_BYTES: Final = 400


class Probe:
    """A context: an artifact, loaded by its runtime in a process of its own.

    Args:
        artifact: what to run.
        threads: of one operator.
        runtime: default: the artifact's own.
        precision: what the runtime computes in; default: as the artifact says.
        title: what it is called in messages.
        timeout_s: of everything that is asked.

    Raises:
        FaultError: `engine_failed`, it cannot be loaded; and so from every method: it fails, takes too long, or has ended.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int = 1,
        runtime: str | None = None,
        precision: str | None = None,
        title: object = "the model",
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.artifact, self._title, self._timeout_s = artifact, title, timeout_s
        runtime = runtime or artifact.runtime
        self._folder = tempfile.TemporaryDirectory(prefix="argosy-bench-")
        self.work = Path(self._folder.name)
        """For files of this probe; goes with it."""
        self._num_files = 0
        self._rest = b""
        package = PACKAGES.get(runtime)
        is_here = package is None or is_importable(package)
        python = sys.executable if package is None or is_here else str(find_interpreter(package))
        environment = os.environ if is_here else {**os.environ, "PYTHONPATH": ""}
        self._log = self.work / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-P", "-m", "argosy.bench.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        try:
            options = {**artifact.options, "threads": threads, **({"precision": precision} if precision else {})}
            found = self._ask(
                "load",
                runtime=runtime,
                folder=str(artifact.folder),
                entry=artifact.entry,
                options=options,
                outputs=msgspec.to_builtins(artifact.signature.outputs),
                is_batched=artifact.signature.is_batched,
            )
        except BaseException:
            self.close()
            raise
        self.load_s: float = found["load_s"]
        """Seconds that loading took."""

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def answer(self, rows: RowFiles) -> list[Arrays]:
        """Answer requests one after the other; returns the outputs of each by name."""
        paths: list[Path] = []
        for path in rows.paths:
            self._num_files += 1
            paths.append(self.work / f"answers{self._num_files}.npz")
            self._ask("answer", rows=str(path), answers=str(paths[-1]))
        answers = read_answers(rows, paths)
        for path in paths:
            path.unlink()
        return answers

    def choose(self, rows: RowFiles) -> None:
        """Take the requests that the other methods time."""
        self._ask("choose", rows=[str(path) for path in rows.paths])

    def time_mix(self) -> float:
        """Seconds of one of the chosen requests, alone, each of another shape than the last one."""
        return self._ask("time_mix")["mix_s"]

    def time_batches(self, max_rows: int, limit_s: float) -> dict[int, float]:
        """Seconds of a batch of 1, 2, 4 ... rows, up to the first that takes longer than `limit_s` or brings nothing."""
        found = self._ask("time_batches", max_rows=max_rows, limit_s=limit_s)["service_s"]
        return {int(rows): seconds for rows, seconds in found.items()}

    def time_rounds(self, rows: int, rounds: int) -> list[float]:
        """Seconds of each of so many runs, in turn through the chosen requests, each repeated to so many rows."""
        return self._ask("time_rounds", rows=rows, rounds=rounds)["seconds"]

    def take_memory(self) -> int:
        """Bytes that would be given back if the process ended."""
        return self._ask("take_memory")["memory_bytes"]

    def write_trials(self, path: Path) -> None:
        """Write rows at the extremes of the datatypes, with the answers to them."""
        self._ask("write_trials", path=str(path))

    def hold_trials(self, path: Path, own: str, precision: str) -> None:
        """Hold the answers to such rows against those of the version's own runtime."""
        self._ask("hold_trials", path=str(path), own=own, precision=precision)

    def _ask(self, op: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._fail(self._describe_end()) from None
        found: dict[str, Any] = json.loads(self._read_line())
        if "error" in found:
            raise self._fail(str(found["error"]))
        return found

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._fail(f"it took more than {self._timeout_s:.0f} s")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data or len(self._rest) > _MAX_LINE_BYTES:
                    raise self._fail(self._describe_end())
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _describe_end(self) -> str:
        code = self._process.wait(timeout=10.0)
        last = self._log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()[-1:]
        return (last[0] if last else f"its process ended with code {code}")[:_TAIL_BYTES]

    def _fail(self, detail: str) -> FaultError:
        return FaultError("engine_failed", engine=self._title, detail=detail)
