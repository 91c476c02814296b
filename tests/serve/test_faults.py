"""Kill what can be killed, while clients send: what is lost, what is refused, what comes back."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import httpx
import numpy as np
import pytest

import argosy
from argosy.errors import FaultError, PoisonError, UnavailableError
from argosy.importers.python import publish_python
from argosy.serve.front.front import count_connections
from argosy.signature import Ragged, RaggedInput, Signature, TensorSpec
from argosy.store.golden import Golden
from tests.home import SIGNATURE, Home, golden_scale, row
from tests.load import Load
from tests.processes import find_child, find_workers, is_alive, list_children, read_state, wait_until

POISON = "if (x == 666).any(): os.kill(os.getpid(), 9)\nreturn {'y': x * 2}"


def is_double(value: float, answer: np.ndarray, version: str) -> bool:
    return bool((answer == row(value) * 2).all())


def is_scaled(value: float, answer: np.ndarray, version: str) -> bool:
    """Version n answers y = (n + 1) * x."""
    return bool((answer == row(value) * (int(version) + 1)).all())


def test_killed_worker_loses_no_request_and_is_replaced(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        seen: set[int] = set()
        with Load(server, "scale", is_double) as load:
            for _ in range(5):
                load.wait_for(40)
                (pid,) = wait_until(lambda: find_workers(server, "scale"))
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
            load.wait_for(40)
        assert load.failures == []
        assert len(seen) == 5


def test_two_replicas_carry_on_while_one_is_killed(home: Home) -> None:
    home.publish_scale()
    with home.serve() as server:
        server.deploy("scale", replicas=2)
        with Load(server, "scale", is_double) as load:
            load.wait_for(40)
            pids = find_workers(server, "scale")
            os.kill(pids[0], signal.SIGKILL)
            wait_until(lambda: len(find_workers(server, "scale")) == 2 and pids[0] not in find_workers(server, "scale"))
        assert load.failures == []
        assert len(pids) == 2


def try_predict(server: argosy.Server, value: float) -> object:
    """The answer to one row, or the error."""
    with server.client() as client:
        try:
            return client.predict("code", {"x": row(value)})["y"]
        except argosy.ArgosyError as error:
            return error


def test_request_that_kills_workers_is_refused_and_its_neighbours_are_answered(home: Home) -> None:
    home.publish_code(POISON, golden=golden_scale())
    with home.serve() as server:
        server.deploy("code", allow_code=True)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(partial(try_predict, server), [666.0 if index == 7 else float(index) for index in range(16)]))
        refused = answers.pop(7)
        assert isinstance(refused, PoisonError), refused
        assert refused.status == 422
        assert "killed worker" in str(refused)
        for index, answer in zip([*range(7), *range(8, 16)], answers, strict=True):
            assert isinstance(answer, np.ndarray), answer
            np.testing.assert_array_equal(answer, row(index) * 2)
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("code", {"x": row(5)})["y"], row(10))


def test_request_is_not_sent_twice_to_a_version_that_is_not_repeatable(home: Home) -> None:
    home.publish_code(POISON, repeatable=False, golden=golden_scale())
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        with server.client() as client:
            with pytest.raises(FaultError, match="not declared repeatable"):
                client.predict("code", {"x": row(666)})
            wait_until(lambda: client.is_ready("code"))
            np.testing.assert_array_equal(client.predict("code", {"x": row(1)})["y"], row(2))


def test_row_that_raises_fails_alone(home: Home) -> None:
    home.publish_code("if (x == 13).any(): raise ValueError('unlucky')\nreturn {'y': x * 2}", golden=golden_scale(rows=3))
    with home.serve() as server:
        server.deploy("code", allow_code=True)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(partial(try_predict, server), [13.0 if index == 3 else 100.0 + index for index in range(32)]))
        failed = answers.pop(3)
        assert isinstance(failed, FaultError)
        assert "ValueError: unlucky" in str(failed)
        assert all(isinstance(answer, np.ndarray) for answer in answers)


def test_model_that_answers_other_rows_than_it_got_is_refused(home: Home) -> None:
    home.publish_code("return {'y': np.zeros((len(x) + (x[0, 0] == 99), 4), 'f4')}")
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        with server.client() as client:
            assert client.predict("code", {"x": row(1)})["y"].shape == (1, 4)
            with pytest.raises(FaultError, match="has 2 rows for 1"):
                client.predict("code", {"x": row(99)})


HANG = "if (x == 77).any(): time.sleep(600)\nif (x == 55).any(): time.sleep(3.5)\nreturn {'y': x * 2}"


def hang(server: argosy.Server) -> None:
    """Send a request that is never answered; its client waits 0.3 s."""
    with server.client() as client, pytest.raises(argosy.ArgosyError, match=r"0\.3"):
        client.predict("code", {"x": row(77)}, timeout_s=0.3)


@pytest.mark.parametrize("module", ["", "argosy.serve.front.front"], ids=["alone", "front"])
def test_worker_that_hangs_is_replaced_whoever_dies_meanwhile(home: Home, module: str) -> None:
    home.publish_code(HANG, golden=golden_scale())
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        (before,) = find_workers(server, "code")
        hang(server)
        if module:
            os.kill(find_child(server, module), signal.SIGKILL)
        with server.client() as client:
            if not module:
                wait_until(lambda: not client.is_ready("code"))
            # It waits for the next worker.
            np.testing.assert_array_equal(client.predict("code", {"x": row(3)})["y"], row(6))
            assert client.is_ready("code")
        assert not is_alive(before)


def test_slow_request_runs_once_while_somebody_waits_for_it(home: Home) -> None:
    home.publish_code(HANG, golden=golden_scale())
    with home.serve(hang_timeout_s=1.0) as server:
        server.deploy("code", allow_code=True)
        (before,) = find_workers(server, "code")
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("code", {"x": row(55)})["y"], row(110))
        assert find_workers(server, "code") == [before]


@pytest.mark.slow
def test_batch_that_one_front_has_given_up_does_not_end_what_another_waits_for(home: Home) -> None:
    home.publish_code(HANG.replace("3.5", "9"), golden=golden_scale())
    with home.serve(num_fronts=2) as server:
        server.deploy("code", allow_code=True)
        (before,) = find_workers(server, "code")
        answers: list[object] = []
        # Of so many connections each front has some; the worker runs a batch of one front while the other's waits.
        waiting = [threading.Thread(target=lambda: answers.append(try_predict(server, 55.0))) for _ in range(2)]
        for thread in waiting:
            thread.start()
        for _ in range(16):
            with server.client() as client, pytest.raises(argosy.ArgosyError):
                client.predict("code", {"x": row(3)}, timeout_s=0.2)
        for thread in waiting:
            thread.join()
        assert [np.asarray(answer).tolist() for answer in answers] == [row(110).tolist()] * 2
        assert is_alive(before)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["argosy.deploy.control", "argosy.serve.front.front", "worker"])
def test_process_that_is_stopped_is_replaced(home: Home, module: str) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        stopped = find_workers(server, "scale")[0] if module == "worker" else find_child(server, module)
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: not is_alive(stopped), 10)
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("scale", {"x": row(4)})["y"], row(8))
        wait_until(lambda: find_workers(server, "scale"))


LOADS = """
import os


