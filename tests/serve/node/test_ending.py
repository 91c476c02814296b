"""How a server ends, and how one is succeeded: nobody who connects, or is connected, loses a request."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

import argosy
from argosy.errors import ConflictError, FaultError, InputError, UnavailableError
from argosy.server import Server, restart_server
from tests.home import Home, row
from tests.processes import find_child, find_workers, is_alive, read_state, wait_until

FRONT = "argosy.serve.front.front"
DRAIN_S = 0.6
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})


def address(server: Server, name: str = "http_port") -> tuple[str, int]:
    return "127.0.0.1", read_state(server)[name]


def connect(where: tuple[str, int]) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(*where, timeout=20))


def ask(connection: http.client.HTTPConnection, name: str = "scale") -> tuple[int, str]:
    """Send one request; its status, and what the answer says of the connection."""
    connection.request("POST", f"/v2/models/{name}/infer", BODY)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers.get("Connection", "")


class Clients:
    """Clients that ask without pause, connect again when they are told to, and count what came of each request.

    Args:
        where: to connect to.
        requests_each: requests of a connection; 0 for as many as the server lets it have.
    """

    def __init__(self, where: tuple[str, int], num_clients: int, requests_each: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self._where, self._each = where, requests_each
        self._threads = [threading.Thread(target=self._run) for _ in range(num_clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.counts["200"] > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self.stop.is_set():
            with connect(self._where) as connection:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    # Who is refused has sent nothing, and asks elsewhere.
                    self.counts["refused"] += 1
                    time.sleep(0.02)
                    continue
                self._use(connection)

    def _use(self, connection: http.client.HTTPConnection) -> None:
        num = 0
        while not self.stop.is_set():
            num += 1
            try:
                status, end = ask(connection)
            except (OSError, http.client.HTTPException) as error:
                self.counts[f"lost: {error!r}"] += 1
                return
            self.counts[str(status)] += 1
            if end == "close" or num == self._each:
                return


@pytest.mark.parametrize(("num_fronts", "requests_each"), [(1, 1), (2, 0)], ids=["new", "kept"])
def test_who_connects_while_a_server_ends_is_answered_or_refused(home: Home, num_fronts: int, requests_each: int) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S, num_fronts=num_fronts) as server:
        with Clients(address(server), 6, requests_each) as clients:
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(DRAIN_S / 2)
            during = clients.counts["200"]
            wait_until(lambda: not is_alive(server.pid))
            wait_until(lambda: clients.counts["refused"])
        assert clients.counts.keys() <= {"200", "refused"}, clients.counts
        assert clients.counts["200"] > during > 20


def test_server_that_ends_says_so_and_answers_what_has_begun(home: Home) -> None:
    home.publish_code("time.sleep(float(x[0, 0]))\nreturn {'y': x}", "slow")
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, ExitStack() as stack:
        server.deploy("slow", allow_code=True)
        where = address(server)
        kept, idle, raw, slow, fresh = (stack.enter_context(connect(where)) for _ in range(5))
        assert [ask(kept), ask(idle)] == [(200, ""), (200, "")]
        slow.request("POST", "/v2/models/slow/infer", BODY)
        raw.connect()
        # Two of which the second is cut.
        data = b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY.encode())
        raw.sock.sendall(data[:-9])
        os.kill(server.pid, signal.SIGTERM)
        assert wait_until(lambda: read_ready(where) == (503, "close"))
        assert ask(fresh) == (200, "close")
        assert ask(kept) == (200, "close")
        # Those that were sent together are all answered, and the last answer says that it is the last.
        together = stack.enter_context(socket.create_connection(where, timeout=10))
        together.sendall(data * 3)
        answers = read_all(together)
        assert answers.count(b"HTTP/1.1 200 OK") == 3
        assert answers.count(b"Connection: close") == 1
        wait_until(lambda: is_refused(where))
        raw.sock.sendall(data[-9:])
        assert read_all(raw.sock).startswith(b"HTTP/1.1 200 OK")
        answer = slow.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert idle.sock.recv(1) == b""


def read_ready(where: tuple[str, int]) -> tuple[int, str]:
    with connect(where) as connection:
        connection.request("GET", "/v2/health/ready")
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Connection", "")


def read_all(sock: socket.socket) -> bytes:
    parts: list[bytes] = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def is_refused(where: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        sock.settimeout(5)
        return sock.connect_ex(where) == errno.ECONNREFUSED


@pytest.mark.parametrize("after_s", [0.1, DRAIN_S + 0.25], ids=["early", "last moment"])
def test_front_that_dies_while_a_server_ends_loses_nobody_who_waits_to_be_accepted(home: Home, after_s: float) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, ExitStack() as stack:
        where, front = address(server), find_child(server, FRONT)
        os.kill(server.pid, signal.SIGTERM)
        began_s = time.monotonic()
        wait_until(lambda: read_ready(where)[0] == 503)
        os.kill(front, signal.SIGSTOP)
        waiting = [stack.enter_context(connect(where)) for _ in range(3)]
        for connection in waiting:
            connection.request("POST", "/v2/models/scale/infer", BODY)
        time.sleep(max(0.0, began_s + after_s - time.monotonic()))
        os.kill(front, signal.SIGKILL)
        for connection in waiting:
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
            answer.read()
        wait_until(lambda: not is_alive(server.pid), 10)


def test_who_connects_while_the_supervisor_of_a_server_that_ends_is_stopped_is_answered_or_refused(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server:
        front = find_child(server, FRONT)
        with Clients(address(server), 6, 1) as clients:
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: read_ready(address(server))[0] == 503)
            os.kill(server.pid, signal.SIGSTOP)
            wait_until(lambda: not is_alive(front))
            # They are connected by the kernel, and wait.
            time.sleep(0.2)
            os.kill(server.pid, signal.SIGCONT)
            wait_until(lambda: clients.counts["refused"])
            wait_until(lambda: not is_alive(server.pid))
        assert clients.counts.keys() <= {"200", "refused"}, clients.counts


def test_server_that_is_to_end_while_it_restarts_serves_those_who_connect_until_it_does(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=1.5) as server:
        where = address(server)

        def restart() -> None:
            with pytest.raises(FaultError):
                restart_server(home.store.home)

        thread = threading.Thread(target=restart)
        thread.start()
        wait_until(lambda: read_ready(where)[0] == 503)
        time.sleep(1.2)
        with Clients(where, 4, 1) as clients:
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: clients.counts["refused"])
        assert clients.counts.keys() <= {"200", "refused"}, clients.counts
        thread.join(20)


@pytest.mark.parametrize("settings", [{"drain_s": 60.0}, {}], ids=["argosy serve", "notebook"])
def test_ctrl_c_and_the_end_of_a_block_wait_for_nobody_but_those_who_are_answered(home: Home, settings: dict[str, float]) -> None:
    home.publish_code("time.sleep(float(x[0, 0]))\nreturn {'y': x}", "slow")
    with ExitStack() as stack:
        server = stack.enter_context(home.serve(**settings))
        server.deploy("slow", allow_code=True)
        where = address(server)
        idle, slow = (stack.enter_context(connect(where)) for _ in range(2))
        idle.connect()
        slow.request("POST", "/v2/models/slow/infer", BODY)
        began_s = time.monotonic()
        if settings:
            time.sleep(0.1)
            os.kill(server.pid, signal.SIGINT)
            wait_until(lambda: is_refused(where), 2.0)
        else:
            stop = threading.Timer(0.1, lambda: os.kill(server.pid, signal.SIGTERM))
            stop.start()
        assert slow.getresponse().status == 200
        wait_until(lambda: not is_alive(server.pid), 5.0)
        assert time.monotonic() - began_s < 4.0


def test_second_sigterm_ends_a_server_at_once(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=60.0) as server:
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: read_ready(address(server))[0] == 503)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(server.pid), 10)


def test_restart_keeps_process_and_ports_and_loses_nothing(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server:
        before, front = read_state(server), find_child(server, FRONT)
        (worker,) = find_workers(server, "scale")
        (home.store.home / "config.toml").write_text("[serve]\nmax_body_bytes = 5000\n")
        with Clients(address(server), 4) as kept, Clients(address(server), 4, 1) as new, calls_by_grpc(server) as called:
            assert restart_server(home.store.home)["num_restarts"] == 1
            num, called_before = kept.counts["200"], called["OK"]
            wait_until(lambda: kept.counts["200"] > num + 20 and called["OK"] > called_before + 5)
        assert (kept.counts.keys(), new.counts.keys(), called.keys()) == ({"200"}, {"200"}, {"OK"}), (kept, new, called)
        after = read_state(server)
        assert {name: after[name] for name in before if name == "pid" or name.endswith("_port")} == {
            name: before[name] for name in before if name == "pid" or name.endswith("_port")
        }
        assert after["started_s"] > before["started_s"]
        assert not is_alive(front) and not is_alive(worker)
        with server.client() as client, pytest.raises(argosy.ArgosyError, match="5000"):
            client.predict("scale", {"x": row(1, 4000)})


@contextmanager
def calls_by_grpc(server: Server) -> Iterator[Counter[str]]:
    """Unary calls of one channel, one after the other; what came of each."""
    from argosy.serve.grpc.messages import ModelInferRequest

    counts: Counter[str] = Counter()
    stop = threading.Event()
    request = ModelInferRequest(model_name="scale")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 1, 1, 1])
    data = request.SerializeToString()

    def run() -> None:
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while not stop.is_set():
                try:
                    call(data, timeout=20, wait_for_ready=True)
                    counts["OK"] += 1
                except grpc.RpcError as error:
                    counts[str(error)] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join(30)


def test_restart_that_cannot_be_leaves_the_server_as_it_is(home: Home) -> None:
    home.publish_scale()
    with pytest.raises(UnavailableError, match="No server runs"):
        restart_server(home.store.home)
    with home.serve("scale") as server:
        config = home.store.home / "config.toml"
        config.write_text("[serve]\nnum_fronts = 2\n")
        with pytest.raises(ConflictError, match="num_fronts would become 2, and is 1"):
            restart_server(home.store.home)
        config.write_text("[serve]\nhost = 'localhost'\n")
        with pytest.raises(ConflictError, match="host would become"):
            restart_server(home.store.home)
        config.write_text("[serve]\nunknown = 2\n")
        with pytest.raises(InputError, match="unknown key"):
            restart_server(home.store.home)
        # The signal without what should come with it.
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: "no restart" in (home.store.home / "serve.log").read_text())
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("scale", {"x": row(1)})["y"], row(2))


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that a test may take away; servers run in it."""
    path = tmp_path / "python"
    path.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(sys, "executable", str(path))
    return path


