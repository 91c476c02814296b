"""`argosy tune`: the search, on figures that are made up; the client, against real servers; the command, from end to end."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from argosy.cli.main import main
from argosy.deploy.ledger import Ledger
from argosy.errors import InputError, NotAllowedError, NotFoundError
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.tune.apply import write_num_fronts
from argosy.tune.bench import Bench, Measurement
from argosy.tune.candidate import Candidate, Engine, list_engines
from argosy.tune.engine import EngineResult
from argosy.tune.journal import Journal
from argosy.tune.run import tune
from argosy.tune.search import Goal, Outcome, Search
from argosy.tune.trace import read_trace
from argosy.tune.traffic import Traffic, build_requests, build_schedule
from tests.home import SIGNATURE, Home, golden_scale

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


# traffic

RAGGED = Signature(
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 2)),)
)
EXAMPLES = Golden({"ids": np.arange(12).reshape(3, 4), "mask": np.ones((3, 4), np.int64)}, {"y": np.zeros((3, 2), np.float32)})


def test_requests_have_the_lengths_and_rows_that_were_asked_for() -> None:
    made = build_requests(RAGGED, EXAMPLES, Traffic(rows=2, lengths=(3, 9)), "m")
    shapes = {array.shape for arrays in made.arrays for array in arrays.values()}
    assert shapes == {(2, length) for length in range(3, 10)}
    assert all(arrays["ids"].shape == arrays["mask"].shape for arrays in made.arrays)
    first = made.arrays[0]["ids"][0]
    assert first.tolist() == [first[0] + n % 4 for n in range(len(first))], "an example is repeated, not invented"


def test_requests_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no free axis"):
        build_requests(SIGNATURE, golden_scale(), Traffic(lengths=(1, 2)), "m")
    for options in ({"rows": 0}, {"lengths": (5, 2)}, {"connections": 0}, {"rate_per_s": -1.0}):
        with pytest.raises(InputError, match="expected"):
            Traffic(**options)


def test_trace_is_read_and_its_busiest_stretch_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    moments = [0.0, 5.0, 5.1, 5.2, 5.3, 9.0]
    path.write_text("\n".join(json.dumps({"at_s": at, "length": 3 + n % 2}) for n, at in enumerate(moments)))
    traffic = Traffic(trace=read_trace(path))
    made = build_requests(RAGGED, EXAMPLES, traffic, "m")
    schedule = build_schedule(traffic, made, 1.0)
    assert [at for at, _ in schedule] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [made.arrays[index]["ids"].shape for _, index in schedule] == [(1, 4), (1, 3), (1, 4), (1, 3)]
    longer = build_schedule(traffic, made, 40.0)
    assert len(longer) > 20, "a short trace is begun again"
    assert [at for at, _ in longer] == sorted(at for at, _ in longer)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "0 arrivals"),
        ('{"at_s": 0}\n{"at_s": 1, "rows": "2"}', "Line 2 of trace t.jsonl"),
        ('{"at_s": 0}\n{"at_s": 1, "row": 2}', "unknown field"),
        ('{"at_s": 2}\n{"at_s": 1}', "arrives before"),
        ('{"at_s": 0}\n{"at_s": 0}', "different moments"),
        ('{"at_s": 0}\n{"at_s": 1, "rows": 0}', "out of range"),
        ('{"at_s": 0}\n\xff', "Line 2"),
    ],
    ids=["empty", "text", "unknown", "order", "moment", "zero", "binary"],
)
def test_line_that_is_no_arrival_is_refused(text: str, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=detail):
        read_trace(path)


# the client, against a real server


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Any]]:
    home = Home(tmp_path_factory.mktemp("tune"))
    version = home.publish_scale()

    def make(traffic: Traffic, limit_s: float = math.inf, work: str = "work") -> Bench:
        golden = home.store.load_golden(version)
        requests = build_requests(version.manifest.signature, golden, traffic, "scale")
        return Bench(version, home.store.open_artifact(version), golden, traffic, requests, home.path / work, limit_s)

    yield home, make


DEFAULT = Candidate(Engine("onnx", None, 1), 1, 64, 1)


def test_client_measures_answers_of_a_real_server(benched: tuple[Home, Any]) -> None:
    _, make = benched
    with make(Traffic(rows=2, connections=4), work="closed") as bench:
        found = bench.measure(DEFAULT, 0.3)
        assert (found.problem, found.connections, found.is_in_time) == ("", 4, True)
        assert found.rows_per_s == pytest.approx(2 * found.requests_per_s)
        assert found.p50_s is not None and found.p99_s is not None and 0 < found.p50_s <= found.p99_s
        assert found.server_cpu_s > 0 and 0 < found.load_cpu < 1 and found.memory_bytes > 1 << 20
        refused = bench.measure(Candidate(Engine("torch", None, 1), 1, 64, 1), 0.3)
        assert "expected for this version one of onnx, openvino" in refused.problem
        assert bench.measure(DEFAULT, 0.3).requests_per_s > 0, "what failed leaves the server as it was"


def test_fewer_clients_are_tried_where_latency_misses_its_limit(benched: tuple[Home, Any]) -> None:
    _, make = benched
    with make(Traffic(connections=8), limit_s=1e-9, work="late") as bench:
        found = bench.measure(DEFAULT, 0.1)
    assert (found.connections, found.is_in_time, found.good_per_s) == (1, False, 0.0)


def test_requests_that_arrive_by_themselves_are_sent_when_due(benched: tuple[Home, Any]) -> None:
    _, make = benched
    with make(Traffic(connections=16, rate_per_s=200.0), work="open") as bench:
        found = bench.measure(DEFAULT, 1.0)
    # Poisson arrivals: four standard deviations of 200 are 57.
    assert found.requests_per_s == pytest.approx(200, abs=60)


# what is written


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "[serve]\nnum_fronts = 3\n"),
        ("", "[serve]\nnum_fronts = 3\n"),
        ("# mine\n[serve]\nhttp_port = 80 # web\n", "# mine\n[serve]\nnum_fronts = 3\nhttp_port = 80 # web\n"),
        ("[serve] # x\nnum_fronts=1 # few\n", "[serve] # x\nnum_fronts = 3 # few\n"),
    ],
    ids=["missing", "empty", "other", "present"],
)
def test_number_of_fronts_is_written_beside_what_stands_there(before: str | None, after: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if before is not None:
        path.write_text(before)
    assert "num_fronts = 3 now (was 1)" in write_num_fronts(tmp_path, 3)
    assert path.read_text() == after
    assert write_num_fronts(tmp_path, 3) == ""


def test_environment_that_wins_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_NUM_FRONTS", "2")
    assert "wins over config.toml" in write_num_fronts(tmp_path, 3)
    assert not (tmp_path / "config.toml").exists()


# the command


def invoke(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["tune", *arguments, "--home", str(home.store.home)])


def test_command_shows_explains_plots_and_writes_its_choice(home: Home) -> None:
    pytest.importorskip("matplotlib")
    home.publish_scale()
    Ledger(home.store).request_rollout(Ledger(home.store).plan("scale", timeout_s=7.0))
    picture = home.path / "tune.svg"
    options = ["--budget-s", "3", "--connections", "4", "--json", "--plot", str(picture)]
    result = invoke(home, "scale", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["explanation"][0].startswith("chosen: ")
    assert picture.read_text().startswith("<?xml")
    spec = Ledger(home.store).find_deployment("scale").spec
    chosen = told["choice"]["candidate"]
    assert (spec.replicas, spec.max_batch_rows, spec.timeout_s) == (chosen["replicas"], chosen["max_batch_rows"], 7.0)
    assert spec.threads == chosen["engine"]["threads"]
    with home.serve() as server, server.client() as client:
        assert client.is_ready() is not None
        refused = invoke(home, "scale", "--budget-s", "1")
        assert refused.exit_code == 1
        assert f"A server (process {server.pid}) runs" in refused.stderr and "--share" in refused.stderr


def test_dry_run_writes_nothing_and_share_measures_beside_a_server(home: Home) -> None:
    home.publish_scale()
    with home.serve():
        result = invoke(home, "scale", "--budget-s", "0.2", "--connections", "2", "--share", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "nothing was written" in result.stdout and "ENGINE" in result.stdout
    assert Ledger(home.store).list_deployments() == []


def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(home: Home) -> None:
    home.publish_code("return {'y': x}", golden=golden_scale(1.0))
    version = home.store.get_version("code")
    with pytest.raises(NotAllowedError):
        tune(home.store, version, Traffic(), Goal())
    home.publish_code("return {'y': x}", "bare")
    with pytest.raises(NotFoundError, match="golden"):
        tune(home.store, home.store.get_version("bare"), Traffic(), Goal(), allow_code=True)
    assert not (home.store.home / "tune").exists()


def test_python_model_is_tuned_when_its_code_is_allowed(home: Home) -> None:
    version = home.publish_code("return {'y': x}", golden=golden_scale(1.0))
    outcome = tune(home.store, version, Traffic(connections=2), Goal(budget_s=0.2), allow_code=True)
    assert outcome.choice.candidate.engine.runtime == "python"
    assert outcome.choice.good_per_s > 0


def test_client_imports_nothing_but_the_standard_library() -> None:
    code = "import sys, argosy.tune.load; print([m for m in ('numpy', 'msgspec', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trace_and_what_it_says_itself_exclude_each_other(home: Home) -> None:
    home.publish_scale()
    result = invoke(home, "scale", "--trace", "t.jsonl", "--rate", "5")
    assert result.exit_code == 2 and "--trace says when" in result.stderr
