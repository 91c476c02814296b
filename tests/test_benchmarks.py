"""What the comparison with rivals relies on: intervals, verdicts, checked answers, a constant rate, nothing left."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.scripts import load_script

pytestmark = pytest.mark.alone

clients = load_script("benchmarks/clients.py")
models = load_script("benchmarks/models.py")
ratios = load_script("benchmarks/ratios.py")
servers = load_script("benchmarks/servers.py")

# Answers every request with zeros, after it has left a process behind as a daemon does.
WRONG_SERVER = """
import http.server, json, os, pathlib, subprocess, sys

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pathlib.Path("daemon.pid").write_text(str(os.getpid()))
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"outputs": [{"name": "y", "data": [0.0] * 10}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.make_case("mlp", tmp_path_factory.mktemp("case") / "mlp")


def windows(values: list[float], other_cores: float = 0.0) -> list[dict[str, float]]:
    return [{"rps": value, "other_cores": other_cores} for value in values]


def has_ended(pid: int) -> bool:
    try:
        # The system reaps an orphan when it comes to it.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("count", "rank", "coverage"),
    [
        pytest.param(1, 0, 0.0, id="one value"),
        pytest.param(5, 0, 0.9375, id="five values"),
        pytest.param(9, 1, 0.9609375, id="nine values"),
        pytest.param(20, 5, 0.9586105346679688, id="twenty values"),
    ],
)
def test_interval_is_the_narrowest_that_covers_the_median(count: int, rank: int, coverage: float) -> None:
    values = np.random.default_rng(1).permutation(count).astype(float).tolist()
    assert ratios.find_interval(values) == (rank, count - 1 - rank, pytest.approx(coverage))


@pytest.mark.parametrize(
    ("at_least", "verdict"),
    [pytest.param(1.0, "met", id="below"), pytest.param(1.5, "undecided", id="within"), pytest.param(2.0, "missed", id="beyond")],
)
def test_limit_is_missed_only_if_the_interval_lies_beyond_it(at_least: float, verdict: str) -> None:
    ratio = ratios.compare(windows([1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]), windows([1.0] * 9), "rps")
    assert (ratio.median, ratio.low, ratio.high) == (1.5, 1.2, 1.8)
    assert ratios.judge(at_least, 99.0, ratio) == verdict


def test_few_rounds_decide_nothing() -> None:
    assert ratios.judge(1.0, 99.0, ratios.compare(windows([5.0] * 3), windows([1.0] * 3), "rps")) == "too few rounds"


def test_dirty_pairs_do_not_count_where_enough_are_clean() -> None:
    subject = windows([2.0] * 6) + windows([9.0] * 3, other_cores=1.0)
    assert ratios.compare(subject, windows([1.0] * 9), "rps").high == 2.0
    assert ratios.compare(subject, windows([1.0] * 9), "rps").pairs == "6 clean"
    assert ratios.compare(subject[1:], windows([1.0] * 8), "rps").pairs == "8, 5 clean"


@pytest.mark.parametrize("kind", ["binary", "grpc"])
def test_argosy_answers_as_onnx_runtime_does(case: Any, tmp_path: Path, kind: str) -> None:
    with servers.run_server(servers.plan_argosy(case, tmp_path, kind=kind), case, tmp_path) as server:
        assert server.start_s > 0
        np.testing.assert_allclose(server.ask(3), case.answers[3].ravel(), atol=case.tolerance)


def test_open_loop_keeps_its_rate(case: Any, tmp_path: Path) -> None:
    with servers.run_server(servers.plan_argosy(case, tmp_path), case, tmp_path) as server:
        server.client = partial(clients.run_open_loop, 200.0)
        window = server.measure(4, 0.5)
    assert window["requests"] == 100
    assert window["errors"] == 0
    assert window["cpu_us"] > 0


def test_server_that_answers_wrongly_does_not_take_part_and_nothing_of_it_is_left(case: Any, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    plan = servers.Plan([sys.executable, "-c", WRONG_SERVER, str(port)], {}, port, "/", "v2", "m")
    with pytest.raises(servers.EntrantError, match="answers row 0 with"), servers.run_server(plan, case, tmp_path):
        pass
    assert has_ended(int((tmp_path / "daemon.pid").read_text()))


def test_server_that_ends_is_reported_with_its_last_words(case: Any, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    plan = servers.Plan([sys.executable, "-c", "raise SystemExit('no such licence')"], {}, port, "/", "v2", "m")
    words = r"(?s)ended with code 1.*no such licence"
    with pytest.raises(servers.EntrantError, match=words), servers.run_server(plan, case, tmp_path):
        pass
