"""Judge artifacts beside the version that they were made of: answers, cost, both by the runtimes that serve them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np

from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import RowFiles, Rows, write_rows
from argosy.compress.answers import check_shapes, count_lost
from argosy.compress.examples import Example, find_examples
from argosy.compress.judge import Evidence, Guard, Score, judge_outputs
from argosy.compress.kind import Meaning
from argosy.compress.measure import Cost, Timing, measure_costs
from argosy.compress.sample import Sample, group_rows, thin_rows
from argosy.compress.served import Stage
from argosy.datatypes import is_float
from argosy.errors import InputError
from argosy.runtimes.base import OWN_THREADS
from argosy.serve.worker.cores import choose_threads, count_cores
from argosy.signature import Arrays

__all__ = ["Finding", "Jury", "measure_distance"]

_FEW_ROWS: Final = 32
"""For comparing layers."""
_TRIES: Final = 2
"""Runs by which threads are chosen."""
_MAX_ANSWER_BYTES: Final = 4 << 30
"""Of all answers of one model, which are held in memory."""


class Finding(NamedTuple):
    """What was found of an artifact."""

    score: Score
    before: Cost
    after: Cost
    examples: tuple[Example, ...]
    """Rows whose answers moved most."""


def measure_distance(before: list[Arrays], after: list[Arrays]) -> float:
    """Measure how far answers move: their mean squared difference, relative to the spread of each output."""
    total = 0.0
    for old, new in zip(before, after, strict=True):
        for name, array in old.items():
            if is_float(array.dtype):
                wide = np.asarray(array, np.float64)
                if new[name].shape != array.shape:
                    return float("inf")
                scale = float(np.var(wide)) or float(np.mean(np.square(wide))) or 1.0
                total += float(np.mean(np.square(np.asarray(new[name], np.float64) - wide))) / scale
    return total / len(after) if np.isfinite(total) else float("inf")


class Jury:
    """A context: holds the original in a process of its own, and its answers.

    Args:
        parent: the original.
        meaning: of its first output.
        guard: how much may be lost of what.
        sample: rows that no candidate saw.
        folder: for files, new.
        golden: the version's examples, which a candidate must answer, too: they will be its own.
        stage: where finalists are measured as served; None: nowhere.

    Raises:
        FaultError: `engine_failed`, the original does not load or run.
        InputError: as `judge_outputs`, for the original beside itself.
    """

    def __init__(
        self,
        parent: Artifact,
        meaning: Meaning,
        guard: Guard,
        sample: Sample,
        folder: Path,
        *,
        golden: Rows = (),
        stage: Stage | None = None,
    ) -> None:
        self.parent, self.sample, self.guard, self.stage = parent, sample, guard, stage
        self._meaning, self._groups = meaning, group_rows(sample.rows)
        self._stack = ExitStack()
        self._first: RowFiles = write_rows(sample.rows[:1], folder / "first")
        self._files: RowFiles = write_rows(sample.rows, folder / "rows")
        self._golden = write_rows(golden, folder / "golden")
        self._few = write_rows(thin_rows(sample.rows, _FEW_ROWS), folder / "few")
        self._timing = Timing(sample.rows, folder / "timing", is_batched=parent.signature.is_batched)
        self._original, self._threads = self._load(parent, "its own runtime")
        self._stack.enter_context(self._original)
        try:
            self._answers = self._answer(self._original)
            self._few_answers = self._original.answer(self._few)
            self._golden_answers = self._original.answer(self._golden)
            # A metric that does not suit the answers, or too few rows for it, is nobody's fault but the caller's: said at once.
            self.score(self._answers)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Jury:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def judge(self, artifact: Artifact, title: str, *, budget_s: float, is_retrained: bool = False) -> Finding:
        """Have an artifact answer the rows, and time it beside the original.

        Args:
            artifact: what to judge.
            title: what it is called in messages.
            budget_s: for timing each of the two at each batch size.
            is_retrained: it has learnt from rows.

        Raises:
            FaultError: `engine_failed`, it does not load or run; `other_shape`.
            InputError: as `judge_outputs`.
        """
        probe, threads = self._load(artifact, title)
        with probe:
            answers = self._answer(probe)
            check_shapes(self._answers, answers, title, f"{self.sample.basis} row")
            score = self.score(answers, is_retrained=is_retrained)
            golden = probe.answer(self._golden)
            check_shapes(self._golden_answers, golden, title, "golden example")
            lost = count_lost(self._golden_answers, golden)
            if lost and not score.ruin:
                score = replace(score, ruin=f"the answers to {lost} of {len(golden)} golden examples are no numbers")
            before, after = measure_costs((self._original, probe), self._timing, budget_s=budget_s)
        before, after = replace(before, threads=self._threads), replace(after, threads=threads)
        return Finding(score, before, after, self._find_examples(answers, score.output))

    def answer_few(self, artifact: Artifact) -> list[Arrays]:
        """Give an artifact's answers to a few rows, as `measure_distance` takes them.

        Raises:
            FaultError: `engine_failed`.
        """
        if artifact == self.parent:
            return self._few_answers
        with Probe(artifact, threads=count_cores(), title="a layer alone") as probe:
            return probe.answer(self._few)

    def score(self, answers: list[Arrays], *, is_retrained: bool = False) -> Score:
        """Hold answers to the rows against the original's, or against what is right."""
        evidence = Evidence(self._answers, answers, self.sample.targets, self.sample.basis, is_retrained, self._groups)
        return judge_outputs(evidence, self._meaning, self.guard)

    def _find_examples(self, answers: list[Arrays], output: str) -> tuple[Example, ...]:
        is_first = output == next(iter(self._answers[0]))
        meaning = self._meaning if is_first else Meaning("unknown", "no lineage speaks of this output")
        found = find_examples(self._answers, answers, output, meaning)
        return tuple(replace(example, row=self.sample.find_place(example.row)) for example in found)

    def _load(self, artifact: Artifact, title: str) -> tuple[Probe, int]:
        """Load an artifact with as many threads of one operator as a worker would find to pay; returns their number, too."""
        loaded: list[Probe] = []

        def load(threads: int) -> None:
            while loaded:
                loaded.pop().close()
            loaded.append(Probe(artifact, threads=threads, title=title))
            loaded[0].choose(self._first)

        def measure() -> float:
            # The first run of a shape is not counted.
            return min(loaded[0].time_rounds(1, 1 + _TRIES)[1:])

        try:
            threads = choose_threads(load, measure, 1 if artifact.runtime in OWN_THREADS else count_cores())
        except BaseException:
            for probe in loaded:
                probe.close()
            raise
        return loaded[0], threads

    def _answer(self, probe: Probe) -> list[Arrays]:
        num_bytes = sum(int(array.nbytes) for array in probe.answer(self._first)[0].values()) * self._files.num_rows
        if num_bytes > _MAX_ANSWER_BYTES:
            detail = f"the answers to {self._files.num_rows} rows take {num_bytes / 1e9:.1f} GB: give fewer"
            raise InputError("bad_data", detail=detail)
        return probe.answer(self._files)