@pytest.mark.parametrize("when", ["before", "while the fronts end"])
def test_restart_that_the_kernel_refuses_leaves_the_server_as_it_is(home: Home, python: Path, when: str) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, ExitStack() as stack:
        (worker,), where = find_workers(server, "scale"), address(server)
        away = python.with_suffix(".away")
        clients = stack.enter_context(Clients(where, 4))
        if when == "before":
            python.rename(away)
        else:
            stop = threading.Thread(target=lambda: (wait_until(lambda: read_ready(where)[0] == 503), python.rename(away)))
            stop.start()
        with pytest.raises(FaultError, match=r"goes on as it was: .*/python cannot be run: .*No such file"):
            restart_server(home.store.home)
        away.rename(python)
        num = clients.counts["200"]
        wait_until(lambda: clients.counts["200"] > num + 20)
        clients.stop.set()
        assert clients.counts.keys() == {"200"}, clients.counts
        assert wait_until(lambda: find_workers(server, "scale")) == [worker]
        if when != "before":
            assert restart_server(home.store.home)["num_restarts"] == 1


def test_server_that_ends_while_it_restarts_says_that_there_is_no_successor(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=2.0) as server:
        caught: list[BaseException] = []

        def restart() -> None:
            try:
                restart_server(home.store.home)
            except FaultError as error:
                caught.append(error)

        thread = threading.Thread(target=restart)
        thread.start()
        wait_until(lambda: read_ready(address(server))[0] == 503)
        for _ in range(2):
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.1)
        thread.join(20)
        assert not is_alive(server.pid)
        assert ["successor does not answer" in str(error) for error in caught] == [True]
