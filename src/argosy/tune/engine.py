"""Measure engines alone, before any server is started: most are ruled out by what they answer, or by how long they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import decode_stored
from argosy.environment import find_interpreter, is_importable
from argosy.errors import FaultError
from argosy.runtimes.base import PACKAGES
from argosy.serve.worker.agreement import largest_difference, measure_cosine
from argosy.signature import Arrays
from argosy.store.golden import Golden, encode_golden
from argosy.store.manifest import Version
from argosy.tune.candidate import BATCHES, Engine
from argosy.tune.traffic import Requests

__all__ = ["EngineBench", "EngineResult"]

_TIMEOUT_S: Final = 300.0
_NUM_REQUESTS: Final = 16
"""Of the traffic, run one by one: shapes change as they will."""


class EngineResult(msgspec.Struct, frozen=True):
    """What an engine has shown alone."""

    problem: str = ""
    """Why it cannot serve the version; "" if it can."""
    cosine: float = 0.0
    """The least, of any output of any example, to what the version's own runtime answers."""
    mix_s: float = 0.0
    """A request of the traffic, alone."""
    service_s: dict[int, float] = {}
    """Seconds by rows of a batch; empty where rows are not joined."""
    load_s: float = 0.0

    def rows_per_s(self, rows: int, max_rows: int) -> float:
        """The most that one replica can answer, if nothing else cost any time.

        Args:
            rows: of a request.
            max_rows: of a batch.
        """
        alone = rows / self.mix_s if self.mix_s else 0.0
        return max([alone, *(count / seconds for count, seconds in self.service_s.items() if count <= max_rows)])


class EngineBench:
    """Runs engines, each in a process of its own.

    Args:
        version: what is served.
        folder: its files, checked.
        golden: its examples.
        requests: of the traffic.
        work: a folder for files of this bench.
        limit_s: what an answer may take.
    """

    def __init__(
        self,
        version: Version,
        folder: Path,
        golden: Golden,
        requests: Requests,
        work: Path,
        limit_s: float,
    ) -> None:
        self._version, self._folder, self._work, self._limit_s = version, folder, work, limit_s
        work.mkdir(parents=True)
        (work / "golden.npz").write_bytes(encode_golden(Golden(golden.inputs, {})))
        chosen = _pick_typical(requests.arrays)
        for index, arrays in enumerate(chosen):
            (work / f"request{index}.npz").write_bytes(encode_golden(Golden(arrays, {})))
        self._num_requests = len(chosen)
        self._reference: Arrays | None = None

    def answer(self, engine: Engine) -> tuple[dict[str, Any], Arrays]:
        """Run an engine; returns its times, and the answers to the examples.

        Raises:
            FaultError: `engine_failed`, it does not load or run the version.
        """
        manifest = self._version.manifest
        job = {
            "runtime": engine.runtime,
            "own_runtime": manifest.runtime,
            "folder": str(self._folder),
            "entry": manifest.entry,
            "options": {
                **manifest.options,
                "threads": engine.threads,
                **({"precision": engine.precision} if engine.precision else {}),
            },
            "is_batched": manifest.signature.is_batched,
            "num_requests": self._num_requests,
            "max_rows": max(BATCHES),
            "limit_s": self._limit_s,
        }
        (self._work / "job.json").write_text(json.dumps(job))
        output = self._run(engine)
        with np.load(self._work / "outputs.npz", allow_pickle=False) as file:
            answers = {name: decode_stored(file[name]) for name in file.files}
        return json.loads(output), answers

    def _run(self, engine: Engine) -> str:
        package = PACKAGES.get(engine.runtime)
        is_here = package is None or is_importable(package)
        python = sys.executable if package is None or is_here else str(find_interpreter(package))
        environment = os.environ if is_here else {**os.environ, "PYTHONPATH": ""}
        command = [python, "-P", "-m", "argosy.tune.engine_run", str(self._work / "job.json")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment)
        except subprocess.TimeoutExpired:
            raise FaultError("engine_failed", engine=engine, detail=f"it took more than {_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise FaultError("engine_failed", engine=engine, detail=last[0][:400])
        return done.stdout

    def measure(self, engine: Engine, reference: Engine, min_cosine: float) -> EngineResult:
        """Run an engine and hold its answers against those of the reference, the version's own runtime.

        Raises:
            FaultError: `engine_failed`, of the reference itself.
        """
        if self._reference is None:
            self._reference = self.answer(reference)[1]
        try:
            times, answers = self.answer(engine)
        except FaultError as error:
            return EngineResult(problem=str(error.fields["detail"]))
        cosine, worst = _compare(answers, self._reference)
        problem = f"cosine {cosine:.6f} at output {worst}" if cosine < min_cosine else ""
        service_s = {int(rows): seconds for rows, seconds in times.get("service_s", {}).items()}
        return EngineResult(problem, cosine, times["mix_s"], service_s, times["load_s"])


def _compare(answers: Arrays, expected: Arrays) -> tuple[float, str]:
    """The least cosine, and the output that has it. What is no fraction has to be equal."""
    worst, where = 1.0, ""
    for key, want in expected.items():
        got = answers.get(key)
        cosine = -1.0 if got is None or got.shape != want.shape else _compare_one(got, want)
        if cosine < worst:
            worst, where = cosine, key.partition(":")[2]
    return worst, where


def _compare_one(got: NDArray[Any], want: NDArray[Any]) -> float:
    difference = largest_difference(got, want)
    return 1.0 if difference == 0 else -1.0 if difference == float("inf") else measure_cosine(got, want)


def _pick_typical(requests: Sequence[Arrays]) -> list[Arrays]:
    """Some requests, the one of median size first: batches are made of it."""
    chosen = list(requests[:_NUM_REQUESTS])
    by_size = sorted(chosen, key=lambda arrays: sum(array.nbytes for array in arrays.values()))
    median = by_size[len(by_size) // 2]
    return [median, *(arrays for arrays in chosen if arrays is not median)]
