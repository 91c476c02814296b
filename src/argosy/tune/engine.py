"""Measure engines alone, before any server is started: most are ruled out by what they answer, or by how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import write_rows
from argosy.errors import FaultError
from argosy.serve.worker.agreement import largest_difference, measure_cosine
from argosy.signature import Arrays
from argosy.store.golden import Golden
from argosy.store.manifest import Version
from argosy.tune.candidate import BATCHES, Engine
from argosy.tune.traffic import Requests

__all__ = ["EngineBench", "EngineResult"]

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
        manifest = version.manifest
        self._artifact = Artifact(folder, manifest.entry, manifest.runtime, manifest.signature, dict(manifest.options))
        self._limit_s = limit_s
        is_batched = manifest.signature.is_batched
        examples = [golden.example(index, is_batched=is_batched).inputs for index in range(golden.num_examples)]
        self._examples = write_rows(examples, work / "examples")
        self._first = write_rows(examples[:1], work / "first")
        self._typical = write_rows(_pick_typical(requests.arrays), work / "requests")
        self._trials = work / "trials.npz"
        self._reference: list[Arrays] | None = None

    def answer(self, engine: Engine) -> tuple[EngineResult, list[Arrays]]:
        """Run an engine; returns its times, and the answers to the examples.

        Raises:
            FaultError: `engine_failed`, it does not load or run the version.
        """
        artifact = self._artifact
        with Probe(artifact, threads=engine.threads, runtime=engine.runtime, precision=engine.precision, title=engine) as probe:
            answers = probe.answer(self._examples)
            probe.choose(self._first)
            if engine.runtime == artifact.runtime:
                probe.write_trials(self._trials)
            else:
                probe.hold_trials(self._trials, artifact.runtime, engine.precision or "")
            probe.choose(self._typical)
            mix_s = probe.time_mix()
            is_batched = artifact.signature.is_batched
            service_s = probe.time_batches(max(BATCHES), self._limit_s) if is_batched else {}
            return EngineResult(mix_s=mix_s, service_s=service_s, load_s=probe.load_s), answers

    def measure(self, engine: Engine, reference: Engine, min_cosine: float) -> EngineResult:
        """Run an engine and hold its answers against those of the reference, the version's own runtime.

        Raises:
            FaultError: `engine_failed`, of the reference itself.
        """
        if self._reference is None:
            self._reference = self.answer(reference)[1]
        try:
            found, answers = self.answer(engine)
        except FaultError as error:
            return EngineResult(problem=str(error.fields["detail"]))
        cosine, worst = _compare(answers, self._reference)
        problem = f"cosine {cosine:.6f} at output {worst}" if cosine < min_cosine else ""
        return msgspec.structs.replace(found, problem=problem, cosine=cosine)


def _compare(answers: Sequence[Arrays], expected: Sequence[Arrays]) -> tuple[float, str]:
    """The least cosine, and the output that has it. What is no fraction has to be equal; text has no cosine, and is left out."""
    worst, where = 1.0, ""
    for given, wanted in zip(answers, expected, strict=True):
        for name, want in wanted.items():
            if want.dtype.kind == "O":
                continue
            got = given.get(name)
            cosine = -1.0 if got is None or got.shape != want.shape else _compare_one(got, want)
            if cosine < worst:
                worst, where = cosine, name
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
