"""`argosy record`: traces of what real clients ask, and that `argosy tune` can replay them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from argosy.client import AdminClient
from argosy.deploy.spec import Arrival
from argosy.errors import FaultError, InputError, NotFoundError, OverloadedError
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.tune.trace import MAX_ARRIVALS, TraceFile, read_trace
from argosy.tune.traffic import Traffic, build_requests, build_schedule
from tests.home import Home, golden_scale, row
from tests.processes import find_child, wait_until

WIDE = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))
ARGOSY = Path(sys.executable).with_name("argosy")


class Recording:
    """Record a deployment's requests in a thread while a block runs, and a moment longer."""

    def __init__(self, server: Server, name: str) -> None:
        self.arrivals: list[Arrival] = []
        self._num_told = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, name))

    def _run(self, server: Server, name: str) -> None:
        with AdminClient(server.home) as admin:
            for arrivals in admin.record(name):
                self.arrivals += arrivals
                self._num_told += 1
                if self._is_over.is_set():
                    return

    def _wait_for(self, count: int) -> None:
        """Wait until arrivals have been told so many more times."""
        start = self._num_told
        wait_until(lambda: self._num_told >= start + count)

    def __enter__(self) -> list[Arrival]:
        self._thread.start()
        self._wait_for(1)
        return self.arrivals

    def __exit__(self, *_: object) -> None:
        # What was under way when the last answer came is told in one more, and what a front told later than another in the next.
        self._wait_for(3)
        self._is_over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def ask_http(server: Server, x: np.ndarray) -> None:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        tensor = tritonclient.http.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        client.infer("wide", [tensor])


def ask_grpc(server: Server, x: np.ndarray) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        tensor = tritonclient.grpc.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        client.infer("wide", [tensor])


def run_at_once(ask: Callable[[], None], num_threads: int) -> None:
    threads = [threading.Thread(target=ask) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_rows_and_lengths_are_recorded_in_order_of_arrival_over_every_protocol_and_front(home: Home) -> None:
    home.publish_code("return {'y': x * 2}", "wide", signature=WIDE, golden=golden_scale())
    home.publish_scale("other")
    with home.serve("other", num_fronts=2) as server, server.client() as client:
        server.deploy("wide", allow_code=True)
        before_s = time.monotonic()
        with Recording(server, "wide") as arrivals:
            for rows, length in itertools.product((1, 3), (2, 5, 9)):
                x = np.ones((rows, length), np.float32)
                for ask in (ask_http, ask_grpc):
                    ask(server, x)
                client.predict("other", {"x": row(1)})
    expected = [(rows, length) for rows, length in itertools.product((1, 3), (2, 5, 9)) for _ in range(2)]
    assert [(arrival.rows, arrival.length) for arrival in arrivals] == expected
    times = [before_s, *(arrival.at_s for arrival in arrivals), time.monotonic()]
    assert times == sorted(times)


def test_requests_that_are_refused_arrived_as_well(home: Home) -> None:
    home.publish_code("time.sleep(0.5); return {'y': x}", golden=None)
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True, max_queue_rows=1, max_batch_rows=1)
        refused: list[OverloadedError] = []

        def ask() -> None:
            try:
                client.predict("code", {"x": row(1)})
            except OverloadedError as error:
                refused.append(error)

        with Recording(server, "code") as arrivals:
            run_at_once(ask, 8)
    assert refused
    assert len(arrivals) == 8