class Model:
    def load(self, folder):
        if os.path.exists({flag!r}):
            {fault}

    def infer(self, inputs):
        return {{"y": inputs["x"] * 2}}
"""


@pytest.mark.parametrize(
    "fault",
    [pytest.param("os._exit(9)", id="dies"), pytest.param("raise ValueError('no')", id="refuses", marks=pytest.mark.slow)],
)
def test_requests_are_refused_at_once_while_no_worker_can_load(home: Home, fault: str) -> None:
    flag = home.path / "flag"
    source = home.files / "model.py"
    source.write_text(LOADS.format(flag=str(flag), fault=fault))
    publish_python(home.store, source, "code", signature=SIGNATURE, golden=golden_scale(), repeatable=True)
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        flag.touch()
        os.kill(find_workers(server, "code")[0], signal.SIGKILL)
        with server.client() as client:
            # Those that wait for the worker are told as well.
            for _ in range(3):
                with pytest.raises(UnavailableError, match="no replica"):
                    client.predict("code", {"x": row(1)}, timeout_s=20.0)
        answer = httpx.post(f"{server.url}/v2/models/code/infer", json=as_json(1.0), trust_env=False)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        flag.unlink()
        with server.client() as client:
            wait_until(lambda: client.is_ready("code"))
            np.testing.assert_array_equal(client.predict("code", {"x": row(3)})["y"], row(6))


def as_json(value: float) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}]}


def test_answer_that_others_cannot_share_is_given_alone_and_leaves_the_worker(home: Home) -> None:
    spec = TensorSpec("x", "FP32", (-1, -1))
    ragged = Signature((spec,), (TensorSpec("y", "FP32", (-1, -1)),), ragged=Ragged({"x": RaggedInput(1)}, {"y": 1}))
    home.publish_code(
        "return {'y': x[:, :-1] if (x == 77).any() else x * 2}",
        golden=Golden({"x": np.ones((4, 6), np.float32)}, {"y": np.full((4, 6), 2, np.float32)}),
        signature=ragged,
    )
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        (before,) = find_workers(server, "code")
        lengths = [3, 4, 5, 3, 6, 7] * 4
        with ThreadPoolExecutor(24) as pool, server.client() as client:

            def predict(index: int, length: int) -> object:
                value = 77 if index % 6 == 4 else index
                return client.predict("code", {"x": np.full((1, length), value, np.float32)})["y"].shape

            answers = list(pool.map(predict, range(24), lengths))
        # Joined, an output of another length than the inputs' fails; alone, it may have any.
        assert answers == [(1, length - (index % 6 == 4)) for index, length in enumerate(lengths)]
        assert find_workers(server, "code") == [before]


@pytest.mark.parametrize(
    ("num_descriptors", "expected"),
    [(-1, 4096), (1 << 20, 4096), (65536, 4096), (4096, 1792), (1024, 432), (256, 64), (64, 16), (1, 1)],
)
def test_limit_of_descriptors_bounds_the_connections_of_a_front(num_descriptors: int, expected: int) -> None:
    assert count_connections(num_descriptors) == expected


def test_worker_is_linked_where_idle_clients_have_used_up_the_descriptors(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server, ExitStack() as stack:
        # What the supervisor may have, its next front may have as well.
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (256, 256))
        front = find_child(server, "argosy.serve.front.front")
        os.kill(front, signal.SIGKILL)
        wait_until(lambda: find_child(server, "argosy.serve.front.front") not in (0, front))
        client = stack.enter_context(server.client())
        np.testing.assert_array_equal(client.predict("scale", {"x": row(1)})["y"], row(2))
        state = read_state(server)
        for port in ("http_port", "grpc_port", "metrics_port"):
            for _ in range(150):
                stack.enter_context(socket.create_connection(("127.0.0.1", state[port])))
        (worker,) = find_workers(server, "scale")
        os.kill(worker, signal.SIGKILL)
        np.testing.assert_array_equal(client.predict("scale", {"x": row(2)})["y"], row(4))
        assert find_workers(server, "scale") != [worker]


def test_killed_front_is_replaced(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        front = find_child(server, "argosy.serve.front.front")
        os.kill(front, signal.SIGKILL)
        # The listener is the supervisor's: a connection made now waits in its backlog.
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("scale", {"x": row(4)})["y"], row(8))
        assert find_child(server, "argosy.serve.front.front") != front


def test_requests_go_on_while_the_control_process_is_away(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        with Load(server, "scale", is_double) as load:
            for _ in range(3):
                control = find_child(server, "argosy.deploy.control")
                os.kill(control, signal.SIGKILL)
                wait_until(lambda old=control: find_child(server, "argosy.deploy.control") not in (0, old))
                load.wait_for(100)
        assert load.failures == []
        home.publish_scale(factor=3.0)
        wait_until(lambda: server_status_works(server))
        server.deploy("scale@2")
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("scale", {"x": row(4)})["y"], row(12))


def server_status_works(server: argosy.Server) -> bool:
    try:
        with server.admin() as admin:
            return bool(admin.status())
    except argosy.ArgosyError:
        return False


def test_worker_is_replaced_while_the_control_process_is_away(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        (worker,) = find_workers(server, "scale")
        os.kill(find_child(server, "argosy.deploy.control"), signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("scale", {"x": row(4)})["y"], row(8))
        os.kill(find_child(server, "argosy.deploy.control"), signal.SIGCONT)


def test_killed_supervisor_takes_all_with_it(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        family = list_children(server.pid)
        assert len(family) >= 4
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in family))
    # The next server starts from what is on disk, and has the deployment again.
    with home.serve() as server, server.client() as client:
        np.testing.assert_array_equal(client.predict("scale", {"x": row(4)})["y"], row(8))


def test_second_server_of_one_home_is_refused(home: Home) -> None:
    with home.serve(), pytest.raises(argosy.ArgosyError, match="runs already"), home.serve():
        pass


class Gate:
    """A file that requests of a model wait for; requests with a 0 do not."""

    def __init__(self, home: Home) -> None:
        self.path = home.path / "gate"
        self.seen = home.path / "seen"
        self.body = (
            f"if x.any(): open({str(self.seen)!r}, 'a').write('x')\n"
            f"while x.any() and not os.path.exists({str(self.path)!r}): time.sleep(0.005)\n"
            "self.count += 1\nreturn {'y': x * 2, 'runs': x[:, :1] * 0 + self.count}"
        )

    def open(self) -> None:
        self.path.touch()

    def wait_until_used(self) -> None:
        """Until the model has the first request that waits."""
        wait_until(self.seen.exists)


@pytest.fixture
def gate(home: Home) -> Gate:
    """The gate of the model `code`, which answers y = 2 x, and how often it has run."""
    gate = Gate(home)
    runs = Signature(SIGNATURE.inputs, (*SIGNATURE.outputs, TensorSpec("runs", "FP32", (-1, 1))))
    home.publish_code(gate.body, signature=runs)
    return gate


def infer(server: argosy.Server, **parameters: int) -> httpx.Response:
    """Ask `code` with a row that waits at the gate."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}
    url = f"{server.url}/v2/models/code/infer"
    return httpx.post(url, json={"inputs": [tensor], "parameters": parameters}, timeout=60)


