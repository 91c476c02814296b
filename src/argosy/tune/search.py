"""Look for the best candidate.

Engines are measured alone, which rules most out; the promising are measured as servers; the best of them is improved step by
step; and the best few are held against each other in turn.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import msgspec

from argosy.tune.bench import Measurement
from argosy.tune.candidate import BATCHES, MAX_FRONTS, Candidate, Engine, list_replicas
from argosy.tune.engine import EngineResult
from argosy.tune.journal import Journal

__all__ = ["GAIN", "EngineRun", "Goal", "Outcome", "Search", "Trial"]

_START_ROWS: Final = 64
_SHORTLIST: Final = 6
_HOPELESS: Final = 0.5
"""Of the best estimate: an arrangement that promises less is not measured as a server."""
_MARGIN: Final = 1.05
"""A bound that was measured alone may be so much too low."""
GAIN: Final = 1.02
"""Less is noise: a step has to bring more, and among candidates that are as near to the best, the cheapest is chosen."""
_NEAR: Final = 0.75
"""Of the best rate: what a single short run says of more than that is not sure."""
_FINALISTS: Final = 4
_ROUNDS: Final = 7
_SURE_ROUNDS: Final = 3
"""From so many on, a finalist that is behind by more than `_BEHIND` is out."""
_BEHIND: Final = 0.95
_THRIFT: Final = 1.05
"""More processor time than this, of what the thriftiest takes for a request, is no equal."""
_LEAST_ANSWERS: Final = 20
"""Of a slow model, that a measurement has time for; but it takes no longer than `_MAX_TRIAL_S`."""
_MAX_TRIAL_S: Final = 30.0
_ENGINE_SHARE: Final = 0.4
"""Of the budget, that measuring engines alone may take."""
_LOOK_SHARE: Final = 0.7
"""Of the budget, after which nothing new is tried: the rest is for holding the best few against each other."""


class Goal(msgspec.Struct, frozen=True):
    """What is wanted."""

    p99_s: float = math.inf
    min_cosine: float = 0.9999
    """Of the answers, to those of the version's own runtime."""
    budget_s: float = 120.0

    @property
    def trial_s(self) -> float:
        """How long answers of one measurement are counted."""
        return min(4.0, max(0.5, self.budget_s / 60))


class EngineRun(msgspec.Struct, frozen=True):
    """An engine, and what it has shown alone."""

    engine: Engine
    result: EngineResult


class Trial(msgspec.Struct, frozen=True):
    """A candidate, and what clients saw of it."""

    candidate: Candidate
    runs: tuple[Measurement, ...] = ()
    skipped: str = ""
    """Why it was not measured."""

    @property
    def good_per_s(self) -> float:
        """Answers within the limit, by the second: the median; 0 where most runs missed the limit."""
        return statistics.median_low([run.good_per_s if run.is_in_time else 0.0 for run in self.runs] or [0.0])

    @property
    def p99_s(self) -> float:
        """The median; infinite where it was not measured."""
        return statistics.median_low([math.inf if run.p99_s is None else run.p99_s for run in self.runs] or [math.inf])

    def median(self, name: str) -> float:
        """The median of another figure."""
        return float(statistics.median_low([getattr(run, name) for run in self.runs] or [0.0]))

    @property
    def order(self) -> tuple[float, float]:
        """Larger is better: those that keep the limit by their rate, the others by their latency."""
        return self.good_per_s, -self.p99_s


class Outcome(msgspec.Struct, frozen=True):
    """What a search has found."""

    engines: list[EngineRun]
    trials: list[Trial]
    choice: Trial
    baseline: Trial
    """The version's own runtime, as a deployment without settings has it."""
    notes: list[str]


class Measures(Protocol):
    """What the search measures with; `EngineBench` and `Bench` behind a journal, or figures of a test."""

    def engine(self, engine: Engine) -> EngineResult:
        """Run an engine alone."""
        ...

    def server(self, candidate: Candidate, seconds: float) -> Measurement:
        """Serve a candidate for so long."""
        ...


