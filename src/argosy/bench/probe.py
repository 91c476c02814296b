"""A process that runs one artifact, seen from outside.

An artifact that may be a stranger's can do little there: a graph is run in a process that reaches its own files and the rows
that it is given, as `confine/` has it. What does not work so, the user's own code above all, runs as it does in a worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.dialogue import Dialogue, list_module_folders, list_settings
from argosy.bench.rows import RowFiles, read_answers
from argosy.confine.confine import hostile_folder, open_confined
from argosy.environment import find_interpreter, is_importable
from argosy.errors import InputError
from argosy.runtimes.base import PACKAGES
from argosy.signature import Arrays

__all__ = ["Probe"]

_CHILD: Final = "argosy.bench.child"
_CONFINED: Final = ("mxnet", "onnx", "openvino", "torch")
"""Runtimes that work confined. JAX tells threads by names, and TensorFlow wants links, which a confined process may not give;
Keras runs on either. Python artifacts are the user's own code."""
_LIBRARIES: Final = {"onnx": "onnxruntime"}
"""Runtime -> the package that it imports, where this has another name."""

_TIMEOUT_S: Final = 300.0


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
        self.artifact, self._timeout_s = artifact, timeout_s
        runtime = runtime or artifact.runtime
        self._stack = ExitStack()
        folder = self._stack.enter_context(hostile_folder("argosy-bench-"))
        self.work, self._given, self._made = (folder / name for name in ("work", "given", "made"))
        # Files of the caller's and links to others, which its process may read; and what that makes.
        for part in (self.work, self._given, self._made):
            part.mkdir()
        self._num_files = 0
        try:
            with (folder / "log").open("wb") as log:
                self._process = self._start(runtime, log)
            self._dialogue = Dialogue(self._process, folder / "log", title)
        except BaseException:
            self._stack.close()
            raise
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
        self._dialogue.close()
        self._stack.close()

    def _start(self, runtime: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        package = PACKAGES.get(runtime)
        is_here = package is None or is_importable(package)
        python = Path(sys.executable) if package is None or is_here else find_interpreter(package)
        if runtime not in _CONFINED or self.artifact.has_devices:
            environment = os.environ if is_here else {**os.environ, "PYTHONPATH": ""}
            command = [str(python), "-P", "-B", "-m", _CHILD]  # What it imports of the artifact's folder leaves nothing there.
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
        return open_confined(
            [_CHILD],
            read=[self.artifact.folder, self.work, self._given],
            home=self._made,
            log=log,
            python=python,
            env=list_settings(),
            module_folders=list_module_folders(_LIBRARIES.get(runtime, runtime)) if is_here else (),
            # A graph is data: a machine that cannot confine takes what the limits of `child.py` leave.
            is_required=False,
        )

    def _give(self, path: Path) -> str:
        """Let the process read a file."""
        if path.is_relative_to(self.work):
            return str(path)
        self._num_files += 1
        given = self._given / f"{self._num_files}{path.suffix}"
        try:
            given.hardlink_to(path)
        except OSError:  # another file system
            shutil.copyfile(path, given)
        return str(given)

    def _name_made(self) -> Path:
        self._num_files += 1
        return self._made / f"made{self._num_files}.npz"

    def answer(self, rows: RowFiles) -> list[Arrays]:
        """Answer requests one after the other; returns the outputs of each by name."""
        paths: list[Path] = []
        for path in rows.paths:
            paths.append(self._name_made())
            self._ask("answer", rows=self._give(path), answers=str(paths[-1]))
        try:
            answers = read_answers(rows, paths)
        except (InputError, KeyError, IndexError) as error:
            raise self._dialogue.fail(f"what it answered cannot be read: {error}") from error
        for path in paths:
            path.unlink()
        return answers

    def choose(self, rows: RowFiles) -> None:
        """Take the requests that the other methods time."""
        self._ask("choose", rows=[self._give(path) for path in rows.paths])

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
        made = self._name_made()
        self._ask("write_trials", path=str(made))
        shutil.copyfile(made, path)

    def hold_trials(self, path: Path, own: str, precision: str) -> None:
        """Hold the answers to such rows against those of the version's own runtime."""
        self._ask("hold_trials", path=self._give(path), own=own, precision=precision)

    def _ask(self, op: str, **arguments: object) -> dict[str, Any]:
        return self._dialogue.ask({"op": op, **arguments}, self._timeout_s)
