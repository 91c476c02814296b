"""The search, on figures that are made up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from argosy.tune.bench import Measurement
from argosy.tune.candidate import Candidate, Engine, list_engines
from argosy.tune.engine import EngineResult
from argosy.tune.journal import Journal
from argosy.tune.report import explain
from argosy.tune.search import Goal, Outcome, Search

ROW_S = {"onnx": 8e-3, "openvino float32": 8e-3, "openvino bfloat16": 4e-3}


class Machine:
    """Four cores and a model of 8 ms a row, of which batches save a third and bfloat16 a half; a front takes 1 ms a batch."""

    scaling = 0.8
    """Of the threads of an operator: the power of their number that it is faster by."""

    def __init__(self, cosines: dict[str, float] | None = None) -> None:
        self.cosines = cosines or {}
        self.engines: list[Engine] = []
        self.servers: list[Candidate] = []
        self.stop_after = 10_000

    def row_s(self, engine: Engine, rows: int) -> float:
        kind = " ".join(filter(None, (engine.runtime, engine.precision)))
        return ROW_S[kind] / engine.threads**self.scaling * (2 / 3 if rows > 1 else 1.0)

    def engine(self, engine: Engine) -> EngineResult:
        self.engines.append(engine)
        kind = " ".join(filter(None, (engine.runtime, engine.precision)))
        cosine = self.cosines.get(kind, 1.0)
        times = {rows: rows * self.row_s(engine, rows) for rows in (1, 2, 4, 8, 16, 32, 64)}
        return EngineResult("" if cosine > 0.9999 else f"cosine {cosine}", cosine, times[1], times)

    def server(self, candidate: Candidate, seconds: float) -> Measurement:
        if len(self.servers) == self.stop_after:
            raise KeyboardInterrupt
        self.servers.append(candidate)
        rows = min(candidate.max_batch_rows, 64 // candidate.replicas)
        batch_s = rows * self.row_s(candidate.engine, rows) + 1e-3 / candidate.num_fronts
        rate = candidate.replicas * rows / batch_s
        return Measurement("", 64, rate, rate, rate, batch_s, 2 * batch_s, is_in_time=True, server_cpu_s=1 / rate)


def search(machine: Machine, folder: Path, goal: Goal | None = None, **options: Any) -> Outcome:
    goal = goal or Goal(budget_s=60.0)
    journal = Journal(folder / "m.jsonl", {"goal": goal})
    engines = list_engines("onnx", ["openvino"], 4)
    more: dict[str, Any] = {"rows": 1, "num_cores": 4, "joins": True, "is_open": False, **options}
    return Search(machine, engines, goal, journal=journal, say=lambda text: None, **more).run()


def best_of_grid(machine: Machine) -> float:
    engines = [engine for engine in list_engines("onnx", ["openvino"], 4) if machine.engine(engine).problem == ""]
    batches = (1, 2, 4, 8, 16, 32, 64, 128)
    grid = [
        Candidate(e, r, b, f) for e in engines for r in (1, 2, 4) if r * e.threads <= 4 for b in batches for f in (1, 2, 3, 4)
    ]
    return max(machine.server(candidate, 1.0).good_per_s for candidate in grid)


def test_search_comes_near_the_best_of_the_grid_with_a_tenth_of_its_trials(tmp_path: Path) -> None:
    machine = Machine()
    outcome = search(machine, tmp_path)
    assert outcome.choice.candidate.engine.precision == "bfloat16"
    assert len(machine.servers) < 40
    assert outcome.choice.good_per_s > 0.95 * best_of_grid(Machine())


@pytest.mark.parametrize("seed", range(10))
def test_noise_decides_nothing(seed: int, tmp_path: Path) -> None:
    class Noisy(Machine):
        scaling = 0.9
        noise = 0.05

        def server(self, candidate: Candidate, seconds: float) -> Measurement:
            found, factor = super().server(candidate, seconds), chance.lognormvariate(0.0, self.noise)
            return msgspec.structs.replace(found, good_per_s=found.good_per_s * factor, memory_bytes=candidate.replicas * 1e8)

    chance = random.Random(seed)
    choice = search(Noisy(), tmp_path).choice.candidate
    calm = Noisy()
    calm.noise = 0.0
    assert calm.server(choice, 1.0).good_per_s > 0.95 * best_of_grid(calm)


@pytest.mark.parametrize("slower_after", [2, 5, 10, 15, 20])
def test_choice_is_held_against_the_default_in_the_same_rounds(slower_after: int, tmp_path: Path) -> None:
    class Slowing(Machine):
        def server(self, candidate: Candidate, seconds: float) -> Measurement:
            found = super().server(candidate, seconds)
            factor = 0.8 if len(self.servers) > slower_after else 1.0
            # All candidates are alike.
            return msgspec.structs.replace(found, good_per_s=100.0 * factor, memory_bytes=candidate.replicas * 1e8)

    outcome = search(Slowing(), tmp_path)
    told = "; ".join(explain(outcome, Goal()))
    assert "alike but for noise" in told or "that is how a deployment without settings runs" in told


def test_engine_that_answers_otherwise_is_out_whatever_its_speed(tmp_path: Path) -> None:
    machine = Machine({"openvino bfloat16": 0.998})
    outcome = search(machine, tmp_path)
    assert outcome.choice.candidate.engine.precision != "bfloat16"
    assert all(candidate.engine.precision != "bfloat16" for candidate in machine.servers)
    assert sum(engine.precision == "bfloat16" for engine in machine.engines) == 1, "its answers do not change with threads"
    assert "openvino bfloat16 is out: cosine 0.998" in outcome.notes


def test_candidate_that_cannot_win_is_not_served(tmp_path: Path) -> None:
    outcome = search(Machine(), tmp_path)
    skipped = [trial for trial in outcome.trials if trial.skipped]
    assert skipped
    assert all("cannot win: its engines alone answer at most" in trial.skipped for trial in skipped)


def test_limit_of_latency_bounds_the_batch(tmp_path: Path) -> None:
    class Limited(Machine):
        def server(self, candidate: Candidate, seconds: float) -> Measurement:
            found = super().server(candidate, seconds)
            is_in_time = found.p99_s is not None and found.p99_s <= 0.030
            return Measurement(**{f: getattr(found, f) for f in found.__struct_fields__} | {"is_in_time": is_in_time})

    outcome = search(Limited(), tmp_path, Goal(p99_s=0.030, budget_s=60.0))
    assert outcome.choice.good_per_s > 0
    assert outcome.choice.p99_s <= 0.030


def test_of_what_serves_the_same_arrivals_the_cheapest_is_chosen(tmp_path: Path) -> None:
    class Idle(Machine):
        def server(self, candidate: Candidate, seconds: float) -> Measurement:
            self.servers.append(candidate)
            cost = candidate.replicas + candidate.num_fronts + (candidate.engine.precision != "bfloat16")
            return Measurement("", 64, 100, 100, 100, 1e-3, 2e-3, is_in_time=True, server_cpu_s=cost)

    choice = search(Idle(), tmp_path, is_open=True).choice.candidate
    assert (choice.engine.precision, choice.replicas, choice.num_fronts) == ("bfloat16", 1, 1)


def test_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Machine()
    expected = search(whole, tmp_path / "whole").choice
    first, second = Machine(), Machine()
    first.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        search(first, tmp_path)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('\n{"key": "cut by the inter')
    assert search(second, tmp_path).choice == expected
    assert second.engines == []
    assert len(second.servers) == len(whole.servers) - 4
    third = Machine()
    search(third, tmp_path)
    assert len(third.servers) == len(whole.servers), "what came to its end is measured anew"


def test_search_without_time_still_says_how_the_default_does(tmp_path: Path) -> None:
    outcome = search(Machine(), tmp_path, Goal(budget_s=0.0))
    assert outcome.choice.candidate == outcome.baseline.candidate
    assert any("not run" in note for note in outcome.notes)