class Search:
    """One search.

    Args:
        measures: what to measure with.
        engines: what can run the version; the first one is its own runtime as it is.
        goal: what is wanted.
        rows: of a request.
        num_cores: of the machine.
        joins: rows of different requests may be joined: all are of one shape, or the version says how they are padded.
        is_open: requests arrive by themselves, so that what differs is what answering them costs.
        journal: keeps what is measured.
        say: tells the reader what happens.
    """

    def __init__(
        self,
        measures: Measures,
        engines: list[Engine],
        goal: Goal,
        *,
        rows: int,
        num_cores: int,
        joins: bool,
        is_open: bool,
        journal: Journal,
        say: Callable[[str], None],
    ) -> None:
        self._measures, self._all, self._goal, self._journal, self._say = measures, engines, goal, journal, say
        self._rows, self._num_cores, self._joins, self._is_open = rows, num_cores, joins, is_open
        self._engines: dict[Engine, EngineResult] = {}
        self._trials: dict[Candidate, Trial] = {}
        self._notes: list[str] = []
        self._start = time.monotonic()

    def run(self) -> Outcome:
        """Search until nothing can win any more, or the budget is used up."""
        self._run_engines()
        baseline = Candidate(self._all[0], 1, _START_ROWS if self._joins else 1, 1)
        self._try(baseline, must=True)
        self._try_shortlist()
        self._climb()
        self._decide(baseline)
        measured = [trial for trial in self._trials.values() if trial.runs]
        choice = self._choose(measured)
        self._journal.end(choice)
        engines = [EngineRun(engine, result) for engine, result in self._engines.items()]
        return Outcome(engines, list(self._trials.values()), choice, self._trials[baseline], self._notes)

    # engines alone

    def _run_engines(self) -> None:
        refused: dict[tuple[str, str | None], str] = {}
        for engine in self._all:
            kind = (engine.runtime, engine.precision)
            if kind in refused:
                continue
            if self._used_s() > _ENGINE_SHARE * self._goal.budget_s and self._engines:
                self._notes.append(f"{engine} and later engines were not run: {_ENGINE_SHARE:.0%} of the budget were used up")
                break
            result = self._journal.find(f"engine {engine}", EngineResult)
            if result is None:
                result = self._measures.engine(engine)
                self._journal.add(f"engine {engine}", result)
            self._engines[engine] = result
            best = f"{result.rows_per_s(self._rows, max(BATCHES)):.0f} rows/s alone, cosine {result.cosine:.6f}"
            self._say(f"{engine}: {result.problem or best}")
            if result.problem:
                refused[kind] = result.problem
                self._notes.append(f"{' '.join(filter(None, kind))} is out: {result.problem}")

    def _estimate(self, candidate: Candidate) -> float:
        """Rows by the second that its replicas could answer if nothing else took time."""
        result = self._engines[candidate.engine]
        largest = candidate.max_batch_rows if self._joins else self._rows
        return candidate.replicas * result.rows_per_s(self._rows, largest)

    # servers

    def _used_s(self) -> float:
        return time.monotonic() - self._start

    def _try(self, candidate: Candidate, must: bool = False) -> Trial:
        """Measure a candidate that was not measured yet, if it can win and there is time."""
        known = self._trials.get(candidate)
        if known is not None:
            return known
        reason = "" if must else self._rule_out(candidate)
        trial = Trial(candidate, skipped=reason)
        self._trials[candidate] = trial
        return trial if reason else self._measure(trial)

    def _rule_out(self, candidate: Candidate) -> str:
        if self._used_s() > _LOOK_SHARE * self._goal.budget_s:
            return "there was no time left to try it"
        best = max((trial.median("rows_per_s") for trial in self._trials.values() if trial.good_per_s), default=0.0)
        bound = self._estimate(candidate) * _MARGIN
        # Of one that arrives by itself, no more is answered than arrives.
        if not self._is_open and bound < best:
            return f"cannot win: its engines alone answer at most {bound:.0f} rows/s"
        return ""

    def _measure(self, trial: Trial) -> Trial:
        """Measure once more."""
        candidate = trial.candidate
        name = f"server {candidate}, run {len(trial.runs)}"
        found = self._journal.find(name, Measurement)
        if found is None:
            row_s = self._engines[candidate.engine].mix_s
            found = self._measures.server(candidate, min(_MAX_TRIAL_S, max(self._goal.trial_s, _LEAST_ANSWERS * row_s)))
            self._journal.add(name, found)
        self._say(f"{candidate}: {describe(found)}")
        trial = Trial(candidate, (*trial.runs, found))
        self._trials[candidate] = trial
        return trial

    def _try_shortlist(self) -> None:
        usable = [engine for engine, result in self._engines.items() if not result.problem]
        found = [
            Candidate(engine, replicas, self._start_rows(engine), 1)
            for engine in usable
            for replicas in list_replicas(engine, self._num_cores)
        ]
        found.sort(key=self._estimate, reverse=True)
        hopeful = [candidate for candidate in found if self._estimate(candidate) >= _HOPELESS * self._estimate(found[0])]
        for candidate in _spread(hopeful):
            self._try(candidate)

    def _start_rows(self, engine: Engine) -> int:
        """The largest batch that leaves time to wait for the one before it."""
        if not self._joins:
            return 1
        times = self._engines[engine].service_s
        fitting = [rows for rows, seconds in times.items() if rows <= _START_ROWS and 3 * seconds <= self._goal.p99_s]
        return max(fitting, default=1) if self._goal.p99_s < math.inf else _START_ROWS

    def _climb(self) -> None:
        """Change one setting of the best candidate at a time, as long as that brings something."""
        is_better = True
        while is_better:
            best = self._find_best()
            is_better = False
            for steps in self._list_steps(best.candidate):
                for candidate in steps:
                    trial = self._try(candidate)
                    if not self._is_gain(trial, best):
                        break
                    best, is_better = trial, True

    def _list_steps(self, candidate: Candidate) -> Iterator[Iterable[Candidate]]:
        """Ways from a candidate, each to be gone until a step brings nothing."""
        replace = msgspec.structs.replace
        fronts = range(candidate.num_fronts + 1, min(MAX_FRONTS, self._num_cores) + 1)
        yield [replace(candidate, num_fronts=count) for count in fronts]
        if self._joins:
            place = BATCHES.index(candidate.max_batch_rows)
            yield [replace(candidate, max_batch_rows=rows) for rows in reversed(BATCHES[:place])]
            yield [replace(candidate, max_batch_rows=rows) for rows in BATCHES[place + 1 :]]
        kind = (candidate.engine.runtime, candidate.engine.precision)
        for engine in self._engines:
            if (engine.runtime, engine.precision) == kind and not self._engines[engine].problem:
                for replicas in list_replicas(engine, self._num_cores):
                    yield [replace(candidate, engine=engine, replicas=replicas)]

    def _find_best(self) -> Trial:
        """The one to improve."""
        measured = [trial for trial in self._trials.values() if trial.runs]
        best = max(measured, key=lambda trial: trial.order)
        if not self._is_open or not best.good_per_s:
            return best
        return min((trial for trial in measured if trial.good_per_s * GAIN >= best.good_per_s), key=self._cost)

    def _is_gain(self, trial: Trial, best: Trial) -> bool:
        if not (trial.good_per_s and best.good_per_s):
            return bool(trial.runs) and trial.order > best.order
        if self._is_open and trial.good_per_s * GAIN >= best.good_per_s:
            return trial.median("server_cpu_s") * GAIN < best.median("server_cpu_s")
        return trial.good_per_s > GAIN * best.good_per_s

    def _decide(self, baseline: Candidate) -> None:
        """Measure the best few again, in turn, so that a change of the machine's speed meets all of them.

        What a deployment without settings has is among them, unless it is far behind: it is what the choice is held against.
        """
        measured = [trial for trial in self._trials.values() if trial.runs]
        best = max(measured, key=lambda trial: trial.order)
        near = [trial for trial in measured if trial.good_per_s >= _NEAR * best.good_per_s]
        near.sort(key=self._cost if self._is_open else lambda trial: trial.order, reverse=not self._is_open)
        finalists = [trial.candidate for trial in near[:_FINALISTS]]
        if baseline not in finalists and any(trial.candidate == baseline for trial in near):
            finalists.append(baseline)
        for num_runs in range(2, _ROUNDS + 1):
            if len(finalists) < 2:
                return
            if self._used_s() > self._goal.budget_s:
                if num_runs <= _SURE_ROUNDS:
                    self._notes.append("the budget was used up before the best few were held against each other often enough")
                return
            # A round is never half: who was measured once more, when the machine was slower, would be behind for that.
            for candidate in finalists:
                self._measure(self._trials[candidate])
            if num_runs >= _SURE_ROUNDS:
                least = _BEHIND * max(self._trials[candidate].good_per_s for candidate in finalists)
                finalists = [candidate for candidate in finalists if self._trials[candidate].good_per_s >= least]

    def _choose(self, trials: list[Trial]) -> Trial:
        """Of those within noise of the best: what was measured most often, then what costs least."""
        # One lucky run is no reason: what was measured in every round comes first.
        num_runs = min(max(len(trial.runs) for trial in trials), _SURE_ROUNDS)
        held = [trial for trial in trials if len(trial.runs) >= num_runs]
        best = max(held, key=lambda trial: trial.order)
        if not best.good_per_s:
            return best
        near = [trial for trial in held if trial.good_per_s * GAIN >= best.good_per_s]
        thrifty_s = _THRIFT * min(trial.median("server_cpu_s") for trial in near)
        return min((trial for trial in near if trial.median("server_cpu_s") <= thrifty_s), key=self._cost)

    def _cost(self, trial: Trial) -> tuple[float, ...]:
        candidate = trial.candidate
        size = (trial.median("memory_bytes"), candidate.num_fronts, candidate.max_batch_rows)
        return (trial.median("server_cpu_s"), *size) if self._is_open else size


def _spread(candidates: list[Candidate]) -> list[Candidate]:
    """The first few, but each kind of engine once before any comes twice."""
    seen: dict[tuple[str, str | None], int] = {}
    ranked: list[tuple[int, int, Candidate]] = []
    for place, candidate in enumerate(candidates):
        kind = (candidate.engine.runtime, candidate.engine.precision)
        seen[kind] = seen.get(kind, 0) + 1
        ranked.append((seen[kind], place, candidate))
    return [candidate for _, _, candidate in sorted(ranked)[:_SHORTLIST]]


def describe(found: Measurement) -> str:
    """What a client saw, in a line."""
    if found.problem:
        return found.problem
    p99 = "beyond the measurement" if found.p99_s is None else f"{found.p99_s * 1e3:.2f} ms"
    late = "" if found.is_in_time else ", too late"
    return f"{found.requests_per_s:.0f} requests/s at {found.connections} connections, p99 {p99}{late}"