def test_stopping_server_answers_what_it_has_taken(home: Home, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        with home.serve() as server:
            server.deploy("code", allow_code=True)
            asked = pool.submit(infer, server)
            gate.wait_until_used()
            threading.Timer(0.2, gate.open).start()
        assert asked.result().json()["outputs"][0]["data"] == [2.0] * 4


def test_request_of_a_client_that_left_is_dropped(home: Home, gate: Gate) -> None:
    with home.serve() as server:
        server.deploy("code", allow_code=True, max_batch_rows=1)
        body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}'
        head = b"POST /v2/models/code/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(6):
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(head + body)
                gate.wait_until_used()
        # A connection that is made later is read later: the front has seen by then what was closed.
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        gate.open()
        with server.client() as client:
            # At most the made-up one, the one that ran and the one that stood ready were run before this one.
            assert client.predict("code", {"x": row(1)})["runs"][0, 0] <= 4


def count_queued(server: argosy.Server) -> int:
    """Rows that wait for the model `code`."""
    with server.admin() as admin:
        (lane,) = [lane for lanes in admin.stats()["fronts"].values() for lane in lanes if lane["name"] == "code"]
        return lane["queued_rows"]


def test_full_queue_refuses_at_once_with_retry_after(home: Home, gate: Gate) -> None:
    with home.serve() as server, ThreadPoolExecutor(16) as pool:
        server.deploy("code", allow_code=True, max_queue_rows=4, max_batch_rows=1)
        taken = [pool.submit(infer, server)]
        gate.wait_until_used()
        # One runs, and one stands ready.
        for count, num_queued in ((4, 3), (1, 4)):
            taken += [pool.submit(infer, server) for _ in range(count)]
            wait_until(lambda expected=num_queued: count_queued(server) == expected)
        for answer in pool.map(lambda _: infer(server), range(10)):
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "queue" in answer.json()["error"]
        gate.open()
        assert [future.result().status_code for future in taken] == [200] * 6