def test_many_requests_of_many_clients_are_all_recorded(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", num_fronts=2) as server:

        def ask() -> None:
            with server.client() as client:
                for _ in range(300):
                    client.predict("scale", {"x": row(1)})

        with Recording(server, "scale") as arrivals:
            run_at_once(ask, 8)
    assert len(arrivals) == 2400
    assert all(arrival.length is None for arrival in arrivals), "the signature leaves no length open"
    assert [arrival.at_s for arrival in arrivals] == sorted(arrival.at_s for arrival in arrivals)


def test_recording_goes_on_when_the_control_process_starts_anew(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server, server.client() as client, Recording(server, "scale") as arrivals:
        client.predict("scale", {"x": row(1, 2)})
        control = find_child(server, "argosy.deploy.control")
        os.kill(control, signal.SIGKILL)
        for _ in range(20):
            client.predict("scale", {"x": row(1, 3)})
            time.sleep(0.02)
        wait_until(lambda: find_child(server, "argosy.deploy.control") not in (0, control))
        client.predict("scale", {"x": row(1, 4)})
        wait_until(lambda: arrivals and arrivals[-1].rows == 4)
    assert [arrival.rows for arrival in arrivals] == [2, *[3] * 20, 4]


def test_command_writes_a_trace_that_can_be_replayed(home: Home, tmp_path: Path) -> None:
    home.publish_scale()
    trace = tmp_path / "trace.jsonl"
    with home.serve("scale") as server, server.client() as client:
        command = [str(ARGOSY), "record", "scale", str(trace), "--for-s", "60", "--json", "--home", str(home.store.home)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            wait_until(lambda: client.predict("scale", {"x": row(1)}) and trace.exists() and trace.stat().st_size)
            for rows in (1, 2, 7):
                client.predict("scale", {"x": row(1, rows)})
            wait_until(lambda: json.loads(trace.read_text().splitlines()[-1]).get("rows") == 7)
            os.kill(process.pid, signal.SIGTERM)  # SIGINT is ignored where the tests run in the background
            output, _ = process.communicate(timeout=20)
        assert process.returncode == 0
    arrivals = read_trace(trace)
    assert [arrival.rows for arrival in arrivals[-3:]] == [1, 2, 7]
    assert arrivals[0].at_s == 0
    assert json.loads(output)["num_arrivals"] == len(arrivals)
    traffic = Traffic(trace=arrivals)
    version = home.store.get_version("scale")
    requests = build_requests(version.manifest.signature, home.store.load_golden(version), traffic, "scale")
    assert {requests.rows[index] for _, index in build_schedule(traffic, requests, 1.0)} >= {7}


def test_command_refuses_what_cannot_be_recorded(home: Home, tmp_path: Path) -> None:
    home.publish_scale()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(ARGOSY), "record", *arguments, "--home", str(home.store.home)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        return done.stderr

    assert "No server runs" in run("scale", str(tmp_path / "trace"))
    with home.serve("scale") as server:
        assert "Cannot write" in run("scale", str(tmp_path / "missing" / "trace"))
        (tmp_path / "trace").write_text("an earlier one")
        assert "deployed: scale" in run("nobody", str(tmp_path / "trace"), "--overwrite")
        assert (tmp_path / "trace").read_text() == "an earlier one"
        with server.admin() as admin, pytest.raises(NotFoundError):
            next(admin.record("../x"))


def test_what_comes_too_fast_is_an_error_and_not_a_gap(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.publish_scale()
    with home.serve("scale") as server, server.admin() as admin, server.client() as client:
        recording = admin.record("scale")
        assert next(recording) == []
        client.predict("scale", {"x": row(1)})
        reply = {"arrivals": [], "num_missed": 3, "until_s": 0.0}
        monkeypatch.setattr(httpx.Client, "request", lambda *_, **__: httpx.Response(200, json=reply))
        with pytest.raises(FaultError, match="3 are missing"):
            next(recording)


def test_trace_holds_no_more_than_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argosy.tune.trace.MAX_ARRIVALS", 5)
    file = TraceFile(tmp_path / "trace")
    file.add([])
    for start in (10.0, 11.0):
        file.add([Arrival(start + 0.1 * step, 1, 3) for step in range(4)])
    file.close()
    assert file.num_arrivals == 5
    arrivals = read_trace(tmp_path / "trace")
    assert [arrival.at_s for arrival in arrivals] == [0.0, 0.1, 0.2, 0.3, 1.0]
    assert MAX_ARRIVALS > 5
    with pytest.raises(InputError, match="Cannot write"):
        TraceFile(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InputError, match="holds 0 arrivals"):
        read_trace(tmp_path / "empty")


def test_examples_of_a_free_axis_are_stretched_to_what_was_recorded() -> None:
    golden = Golden({"x": np.ones((1, 4), np.float32)}, {"y": np.ones((1, 4), np.float32)})
    traffic = Traffic(trace=(Arrival(0.0, 2, 9), Arrival(0.5, 1, 2)))
    requests = build_requests(WIDE, golden, traffic, "wide")
    assert {array["x"].shape for array in requests.arrays} == {(2, 9), (1, 2)}
