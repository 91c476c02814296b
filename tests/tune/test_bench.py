"""The client, against real servers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from argosy.tune.bench import Bench
from argosy.tune.candidate import Candidate, Engine
from argosy.tune.traffic import Traffic, build_requests
from tests.home import Home

pytestmark = pytest.mark.alone


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


def test_client_imports_nothing_but_the_standard_library() -> None:
    code = "import sys, argosy.tune.load; print([m for m in ('numpy', 'msgspec', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