def test_deadline_is_kept(home: Home, gate: Gate) -> None:
    with home.serve() as server, ThreadPoolExecutor(3) as pool:
        server.deploy("code", allow_code=True, max_batch_rows=1)
        slow = [pool.submit(infer, server) for _ in range(3)]
        gate.wait_until_used()
        # While the gate is closed, nothing but the deadline answers.
        assert infer(server, timeout=250_000).status_code in (429, 504)
        gate.open()
        assert [future.result().status_code for future in slow] == [200, 200, 200]


def test_client_of_a_slow_batch_does_not_wait_beyond_its_deadline(home: Home, gate: Gate) -> None:
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        with pytest.raises(argosy.ArgosyError) as caught:
            client.predict("code", {"x": row(5)}, timeout_s=0.3)
        assert caught.value.status == 504
        gate.open()
        np.testing.assert_array_equal(client.predict("code", {"x": row(3)})["y"], row(6))


def test_server_beside_a_process_stops_when_that_is_killed(home: Home) -> None:
    code = (
        f"import argosy, time\nwith argosy.serve(home={str(home.store.home)!r}) as server:\n"
        "    print(server.pid, flush=True)\n    time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not is_alive(pid))


def test_file_of_a_killed_server_does_not_stand_for_one_that_runs(home: Home) -> None:
    with home.serve() as server:
        state = read_state(server)
    state["pid"] = os.getpid()
    (home.store.home / "run" / "serve.json").write_text(json.dumps(state))
    with pytest.raises(argosy.ArgosyError, match="No server runs"):
        argosy.AdminClient(home.store.home)
    with home.serve() as server:
        assert server.pid != os.getpid()


def test_requests_and_rollouts_bear_another_program_that_holds_the_database(home: Home) -> None:
    home.publish_scale()
    home.publish_scale(factor=3.0)
    with home.serve("scale@1") as server:
        other = sqlite3.connect(home.store.home / "argosy.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(2.0, other.execute, ("ROLLBACK",)).start()
        with Load(
            server, "scale", lambda value, answer, version: bool((answer == row(value) * (int(version) + 1)).all())
        ) as load:
            server.deploy("scale@2")
        other.close()
        assert load.failures == []
        assert load.versions >= {"1"}
        with server.client() as client:
            assert client.predict("scale", {"x": row(1)}).version == "2"
